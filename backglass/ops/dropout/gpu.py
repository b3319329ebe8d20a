"""dropout on the GPU, element by element; the mask is recomputed from its counter.

    element i    mix64(start + (i+1)·GAMMA) >> 32  ≥  rate·2³²   ?  keep  :  drop

Reads N numbers, writes N.  The hash is two 64-bit multiplications an element, in unsigned 64-bit
integers as in maths.py: the same mask, bit for bit.  The backward does the same to dy.
"""

import triton
import triton.language as tl

from backglass.device.tiles import ELEMENTS, store
from backglass.ops.dropout import maths

GAMMA = tl.constexpr(int(maths.GAMMA))
MULTIPLIER_1 = tl.constexpr(int(maths.MULTIPLIER_1))
MULTIPLIER_2 = tl.constexpr(int(maths.MULTIPLIER_2))


@triton.jit
def mix64(z):
    """SplitMix64's finaliser, of uint64."""
    z = (z ^ (z >> 30)) * MULTIPLIER_1
    z = (z ^ (z >> 27)) * MULTIPLIER_2
    return z ^ (z >> 31)


@triton.jit(do_not_specialize=["site"])
def dropout_kernel(
    y_p, x_p, seed_p, site, scale, N, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    start = mix64(tl.load(seed_p).to(tl.uint64) + GAMMA)
    start = mix64(start + tl.load(seed_p + 1).to(tl.uint64) + GAMMA)
    start = mix64(start + site.to(tl.uint64) + GAMMA)
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    bits = mix64(start + (offs + 1).to(tl.uint64) * GAMMA) >> 32  # 7
    x = tl.load(x_p + offs, mask=offs < N, other=0).to(tl.float32)
    # Times 0 rather than 0: a NaN must stay a NaN, also where it is dropped.
    store(y_p + offs, x * tl.where(bits >= THRESHOLD, scale, 0), offs < N, False)  # 9, 2


def dropout(y, x, seed, rate, site, add):
    """y (N,) = x·keep/(1 − rate); seed (2,) = (key, step), site tells the call's place."""
    (N,) = x.shape
    dropout_kernel[(triton.cdiv(N, ELEMENTS),)](
        y, x, seed, site, 1 / (1 - rate), N,
        THRESHOLD=int(maths.keep_threshold(rate)), BLOCK=ELEMENTS,
    )  # fmt: skip


def d_dropout(dx, dy, seed, rate, site, add):
    """dx (N,) = dy·keep/(1 − rate), the same keep."""
    dropout(dx, dy, seed, rate, site, add)
