"""scores on the CPU: how much each query asks for each key, preatt[i,j] = q[i]·k[j]/√HS.

              k[0]  k[1]  ...  k[T-1]         rows of HS floats, inside qkv
    q[i]  --> [ dot , dot , ... , dot ]       row i of preatt; one task a row

Attention spelled out, to be read and to be looked at: every pair is computed, the masked ones
too, and all (B,NH,T,T) of them are stored. A head costs 2·T²·HS FLOP; q[i] stays in registers and
k is read T times from the cache. The attention op is the fast form.
"""

import math

from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import add_scaled, dot, zero

Q, K, V = range(3)  # the three parts of qkv's axis 2


@kernel
def scores(preatt, qkv, add):
    """preatt (B,NH,T,T) = q·kᵀ/√HS for all pairs; qkv (B,T,3,NH,HS)."""
    B, T, _, NH, HS = qkv.shape
    scale = float32(1) / float32(math.sqrt(HS))
    for row in prange(B * NH * T):
        b = row // (NH * T)
        h = row // T % NH
        i = row % T
        for j in range(T):
            preatt[b, h, i, j] = dot(qkv[b, i, Q, h], qkv[b, j, K, h]) * scale


@kernel
def d_scores(dqkv, dpreatt, qkv, add):
    """forward: preatt[i,j] = q[i]·k[j]/√HS      so: dq[i] += dpreatt[i,j]·k[j]/√HS, and for k.

    One task a head: it owns the head's columns of dqkv (B,T,3,NH,HS), those of v being 0.
    """
    B, T, _, NH, _ = qkv.shape
    for head in prange(B * NH):
        b = head // NH
        h = head % NH
        if not add[0]:
            for t in range(T):
                zero(dqkv[b, t, Q, h])
                zero(dqkv[b, t, K, h])
                zero(dqkv[b, t, V, h])
        _d_head(dqkv[b], dpreatt[b, h], qkv[b], h)


@inline
def _d_head(dqkv, dpreatt, qkv, h):
    T, _, _, HS = qkv.shape
    scale = float32(1) / float32(math.sqrt(HS))
    for i in range(T):
        for j in range(T):
            g = dpreatt[i, j] * scale
            add_scaled(dqkv[i, Q, h], g, qkv[j, K, h])
            add_scaled(dqkv[j, K, h], g, qkv[i, Q, h])
