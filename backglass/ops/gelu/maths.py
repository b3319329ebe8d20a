"""GELU is a smooth ReLU: x times the probability that a standard normal number is smaller than x.

Forward, in the tanh form GPT-2 was trained with (it differs from the exact one by up to 5e-4):

    u = √(2/π)·(x + a·x³),  a = 0.044715        t = tanh(u)        y = ½·x·(1 + t)

Backward, from dy:

    dx = dy·(½·(1 + t) + ½·x·(1 − t²)·√(2/π)·(1 + 3a·x²))

Derivation
     1  y is a product of ½·x and 1 + t, both moving with x:
                                                        dy/dx = ½·(1 + t) + ½·x·dt/dx
     2  tanh = sinh/cosh, and (sinh, cosh)' = (cosh, sinh):
                                                 d tanh(u)/du = (cosh² − sinh²)/cosh² = 1 − tanh²(u)
     3  so by the chain rule:                           dt/dx = (1 − t²)·du/dx
     4  u is a polynomial:                              du/dx = √(2/π)·(1 + 3a·x²)
     5  1, 3 and 4 together:                            dy/dx = ½·(1 + t) + ½·x·(1 − t²)·du/dx
     6  y_i depends on x_i alone, so the Jacobian is diagonal:
                                                        dx_i = dy_i·(dy/dx)_i
     7  check far right: t = 1, so dy/dx = 1 (the identity).
     8  check far left: t = −1, so dy/dx = 0 (off).
     9  check at 0: t = 0, so dy/dx = ½.
    10  it is not monotone: dy/dx < 0 between about −∞ and −0.75, where y has its only minimum,
        −0.17.

Saved: nothing of its own; x exists anyway and t is computed again, which is cheaper than reading
it.
Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", arXiv 1606.08415, section 2.
"""

import math

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="x[N] -> y[N]",
    backward={"d_gelu": "dy[N] x -> dx[N]"},
    inplace="y:x dx:dy",
    flops={"gelu": "10*N", "d_gelu": "16*N"},
    # not N=1: a single x may lie where dy/dx crosses 0 and no error is small relative to it
    cases=(dict(N=3), dict(N=781), dict(N=5003)),
)

A = 0.044715
SCALE = math.sqrt(2 / math.pi)


def gelu(x):
    t = np.tanh(SCALE * (x + A * x * x * x))
    return (0.5 * x * (1 + t),)


def d_gelu(dy, x):
    t = np.tanh(SCALE * (x + A * x * x * x))
    du = SCALE * (1 + 3 * A * x * x)  # 4
    dt = (1 - t * t) * du  # 3
    return (dy * (0.5 * (1 + t) + 0.5 * x * dt),)  # 5, 6
