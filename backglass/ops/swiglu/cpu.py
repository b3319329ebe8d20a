"""swiglu on the CPU, a row at a time.

    y = u·g·σ(g) = u·g / (1 + exp(-g))

The last form is the one computed. It needs one exp and one division and keeps its relative accuracy
far out on the negative side. For g below -88 exp(-g) overflows to inf and y is 0, as it should be.

    swiglu      reads 2NF floats, writes NF
    d_swiglu    reads 3NF, writes 2NF; recomputes σ from g, which costs less than to save it

Shazeer 2020, "GLU variants improve transformer", arXiv 2002.05202, equation 5.
"""

from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import as_written, same_memory
from backglass.device.simd import fexp, fma

LARGEST = float32(80)  # exp(80) = 5.5e34 is still a float32


@kernel
def swiglu(y, h, add):
    """y (N,F) = silu(gate)·up, h (N,2,F) holding gate and up."""
    for n in prange(h.shape[0]):
        _row(y[n], h[n, 0], h[n, 1])


@inline
def _row(y, gate, up):
    for i in range(y.size):
        y[i] = up[i] * (gate[i] / (float32(1) + fexp(-gate[i])))


@kernel
def d_swiglu(dh, dy, h, add):
    """forward: y = silu(g)·u    so: dg = dy·u·silu'(g), du = dy·silu(g). dh may be h's memory."""
    for n in prange(h.shape[0]):
        _d_row(dh[n, 0], dh[n, 1], dy[n], h[n, 0], h[n, 1])


@inline
def _d_row(dgate, dup, dy, gate, up):
    """Two loops with one body: LLVM vectorises the first only if dh and h do not overlap."""
    if not same_memory(dgate, gate):
        for i in range(dy.size):
            dgate[i] = dy[i] * up[i] * _slope(gate[i])
            dup[i] = dy[i] * _silu(gate[i])
    else:
        for i in range(dy.size):
            slope, silu = _slope(dgate[i]), _silu(dgate[i])
            dgate[i] = dy[i] * dup[i] * slope
            dup[i] = dy[i] * silu


@inline
def _silu(g):
    return g / (float32(1) + fexp(-g))


@as_written
def _slope(g):
    """silu'(g). With e = exp(-g), σ = 1/(1+e) and 1-σ = e·σ, which does not cancel near σ = 1.

    e must stay finite for that: inf·0 is NaN; and the products must stay as written: σ·σ would
    underflow where e·σ is 1. min keeps a NaN that is its first argument.
    """
    e = fexp(min(-g, LARGEST))
    sigma = float32(1) / (float32(1) + e)
    return sigma * fma(g, e * sigma, float32(1))
