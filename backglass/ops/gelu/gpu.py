"""gelu on the GPU, element by element; the epilogues of matmul use gelu_of and d_gelu_of too.

Forward: reads N numbers, writes N.  Backward: reads 2·N, writes N.

A GPU has no tanh worth its name, but ½·(1 + tanh u) = σ(2u), so with s = σ(2u)

    gelu = x·s        gelu' = s + x·(s − s²)·2u'        2u' = 2·√(2/π)·(1 + 3·A·x²)

and σ(z) = 1/(1 + e^−z) is one power of 2 and the square of one reciprocal square root: 10
instructions where tanh and a division took 50, which as an epilogue cost more than the matmul.
"""

import math

import triton
import triton.language as tl

from backglass.device.tiles import ELEMENTS, store

A = 0.044715
SCALE = 2 * math.sqrt(2 / math.pi)  # 2u = SCALE·(x + A·x³)
SLOPE, CUBIC = tl.constexpr(SCALE), tl.constexpr(3 * A * SCALE)  # 2u' = SLOPE + CUBIC·x²
LINEAR, CUBE = tl.constexpr(-SCALE / math.log(2)), tl.constexpr(-SCALE * A / math.log(2))


@triton.jit
def sigmoid_of_2u(x):
    """σ(2u) = 1/(1 + 2^t) with t = −2u/ln 2, kept where 2^t does not overflow."""
    t = x * (LINEAR + CUBE * (x * x))
    root = tl.rsqrt(1 + tl.exp2(tl.minimum(t, 126)))
    return root * root


@triton.jit
def gelu_of(x):
    """gelu(x), fp32."""
    return x * sigmoid_of_2u(x)


@triton.jit
def d_gelu_of(x):
    """dy/dx at x, fp32: the product rule on x·s, steps 3 to 5 of maths.py in terms of s."""
    s = sigmoid_of_2u(x)
    return s + x * (SLOPE + CUBIC * (x * x)) * (s - s * s)


@triton.jit
def gelu_kernel(y_p, x_p, N, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_p + offs, mask=offs < N, other=0).to(tl.float32)
    store(y_p + offs, gelu_of(x), offs < N, False)


@triton.jit
def d_gelu_kernel(dx_p, dy_p, x_p, N, BLOCK: tl.constexpr):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dy = tl.load(dy_p + offs, mask=offs < N, other=0).to(tl.float32)
    x = tl.load(x_p + offs, mask=offs < N, other=0).to(tl.float32)
    store(dx_p + offs, dy * d_gelu_of(x), offs < N, False)


def gelu(y, x, add):
    """y (N,) from x (N,); y may be x."""
    (N,) = x.shape
    gelu_kernel[(triton.cdiv(N, ELEMENTS),)](y, x, N, BLOCK=ELEMENTS)


def d_gelu(dx, dy, x, add):
    """dx (N,) from dy and x (N,); dx may be dy."""
    (N,) = x.shape
    d_gelu_kernel[(triton.cdiv(N, ELEMENTS),)](dx, dy, x, N, BLOCK=ELEMENTS)
