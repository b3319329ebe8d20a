"""Causal self-attention for new positions only: the keys and values of the past are kept, not
computed again.

Row t of sequence b is position s = start[b] + t.  For each head, in order of t:

    k[b,h,s], v[b,h,s] ← the key and value of row t     the cache grows by one position
    S[u] = q·k[b,h,u]/√HS   (u ≤ s)                     lse = log Σ_{u≤s} exp S[u]
    y[b,t,h] = Σ_{u≤s} exp(S[u] − lse)·v[b,h,u]

A row at a position s ≥ P is padding: it writes nothing to the cache and its y is 0.

Why it equals attention
     1  row s of attention sees positions u ≤ s only:   y[s] depends on q[s], k[≤ s], v[≤ s]
     2  so a later token changes no earlier row of any layer: k and v of a position never change
        once they are known.
     3  kept, they cost 2·NH·HS numbers a layer and position. A new token then costs the matmuls of
        one row and s + 1 dot products a head, where the whole window would cost s + 1 of each.
     4  T new rows in one call are T calls with one row each: row t is written before row t + 1
        reads it. A prompt comes in chunks (T > 1), what follows token by token (T = 1).
     5  start is a tensor with a number for each sequence, since a program's lines are constant and
        sequences differ in length. start = P parks a sequence: every row of it is padding.
     6  the cache holds a head's positions one after another, unlike qkv: a step reads all of them.
     7  a shorter sequence is padded on the right. Padding at a position s < P does leave its key
        and value in the cache, but a real row at position r reads u ≤ r only, and the real row at s
        writes first.

Nothing is differentiated here: training has whole sequences and uses attention.
Source: Shazeer 2019, "Fast Transformer Decoding", arXiv 1911.02150, section 2.4 (incremental
multihead attention).
"""

import math

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="qkv[B,T,3,NH,HS] start[B] k[B,NH,P,HS] v[B,NH,P,HS] -> y[B,T,NH,HS] k v",
    integers="start:0:P",
    # With a full cache; less in proportion to what it holds.
    flops={"attention_cached": "4*B*NH*T*P*HS"},
    bytes={"attention_cached": "4*B*T*NH*HS + 2*B*P*NH*HS"},
    cases=(
        dict(B=1, T=1, NH=1, HS=1, P=1),
        dict(B=2, T=3, NH=3, HS=5, P=7),
        dict(B=3, T=1, NH=2, HS=24, P=130),
        dict(B=1, T=65, NH=2, HS=64, P=80),
        dict(B=2, T=130, NH=1, HS=24, P=400),
    ),
)


def attention_cached(qkv, start, k, v, *, P):
    k, v = k.copy(), v.copy()  # (B, NH, P, HS)
    y = np.zeros_like(qkv[:, :, 0])  # (B, T, NH, HS)
    for b, t in np.ndindex(qkv.shape[:2]):
        s = start[b] + t
        if s < P:
            q, k[b, :, s], v[b, :, s] = qkv[b, t]  # 4
            S = np.einsum("hi,hui->hu", q, k[b, :, : s + 1]) / math.sqrt(q.shape[-1])  # (NH, s+1)
            top = S.max(-1)
            lse = top + np.log(np.exp(S - top[:, None]).sum(-1))  # (NH,)
            y[b, t] = np.einsum("hu,hui->hi", np.exp(S - lse[:, None]), v[b, :, : s + 1])
    return y, k, v
