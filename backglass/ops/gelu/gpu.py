"""gelu on the GPU, element by element.

Forward: reads N numbers, writes N.  Backward: reads 2·N, writes N.
"""

import triton
import triton.language as tl

from backglass.device.tiles import ELEMENTS, store, tanh

A = tl.constexpr(0.044715)
SCALE = tl.constexpr(0.7978845608028654)  # √(2/π)


@triton.jit
def gelu_of(x):
    """0.5·x·(1 + tanh u), fp32."""
    return 0.5 * x * (1 + tanh(SCALE * (x + A * x * x * x)))


@triton.jit
def d_gelu_of(x):
    """dy/dx at x, fp32; numbers are steps of the derivation in maths.py."""
    t = tanh(SCALE * (x + A * x * x * x))
    du = SCALE * (1 + 3 * A * x * x)  # 4
    dt = (1 - t * t) * du  # 3
    return 0.5 * (1 + t) + 0.5 * x * dt  # 5, 6


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
