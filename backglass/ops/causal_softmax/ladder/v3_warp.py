"""causal_softmax on the GPU, rung 3: one warp, one row; maximum and sum in one walk, and shuffled.

A running maximum and the sum of exponentials relative to it suffice: when a larger number comes,
what was summed so far is scaled down to it.  The same trick lets attention do without the row.

    numbers   3     5                 2          maximum  3   5                5
    sum       1     1·exp(3−5) + 1    + exp(2−5)

Each of a warp's threads does that for its numbers, then the 32 (maximum, sum) are combined.
"""

import math

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import (
    BLOCK,
    WARP,
    blocks_for,
    f32,
    kernel,
    launch,
    like,
    warp_max,
    warp_sum,
)
from backglass.ops.causal_softmax.ladder.v1_row import as_rows

WARPS = max(1, BLOCK // WARP)  # of a block, each with a row of its own


@kernel
def causal_softmax_kernel(att, preatt):
    """att and preatt (rows, T); row n is position n mod T."""
    n, i, T = cuda.blockIdx.x * WARPS + cuda.threadIdx.y, cuda.threadIdx.x, att.shape[1]
    if n < att.shape[0]:
        t = n % T
        top, total = f32(preatt[n, 0]), float32(0)  # of a thread without numbers: harmless
        for s in range(i, t + 1, WARP):
            x = f32(preatt[n, s])
            if x > top:
                total *= math.exp(top - x)
                top = x
            total += math.exp(x - top)
        largest = warp_max(top)
        total = warp_sum(total * math.exp(top - largest))
        for s in range(i, T, WARP):
            e = math.exp(f32(preatt[n, s]) - largest) if s <= t else float32(0)
            att[n, s] = like(e / total, att[n, s])


@kernel
def d_causal_softmax_kernel(dpreatt, datt, att):
    """All (rows, T)."""
    n, i, T = cuda.blockIdx.x * WARPS + cuda.threadIdx.y, cuda.threadIdx.x, att.shape[1]
    if n < att.shape[0]:
        t = n % T
        mean = float32(0)
        for s in range(i, t + 1, WARP):
            mean += f32(datt[n, s]) * f32(att[n, s])  # 8
        mean = warp_sum(mean)
        for s in range(i, T, WARP):
            d = f32(att[n, s]) * (f32(datt[n, s]) - mean) if s <= t else float32(0)  # 7, 11
            dpreatt[n, s] = like(d, dpreatt[n, s])


def causal_softmax(att, preatt, add):
    """att from preatt, both (B, NH, T, T); att may be preatt."""
    att, preatt = as_rows(att), as_rows(preatt)
    launch(causal_softmax_kernel, blocks_for(att.shape[0], WARPS), (WARP, WARPS), att, preatt)


def d_causal_softmax(dpreatt, datt, att, add):
    """dpreatt from datt and att, all (B, NH, T, T); dpreatt may be datt."""
    dpreatt, datt, att = as_rows(dpreatt), as_rows(datt), as_rows(att)
    blocks = blocks_for(att.shape[0], WARPS)
    launch(d_causal_softmax_kernel, blocks, (WARP, WARPS), dpreatt, datt, att)
