"""SwiGLU multiplies one half of a layer, the up half, by a smooth gate made of the other half.

Forward, for a row h = (g, u) of two times F numbers, gate first:

    s = σ(g) = 1/(1 + e^(−g))        silu(g) = g·s        y = silu(g) ⊙ u

Backward, from dy:

    dg = dy ⊙ u ⊙ s·(1 + g·(1 − s))
    du = dy ⊙ silu(g)

Derivation
     1  y_i = silu(g_i)·u_i is a product; with respect to its factor u_i:
                                                        du = dy ⊙ silu(g)
     2  and to the other one, through silu:             dg = dy ⊙ u ⊙ silu'(g)
     3  silu(g) = g·s is a product, both moving with g: silu' = s + g·ds/dg
     4  s = (1 + e^(−g))^(−1), the chain rule:          ds/dg = (1 + e^(−g))^(−2)·e^(−g)
     5  (1 + e^(−g))^(−1) = s, and its other factor is: e^(−g)/(1 + e^(−g)) = 1 − s
     6  4 with 5:                                       ds/dg = s·(1 − s)
     7  6 in 3:                                         silu' = s·(1 + g·(1 − s))
     8  7 in 2:                                         dg = dy ⊙ u ⊙ s·(1 + g·(1 − s))
     9  y_i depends on g_i and u_i alone, so nothing is summed.
    10  check far right: s = 1, so silu' = 1 (the gate lets dy·u through).
    11  check far left: s = 0, so silu' = 0 (the gate is shut).
    12  check at 0: s = ½, so silu' = ½.

Saved: nothing of its own; h exists anyway and s is computed again, which is cheaper than reading
it.
Source: Shazeer 2020, "GLU Variants Improve Transformer", arXiv 2002.05202, eq. 5 and 6.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="h[N,2,F] -> y[N,F]",
    backward={"d_swiglu": "dy[N,F] h -> dh[N,2,F]"},
    inplace="dh:h",
    flops={"swiglu": "5*N*F", "d_swiglu": "10*N*F"},
    cases=(dict(N=1, F=3), dict(N=5, F=781), dict(N=67, F=33), dict(N=3, F=5003)),
)


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * x))  # the same function, and nothing in it overflows


def swiglu(h):
    g, u = h[:, 0], h[:, 1]  # (N, F)
    return (g * sigmoid(g) * u,)


def d_swiglu(dy, h):
    g, u = h[:, 0], h[:, 1]  # (N, F)
    s = sigmoid(g)
    du = dy * (g * s)  # 1
    dg = dy * u * (s * (1 + g * (1 - s)))  # 8
    return (np.stack((dg, du), axis=1),)
