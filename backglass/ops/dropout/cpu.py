"""dropout on the CPU: y = x·mask/(1 - rate), the mask recomputed from its counter.

    element i    mix64(start + (i+1)·GAMMA) >> 32  ≥  rate·2³²   ?  keep  :  drop

Reads N floats, writes N; no mask is stored. The hash (maths.py says which, and why a hash)
is two 64-bit multiplications an element, which run eight at a time with AVX-512. The backward
does the same to dy: d_dropout is dropout, once more.
"""

from numpy import float32, uint64

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import CHUNK
from backglass.ops.dropout import maths
from backglass.ops.dropout.maths import GAMMA

# The maths file's own functions, compiled: the two tiers cannot come to disagree.
mix64 = inline(maths.mix64)
keep_threshold = inline(maths.keep_threshold)


@kernel
def dropout(y, x, seed, rate, site, add):
    """y (N,) = x·mask/(1 - rate); seed int64[2] = (key, step), site tells the call's place."""
    n = y.size
    start = _start(seed, site)
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        lo = chunk * CHUNK
        hi = min(lo + CHUNK, n)
        _drop(y[lo:hi], x[lo:hi], start + uint64(lo) * GAMMA, rate)


@kernel
def d_dropout(dx, dy, seed, rate, site, add):
    """forward: y = x·mask/(1 - rate)      so: dx = dy·mask/(1 - rate). All (N,)."""
    n = dx.size
    start = _start(seed, site)
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        lo = chunk * CHUNK
        hi = min(lo + CHUNK, n)
        _drop(dx[lo:hi], dy[lo:hi], start + uint64(lo) * GAMMA, rate)


@inline
def _start(seed, site):
    """Where in SplitMix64's sequence this call of this step begins, as keep_mask has it."""
    start = mix64(uint64(seed[0]) + GAMMA)
    start = mix64(start + uint64(seed[1]) + GAMMA)
    return mix64(start + uint64(site) + GAMMA)


@inline
def _drop(y, x, start, rate):
    """One chunk, whose first element's number is mix64(start + GAMMA).

    Multiplying by 0 rather than writing 0: a NaN must stay a NaN, also where it is dropped.
    """
    threshold = keep_threshold(rate)
    scale = float32(1.0 / (1.0 - rate))
    for i in range(y.size):
        bits = mix64(start + uint64(i + 1) * GAMMA) >> uint64(32)
        y[i] = x[i] * (scale if bits >= threshold else float32(0))
