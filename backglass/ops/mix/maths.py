"""Attention, part 3 of 3: each position takes the weighted mean of the values it attends to.

Forward, for each batch entry and head:

    y[t,i] = Σ_s att[t,s]·v[s,i]

Backward, from dy:

    datt = dy·vᵀ        dv = attᵀ·dy        dq = dk = 0, q and k play no part here

Derivation
     1  y is a matrix product:                          y = att·v
     2  row t of att enters row t of y:                 datt[t,s] = Σ_i dy[t,i]·∂y[t,i]/∂att[t,s]
     3  linear, with factor v:                          ∂y[t,i]/∂att[t,s] = v[s,i]
     4  2 and 3 are a matrix product over i:            datt = dy·vᵀ
     5  in words: how much would the output gain if t listened more to s.
     6  row s of v enters every row of y that attends to s:
                                                        dv[s,i] = Σ_t dy[t,i]·∂y[t,i]/∂v[s,i]
     7  linear, with factor att:                        ∂y[t,i]/∂v[s,i] = att[t,s]
     8  6 and 7 are a matrix product over t:            dv = attᵀ·dy
     9  datt for s > t is not zero here, although att is: the mask belongs to causal_softmax, which
        multiplies it away.
    10  dqkv is packed like qkv; its q and k parts come from scores: dq = dk = 0

Saved: nothing of its own; att is causal_softmax's output.
Source: Vaswani et al. 2017, arXiv 1706.03762, eq. 1.
"""

import numpy as np

from backglass.ops.scores.maths import split_heads
from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="att[B,NH,T,T] qkv[B,T,3,NH,HS] -> y[B,T,NH,HS]",
    backward={"d_mix": "dy[B,T,NH,HS] att qkv -> datt[B,NH,T,T] dqkv[B,T,3,NH,HS]+"},
    flops={"mix": "2*B*NH*T*T*HS", "d_mix": "4*B*NH*T*T*HS"},
    cases=(
        dict(B=1, T=1, NH=1, HS=1),
        dict(B=2, T=7, NH=3, HS=5),
        dict(B=1, T=130, NH=2, HS=24),
    ),
)


def mix(att, qkv):
    v = split_heads(qkv)[2]
    return ((att @ v).swapaxes(1, 2),)


def d_mix(dy, att, qkv):
    v = split_heads(qkv)[2]
    dy = dy.swapaxes(1, 2)  # (B, NH, T, HS)
    datt = dy @ v.swapaxes(-1, -2)  # 4
    dqkv = np.zeros_like(qkv)  # 10
    split_heads(dqkv)[2][...] = att.swapaxes(-1, -2) @ dy  # 8
    return datt, dqkv
