"""layernorm on the GPU, rung 1: one thread, one row; for dw and db one thread, one column.

    thread 0 -> row 0    x x x x x …        at any moment the 32 threads of a warp read 32 numbers
    thread 1 -> row 1    x x x x x …        that lie a whole row apart: 32 fetches, of which each
    thread 2 -> row 2    x x x x x …        brings 31 numbers that nobody wants yet

The columns do better: neighbouring threads walk down neighbouring columns and share every fetch.
But there are C of them, 768 threads for a chip that holds 270,000.
"""

import math

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import BLOCK, blocks_for, f32, kernel, launch, like


@kernel
def layernorm_kernel(y, mean, rstd, x, w, b, eps):
    n = cuda.grid(1)
    if n < x.shape[0]:
        C = x.shape[1]
        total = float32(0)
        for c in range(C):
            total += f32(x[n, c])
        m = total / float32(C)
        squares = float32(0)
        for c in range(C):
            squares += (f32(x[n, c]) - m) ** 2
        r = float32(1) / math.sqrt(squares / float32(C) + eps)
        for c in range(C):
            y[n, c] = like((f32(x[n, c]) - m) * r * f32(w[c]) + f32(b[c]), y[n, c])
        mean[n], rstd[n] = m, r


@kernel
def d_layernorm_kernel(dx, dy, x, w, mean, rstd, add):
    n = cuda.grid(1)
    if n < x.shape[0]:
        C = x.shape[1]
        along_ones, along_n = float32(0), float32(0)
        for c in range(C):
            dn = f32(dy[n, c]) * f32(w[c])  # 3
            along_ones += dn
            along_n += dn * (f32(x[n, c]) - mean[n]) * rstd[n]
        along_ones, along_n = along_ones / float32(C), along_n / float32(C)
        for c in range(C):
            xhat = (f32(x[n, c]) - mean[n]) * rstd[n]
            value = rstd[n] * (f32(dy[n, c]) * f32(w[c]) - along_ones - xhat * along_n)  # 13
            if add:
                value += f32(dx[n, c])
            dx[n, c] = like(value, dx[n, c])


@kernel
def column_sums_kernel(dw, db, dy, x, mean, rstd, add_w, add_b):
    c = cuda.grid(1)
    if c < x.shape[1]:
        acc_dw, acc_db = float32(0), float32(0)
        for n in range(x.shape[0]):
            acc_dw += f32(dy[n, c]) * (f32(x[n, c]) - mean[n]) * rstd[n]  # 2
            acc_db += f32(dy[n, c])  # 1
        if add_w:
            acc_dw += f32(dw[c])
        if add_b:
            acc_db += f32(db[c])
        dw[c] = like(acc_dw, dw[c])
        db[c] = like(acc_db, db[c])


def layernorm(y, mean, rstd, x, w, b, eps, add):
    """y (N, C), mean, rstd (N,) from x (N, C), w, b (C,)."""
    launch(
        layernorm_kernel, blocks_for(x.shape[0], BLOCK), BLOCK,
        y, mean, rstd, x, w, b, float32(eps),
    )  # fmt: skip


def d_layernorm(dx, dw, db, dy, x, w, mean, rstd, add):
    """dx (N, C), dw, db (C,) from dy, x (N, C); dw and db first, for dx may be dy's memory."""
    N, C = x.shape
    launch(
        column_sums_kernel, blocks_for(C, BLOCK), BLOCK, dw, db, dy, x, mean, rstd, add[1], add[2]
    )
    launch(d_layernorm_kernel, blocks_for(N, BLOCK), BLOCK, dx, dy, x, w, mean, rstd, add[0])
