"""Layernorm brings every row to mean 0 and variance 1, then scales and shifts each channel.

Forward, for one row x of C numbers:

    μ = mean(x)    σ² = mean((x − μ)²)    r = 1/√(σ² + ε)    n = (x − μ)·r    y = n ⊙ w + b

Backward, from dy = ∂loss/∂y:

    dx = r·(dn − mean(dn) − n·mean(dn ⊙ n))  with dn = dy ⊙ w
    dw = Σ_rows dy ⊙ n
    db = Σ_rows dy

Derivation
     1  y_i = n_i·w_i + b_i, and b is shared by all rows:
                                                        db = Σ_rows dy
     2  the same for w, whose factor is n:              dw = Σ_rows dy ⊙ n
     3  and for n, whose factor is w:                   dn = dy ⊙ w
     4  every x_j moves every n_i, in three ways: directly, through μ and through r.
     5  directly:                                       ∂(x_i − μ)/∂x_j = δ_ij − ∂μ/∂x_j
     6  μ is a mean:                                    ∂μ/∂x_j = 1/C
     7  σ² = mean((x − μ)²):                            ∂σ²/∂x_j = (2/C)·Σ_i (x_i − μ)(δ_ij − 1/C)
     8  Σ_i (x_i − μ) = 0, so the 1/C drops out:        ∂σ²/∂x_j = (2/C)·(x_j − μ)
     9  r = (σ² + ε)^(−1/2):                            ∂r/∂σ² = −½·r³
    10  8 and 9, with x_j − μ = n_j/r:                  ∂r/∂x_j = −r²·n_j/C
    11  the product rule on n_i = (x_i − μ)·r, with 5, 6 and 10:
                                                      ∂n_i/∂x_j = r·(δ_ij − 1/C) + (x_i − μ)·∂r/∂x_j
    12  and x_i − μ = n_i/r again:                      ∂n_i/∂x_j = r·(δ_ij − 1/C − n_i·n_j/C)
    13  the chain rule dx_j = Σ_i dn_i·∂n_i/∂x_j, term by term:
                                                        dx = r·(dn − mean(dn) − n·mean(dn ⊙ n))

In words: dx is dn without its part along (1, …, 1) and without its part along n.  Those are the two
directions in which x can move without changing y: layernorm ignores shifts and scales, so their
gradient must be zero.

Saved: mean and rstd, two numbers a row, from which n is one multiplication away.  n itself would be
C numbers a row.
Source: Ba, Kiros and Hinton 2016, "Layer Normalization", arXiv 1607.06450, eq. 4.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="x[N,C] w[C] b[C] -> y[N,C] | mean[N] rstd[N]",
    backward={"d_layernorm": "dy[N,C] x w mean rstd -> dx[N,C]+ dw[C]+ db[C]+"},
    attrs="eps=1e-5",
    inplace="dx:dy",
    flops={"layernorm": "8*N*C", "d_layernorm": "14*N*C"},
    cases=(dict(N=1, C=3), dict(N=5, C=9), dict(N=7, C=768), dict(N=41, C=781), dict(N=600, C=33)),
)


def layernorm(x, w, b, *, eps):
    mean = x.mean(-1)  # (N,)
    xmean = x - mean[:, None]  # (N, C)
    rstd = 1 / np.sqrt((xmean * xmean).mean(-1) + eps)  # (N,)
    return xmean * rstd[:, None] * w + b, mean, rstd


def d_layernorm(dy, x, w, mean, rstd):
    n = (x - mean[:, None]) * rstd[:, None]  # (N, C)
    db = dy.sum(0)  # 1
    dw = (dy * n).sum(0)  # 2
    dn = dy * w  # 3
    along_ones = dn.mean(-1, keepdims=True)  # 13, second term
    along_n = n * (dn * n).mean(-1, keepdims=True)  # 13, third term
    dx = rstd[:, None] * (dn - along_ones - along_n)  # 13
    return dx, dw, db
