"""Causal self-attention in one call: scores, causal_softmax and mix, without ever holding the T×T
weights.

Forward, for each batch entry and head:

    S = q·kᵀ/√HS  (s ≤ t)      lse[t] = log Σ_{s≤t} exp S[t,s]      P = exp(S − lse)      y = P·v

Backward, from dy, with D[t] = Σ_i dy[t,i]·y[t,i]:

    dP = dy·vᵀ      dS = P ⊙ (dP − D)      dq = dS·k/√HS      dk = dSᵀ·q/√HS      dv = Pᵀ·dy

Derivation
     1  y = P·v, the rule of mix:                       dv = Pᵀ·dy,   dP = dy·vᵀ
     2  P = softmax(S), the rule of causal_softmax:     dS = P ⊙ (dP − Σ_s dP[s]·P[s])
     3  S = q·kᵀ/√HS, the rule of scores:               dq = dS·k/√HS,   dk = dSᵀ·q/√HS
     4  all of it needs P, which has T² numbers a head. Instead, each piece is made again when it is
        needed:
     5  from one saved number a row:                    P[t,s] = exp(S[t,s] − lse[t])
     6  the sum in 2 seems to need a whole row of dP and P:
                                                        D[t] = Σ_s dP[t,s]·P[t,s]
     7  put dP from 1 into it:                          D[t] = Σ_s Σ_i dy[t,i]·v[s,i]·P[t,s]
     8  sum over s first; Σ_s P[t,s]·v[s,i] is y[t,i]:  D[t] = Σ_i dy[t,i]·y[t,i]
     9  so D costs HS multiplications a row and no row of P.
    10  with 5 and 8 every block of the T×T plane can be computed on its own, in any order, and
        thrown away.
    11  in the forward lse is not known before the row's end: keep a running maximum m and sum l,
        and when a block brings a larger maximum m', scale what was summed so far by exp(m − m').
    12  memory falls from T² to T numbers a head; the price is S computed twice, in the forward and
        again here.
    13  blocks with s > t are skipped, which halves the work.

Saved: y (it exists anyway) and lse.
Source: Dao et al. 2022, "FlashAttention", arXiv 2205.14135, algorithms 1 and 4; 8 is its appendix
B.2, eq. 4.
"""

import math

import numpy as np

from backglass.ops.scores.maths import split_heads
from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="qkv[B,T,3,NH,HS] -> y[B,T,NH,HS] | lse[B,NH,T]",
    backward={"d_attention": "dy[B,T,NH,HS] qkv y lse -> dqkv[B,T,3,NH,HS]"},
    flops={"attention": "2*B*NH*T*T*HS", "d_attention": "5*B*NH*T*T*HS"},
    cases=(
        dict(B=1, T=1, NH=1, HS=1),
        dict(B=2, T=7, NH=3, HS=5),
        dict(B=1, T=130, NH=2, HS=24),
        dict(B=2, T=65, NH=1, HS=64),
        # of the GPU's backward: more heads than programs; heads shared by programs, in turns;
        # the tiles for large heads
        dict(B=27, T=3, NH=5, HS=4),
        dict(B=1, T=389, NH=1, HS=16),
        dict(B=1, T=256, NH=2, HS=64),
        dict(B=1, T=70, NH=1, HS=96),
    ),
)


def causal_scores(q, k):
    """S, with −∞ in the future so that exp makes it 0."""
    T, HS = q.shape[-2:]
    return np.where(np.tri(T, dtype=bool), q @ k.swapaxes(-1, -2) / math.sqrt(HS), -np.inf)


def attention(qkv):
    q, k, v = split_heads(qkv)
    S = causal_scores(q, k)  # (B, NH, T, T)
    top = S.max(-1)
    lse = top + np.log(np.exp(S - top[..., None]).sum(-1))  # (B, NH, T)
    P = np.exp(S - lse[..., None])  # 5
    return (P @ v).swapaxes(1, 2), lse


def d_attention(dy, qkv, y, lse):
    q, k, v = split_heads(qkv)
    dy, y = dy.swapaxes(1, 2), y.swapaxes(1, 2)  # (B, NH, T, HS)
    P = np.exp(causal_scores(q, k) - lse[..., None])  # 5
    dP = dy @ v.swapaxes(-1, -2)  # 1
    D = (dy * y).sum(-1, keepdims=True)  # 8
    dS = P * (dP - D)  # 2
    dqkv = np.empty_like(qkv)
    dq, dk, dv = split_heads(dqkv)
    dq[...] = dS @ k / math.sqrt(q.shape[-1])  # 3
    dk[...] = dS.swapaxes(-1, -2) @ q / math.sqrt(q.shape[-1])  # 3
    dv[...] = P.swapaxes(-1, -2) @ dy  # 1
    return (dqkv,)
