"""Attention, part 2 of 3: scores become weights that sum to 1; the future gets weight 0.

Forward, for row t of each batch entry and head:

    att[t,s] = exp(preatt[t,s]) / Σ_{u ≤ t} exp(preatt[t,u])   for s ≤ t,      0 for s > t

Backward, from datt:

    dpreatt = att ⊙ (datt − Σ_s datt[s]·att[s])

Derivation, for one row; write a for att, z for preatt
     1  a_s = exp(z_s)/Z with Z = Σ_u exp(z_u):
                                                ∂a_s/∂z_j = (∂exp(z_s)/∂z_j)/Z − exp(z_s)/Z²·∂Z/∂z_j
     2  exp is its own derivative:                      ∂exp(z_s)/∂z_j = exp(z_s)·δ_sj
     3  and so:                                         ∂Z/∂z_j = exp(z_j)
     4  1, 2 and 3, each quotient again an a:           ∂a_s/∂z_j = a_s·(δ_sj − a_j)
     5  the chain rule over the row:                    dz_j = Σ_s da_s·a_s·(δ_sj − a_j)
     6  the δ picks s = j:                              dz_j = da_j·a_j − a_j·Σ_s da_s·a_s
     7  a_j comes out:                                  dz_j = a_j·(da_j − Σ_s da_s·a_s)
     8  the sum is the weighted mean of da: only what deviates from the mean moves a weight.
     9  Σ_j dz_j = 0, since Σ_j a_j = 1: adding a constant to a row of scores changes nothing.
    10  for the same reason the maximum may be subtracted first, and exp cannot overflow.
    11  a future position has a_j = 0, so by 7 its dz_j is 0: the backward needs no mask of its own.
    12  with da = (1, …, 1) every dz is 0: a test with ones would pass for any factor in front.

Saved: att itself, the output.
Source: Vaswani et al. 2017, arXiv 1706.03762, section 3.2.3 (the mask); softmax: Bridle 1990.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="preatt[B,NH,T,T] -> att[B,NH,T,T]",
    backward={"d_causal_softmax": "datt[B,NH,T,T] att -> dpreatt[B,NH,T,T]"},
    inplace="att:preatt dpreatt:datt",
    flops={"causal_softmax": "4*B*NH*T*T", "d_causal_softmax": "4*B*NH*T*T"},
    cases=(dict(B=1, T=1, NH=1), dict(B=2, T=7, NH=3), dict(B=1, T=65, NH=2)),
)


def causal_softmax(preatt):
    T = preatt.shape[-1]
    past = np.tri(T, dtype=bool)  # (T, T): s ≤ t
    z = np.where(past, preatt, -np.inf)
    a = np.exp(z - z.max(-1, keepdims=True))
    return (a / a.sum(-1, keepdims=True),)


def d_causal_softmax(datt, att):
    mean = (datt * att).sum(-1, keepdims=True)  # 8
    return (att * (datt - mean),)  # 7
