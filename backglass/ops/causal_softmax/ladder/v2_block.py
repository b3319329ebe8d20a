"""causal_softmax on the GPU, rung 2: one block, one row; maximum and sum meet in shared memory.

Neighbouring threads read neighbouring numbers.  The row is walked over three times still, but it is
short, and after the first time it is in the cache.
"""

import math

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import BLOCK, block_max, block_sum, f32, kernel, launch, like
from backglass.ops.causal_softmax.ladder.v1_row import as_rows


@kernel
def causal_softmax_kernel(att, preatt):
    """att and preatt (rows, T); row n is position n mod T."""
    found = cuda.shared.array(BLOCK, float32)
    n, i, T = cuda.blockIdx.x, cuda.threadIdx.x, att.shape[1]
    t = n % T
    top = f32(preatt[n, 0])
    for s in range(i, t + 1, BLOCK):
        top = max(top, f32(preatt[n, s]))
    top = block_max(found, i, top)
    total = float32(0)
    for s in range(i, t + 1, BLOCK):
        total += math.exp(f32(preatt[n, s]) - top)
    total = block_sum(found, i, total)
    for s in range(i, T, BLOCK):
        e = math.exp(f32(preatt[n, s]) - top) if s <= t else float32(0)
        att[n, s] = like(e / total, att[n, s])


@kernel
def d_causal_softmax_kernel(dpreatt, datt, att):
    """All (rows, T)."""
    found = cuda.shared.array(BLOCK, float32)
    n, i, T = cuda.blockIdx.x, cuda.threadIdx.x, att.shape[1]
    t = n % T
    mean = float32(0)
    for s in range(i, t + 1, BLOCK):
        mean += f32(datt[n, s]) * f32(att[n, s])  # 8
    mean = block_sum(found, i, mean)
    for s in range(i, T, BLOCK):
        d = f32(att[n, s]) * (f32(datt[n, s]) - mean) if s <= t else float32(0)  # 7, 11
        dpreatt[n, s] = like(d, dpreatt[n, s])


def causal_softmax(att, preatt, add):
    """att from preatt, both (B, NH, T, T); att may be preatt."""
    att, preatt = as_rows(att), as_rows(preatt)
    launch(causal_softmax_kernel, att.shape[0], BLOCK, att, preatt)


def d_causal_softmax(dpreatt, datt, att, add):
    """dpreatt from datt and att, all (B, NH, T, T); dpreatt may be datt."""
    dpreatt, datt, att = as_rows(dpreatt), as_rows(datt), as_rows(att)
    launch(d_causal_softmax_kernel, att.shape[0], BLOCK, dpreatt, datt, att)
