"""Rmsnorm divides every row by its root mean square, then scales each channel.

Forward, for one row x of C numbers:

    r = 1/√(mean(x²) + ε)    n = x·r    y = n ⊙ w

Backward, from dy = ∂loss/∂y:

    dx = r·(dn − n·mean(dn ⊙ n))  with dn = dy ⊙ w
    dw = Σ_rows dy ⊙ n

Derivation
     1  y_i = n_i·w_i, and w is shared by all rows:     dw = Σ_rows dy ⊙ n
     2  the same for n, whose factor is w:              dn = dy ⊙ w
     3  every x_j moves every n_i, in two ways: directly, for i = j, and through r.
     4  the product rule on n_i = x_i·r:                ∂n_i/∂x_j = r·δ_ij + x_i·∂r/∂x_j
     5  s = mean(x²) is a mean of squares:              ∂s/∂x_j = (2/C)·x_j
     6  r = (s + ε)^(−1/2):                             ∂r/∂s = −½·(s + ε)^(−3/2) = −½·r³
     7  the chain rule, 5 and 6:                        ∂r/∂x_j = −r³·x_j/C
     8  with x_j = n_j/r:                               ∂r/∂x_j = −r²·n_j/C
     9  8 in 4, with x_i = n_i/r:                       ∂n_i/∂x_j = r·(δ_ij − n_i·n_j/C)
    10  the chain rule:                                 dx_j = Σ_i dn_i·∂n_i/∂x_j
    11  9 in 10, term by term:                          dx = r·(dn − n·mean(dn ⊙ n))
    12  check: with ε = 0, mean(n²) = 1, so mean(dx ⊙ n) = r·mean(dn ⊙ n)·(1 − 1) = 0.

In words: dx is dn without its part along n, which is x's own direction.  Making x longer does not
change y, so the gradient along it must be zero.  Layernorm is this after the mean is taken away.

Saved: rstd (that is r), one number a row, from which n is one multiplication away.
Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", arXiv 1910.07467, eq. 4.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="x[N,C] w[C] -> y[N,C] | rstd[N]",
    backward={"d_rmsnorm": "dy[N,C] x w rstd -> dx[N,C]+ dw[C]+"},
    attrs="eps=1e-5",
    inplace="dx:dy",
    flops={"rmsnorm": "4*N*C", "d_rmsnorm": "9*N*C"},
    cases=(dict(N=1, C=3), dict(N=5, C=9), dict(N=7, C=768), dict(N=41, C=781), dict(N=600, C=33)),
)


def rmsnorm(x, w, *, eps):
    rstd = 1 / np.sqrt((x * x).mean(-1) + eps)  # (N,)
    return x * rstd[:, None] * w, rstd


def d_rmsnorm(dy, x, w, rstd):
    n = x * rstd[:, None]  # (N, C)
    dw = (dy * n).sum(0)  # 1
    dn = dy * w  # 2
    along_n = n * (dn * n).mean(-1, keepdims=True)  # 11, second term
    dx = rstd[:, None] * (dn - along_n)  # 11
    return dx, dw
