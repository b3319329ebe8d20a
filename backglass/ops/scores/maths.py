"""Attention, part 1 of 3: how well each query fits each key.

Forward, for each batch entry and head, with q and k of HS numbers per position:

    preatt[t,s] = Σ_i q[t,i]·k[s,i] / √HS

Backward, from dpreatt:

    dq = dpreatt·k / √HS        dk = dpreattᵀ·q / √HS        dv = 0, v plays no part here

Derivation
     1  preatt is a matrix product of q and kᵀ with factor 1/√HS:
                                                        preatt = q·kᵀ/√HS
     2  the dot product of two random vectors of HS unit numbers has variance HS; divided by √HS it
        has variance 1, so softmax starts out neither flat nor saturated.
     3  row t of q enters row t of preatt:
                                                     dq[t,i] = Σ_s dpreatt[t,s]·∂preatt[t,s]/∂q[t,i]
     4  linear, with factor k:                          ∂preatt[t,s]/∂q[t,i] = k[s,i]/√HS
     5  3 and 4 are a matrix product over s:            dq = dpreatt·k/√HS
     6  row s of k enters column s of preatt:
                                                     dk[s,i] = Σ_t dpreatt[t,s]·∂preatt[t,s]/∂k[s,i]
     7  linear, with factor q:                          ∂preatt[t,s]/∂k[s,i] = q[t,i]/√HS
     8  6 and 7 are a matrix product over t:            dk = dpreattᵀ·q/√HS
     9  q, k and v lie packed in qkv as one layer wrote them, so dqkv is one tensor too.
    10  its v part receives nothing from here (mix writes it):
                                                        dv = 0

Saved: nothing.
Source: Vaswani et al. 2017, "Attention Is All You Need", arXiv 1706.03762, eq. 1.
"""

import math

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="qkv[B,T,3,NH,HS] -> preatt[B,NH,T,T]",
    backward={"d_scores": "dpreatt[B,NH,T,T] qkv -> dqkv[B,T,3,NH,HS]+"},
    flops={"scores": "2*B*NH*T*T*HS", "d_scores": "4*B*NH*T*T*HS"},
    cases=(
        dict(B=1, T=1, NH=1, HS=1),
        dict(B=2, T=7, NH=3, HS=5),
        dict(B=1, T=130, NH=2, HS=24),
    ),
)


def split_heads(qkv):
    """(B,T,3,NH,HS) -> q, k, v as views of (B,NH,T,HS)."""
    return qkv.transpose(2, 0, 3, 1, 4)


def scores(qkv):
    q, k, _ = split_heads(qkv)
    return (q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]),)


def d_scores(dpreatt, qkv):
    q, k, _ = split_heads(qkv)
    dqkv = np.zeros_like(qkv)  # 10
    dq, dk, _ = split_heads(dqkv)
    dq[...] = dpreatt @ k / math.sqrt(q.shape[-1])  # 5
    dk[...] = dpreatt.swapaxes(-1, -2) @ q / math.sqrt(q.shape[-1])  # 8
    return (dqkv,)
