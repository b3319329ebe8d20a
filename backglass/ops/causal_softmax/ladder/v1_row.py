"""causal_softmax on the GPU, rung 1: one thread, one row.

Three walks over the row for the maximum, the sum and the weights.  A warp's 32 threads read 32 rows
at once, numbers T apart, and wait for the longest of them: row t has t + 1 numbers to do.
"""

import math
from dataclasses import replace

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import BLOCK, blocks_for, f32, kernel, launch, like


@kernel
def causal_softmax_kernel(att, preatt):
    """att and preatt (rows, T); row n is position n mod T."""
    n = cuda.grid(1)
    if n < att.shape[0]:
        T = att.shape[1]
        t = n % T
        top = f32(preatt[n, 0])
        for s in range(1, t + 1):
            top = max(top, f32(preatt[n, s]))
        total = float32(0)
        for s in range(t + 1):
            total += math.exp(f32(preatt[n, s]) - top)
        for s in range(T):
            e = math.exp(f32(preatt[n, s]) - top) if s <= t else float32(0)
            att[n, s] = like(e / total, att[n, s])


@kernel
def d_causal_softmax_kernel(dpreatt, datt, att):
    """All (rows, T)."""
    n = cuda.grid(1)
    if n < att.shape[0]:
        T = att.shape[1]
        t = n % T
        mean = float32(0)
        for s in range(t + 1):
            mean += f32(datt[n, s]) * f32(att[n, s])  # 8
        for s in range(T):
            d = f32(att[n, s]) * (f32(datt[n, s]) - mean) if s <= t else float32(0)  # 7, 11
            dpreatt[n, s] = like(d, dpreatt[n, s])


def causal_softmax(att, preatt, add):
    """att from preatt, both (B, NH, T, T); att may be preatt."""
    att, preatt = as_rows(att), as_rows(preatt)
    launch(causal_softmax_kernel, blocks_for(att.shape[0], BLOCK), BLOCK, att, preatt)


def d_causal_softmax(dpreatt, datt, att, add):
    """dpreatt from datt and att, all (B, NH, T, T); dpreatt may be datt."""
    dpreatt, datt, att = as_rows(dpreatt), as_rows(datt), as_rows(att)
    launch(d_causal_softmax_kernel, blocks_for(att.shape[0], BLOCK), BLOCK, dpreatt, datt, att)


def as_rows(x):
    """x (B, NH, T, T) as a matrix of rows of T."""
    B, NH, T, _ = x.shape
    return replace(x, shape=(B * NH * T, T))
