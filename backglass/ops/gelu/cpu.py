"""gelu on the CPU, in its tanh form.

    u = √(2/π)·(x + 0.044715·x³)
    y = 0.5·x·(1 + tanh u) = x·σ(2u) = x / (1 + exp(-2u))

The last form is the one computed. It needs one exp and one division, is exact to the last bits
near x = 0, and keeps its relative accuracy far out on the negative side, where 1 + tanh u would
cancel to 0. For x below -10 exp(-2u) overflows to inf and y is -0, as it should be.

    gelu      reads N floats, writes N
    d_gelu    reads 2N, writes N; recomputes σ from x, which costs less than to save it

Hendrycks and Gimpel 2016, "Gaussian error linear units", arXiv 1606.08415, section 2.
"""

from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import CHUNK, as_written, same_memory
from backglass.device.simd import fexp, fma

SLOPE = float32(1.5957691216057308)  # 2·√(2/π)
CUBIC = float32(0.044715)
LARGEST = float32(80)  # exp(80) = 5.5e34 is still a float32


@kernel
def gelu(y, x, add):
    """y = x·σ(2u), both (N,). y may be x's memory."""
    n = x.size
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        lo = chunk * CHUNK
        hi = min(lo + CHUNK, n)
        _gelu_chunk(y[lo:hi], x[lo:hi])


@inline
def _gelu_chunk(y, x):
    """Two loops with one body: LLVM vectorises the first only if y and x do not overlap."""
    if not same_memory(y, x):
        for i in range(y.size):
            y[i] = _value(x[i])
    else:
        for i in range(y.size):
            y[i] = _value(y[i])


@inline
def _value(x):
    two_u = SLOPE * (x + CUBIC * x * x * x)
    return x / (float32(1) + fexp(-two_u))


@kernel
def d_gelu(dx, dy, x, add):
    """forward: y = x·σ(2u)      so: dx = dy·σ·(1 + x·(1-σ)·d(2u)/dx). dx may be dy's memory."""
    n = x.size
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        lo = chunk * CHUNK
        hi = min(lo + CHUNK, n)
        _d_gelu_chunk(dx[lo:hi], dy[lo:hi], x[lo:hi])


@inline
def _d_gelu_chunk(dx, dy, x):
    if not same_memory(dx, dy):
        for i in range(dx.size):
            dx[i] = dy[i] * _slope(x[i])
    else:
        for i in range(dx.size):
            dx[i] *= _slope(x[i])


@as_written
def _slope(x):
    """dy/dx. With e = exp(-2u), σ = 1/(1+e) and 1-σ = e·σ, which does not cancel near σ = 1.

    e must stay finite for that: inf·0 is NaN; and the products must stay as written: σ·σ would
    underflow where e·σ is 1. min keeps a NaN that is its first argument.
    """
    square = CUBIC * x * x
    e = fexp(min(-SLOPE * fma(square, x, x), LARGEST))
    sigma = float32(1) / (float32(1) + e)
    d_two_u = fma(float32(3) * SLOPE, square, SLOPE)
    return sigma * fma(x * (e * sigma), d_two_u, float32(1))
