"""layernorm on the GPU, rung 2: one block, one row; its sums meet in shared memory.

    row of x    x x x x | x x x x | x x …       thread t takes numbers t, t + BLOCK, …: a warp's
                0 1 2 3   0 1 2 3   0 1         threads read neighbours, one fetch for all

    sums of 8 threads   a b c d e f g h         half of the threads add the other half's sums, then
                        └─┴─┴─┴─┘               a quarter, … until one number is left
                        A B C D    ->  A' B'  ->  A''

For dw and db a block takes SIDE columns, with SIDE threads down each of them: SIDE times as many
threads as in rung 1, in C / SIDE blocks.
"""

import math

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import (
    BLOCK,
    SIDE,
    block_sum,
    blocks_for,
    f32,
    kernel,
    launch,
    like,
)


@kernel
def layernorm_kernel(y, mean, rstd, x, w, b, eps):
    sums = cuda.shared.array(BLOCK, float32)
    n, t, C = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    total = float32(0)
    for c in range(t, C, BLOCK):
        total += f32(x[n, c])
    m = block_sum(sums, t, total) / float32(C)
    squares = float32(0)
    for c in range(t, C, BLOCK):
        squares += (f32(x[n, c]) - m) ** 2
    r = float32(1) / math.sqrt(block_sum(sums, t, squares) / float32(C) + eps)
    for c in range(t, C, BLOCK):
        y[n, c] = like((f32(x[n, c]) - m) * r * f32(w[c]) + f32(b[c]), y[n, c])
    if t == 0:
        mean[n], rstd[n] = m, r


@kernel
def d_layernorm_kernel(dx, dy, x, w, mean, rstd, add):
    sums = cuda.shared.array(BLOCK, float32)
    n, t, C = cuda.blockIdx.x, cuda.threadIdx.x, x.shape[1]
    along_ones, along_n = float32(0), float32(0)
    for c in range(t, C, BLOCK):
        dn = f32(dy[n, c]) * f32(w[c])  # 3
        along_ones += dn
        along_n += dn * (f32(x[n, c]) - mean[n]) * rstd[n]
    along_ones = block_sum(sums, t, along_ones) / float32(C)
    along_n = block_sum(sums, t, along_n) / float32(C)
    for c in range(t, C, BLOCK):
        xhat = (f32(x[n, c]) - mean[n]) * rstd[n]
        value = rstd[n] * (f32(dy[n, c]) * f32(w[c]) - along_ones - xhat * along_n)  # 13
        if add:
            value += f32(dx[n, c])
        dx[n, c] = like(value, dx[n, c])


@kernel
def column_sums_kernel(dw, db, dy, x, mean, rstd, add_w, add_b):
    w_sums = cuda.shared.array((SIDE, SIDE), float32)
    b_sums = cuda.shared.array((SIDE, SIDE), float32)
    i, j = cuda.threadIdx.y, cuda.threadIdx.x
    c = cuda.blockIdx.x * SIDE + j
    acc_dw, acc_db = float32(0), float32(0)
    if c < x.shape[1]:
        for n in range(i, x.shape[0], SIDE):
            acc_dw += f32(dy[n, c]) * (f32(x[n, c]) - mean[n]) * rstd[n]  # 2
            acc_db += f32(dy[n, c])  # 1
    w_sums[i, j], b_sums[i, j] = acc_dw, acc_db
    cuda.syncthreads()
    if i == 0 and c < x.shape[1]:
        for other in range(1, SIDE):
            acc_dw += w_sums[other, j]
            acc_db += b_sums[other, j]
        if add_w:
            acc_dw += f32(dw[c])
        if add_b:
            acc_db += f32(db[c])
        dw[c] = like(acc_dw, dw[c])
        db[c] = like(acc_db, db[c])


def layernorm(y, mean, rstd, x, w, b, eps, add):
    """y (N, C), mean, rstd (N,) from x (N, C), w, b (C,)."""
    launch(layernorm_kernel, x.shape[0], BLOCK, y, mean, rstd, x, w, b, float32(eps))


def d_layernorm(dx, dw, db, dy, x, w, mean, rstd, add):
    """dx (N, C), dw, db (C,) from dy, x (N, C); dw and db first, for dx may be dy's memory."""
    N, C = x.shape
    launch(
        column_sums_kernel, blocks_for(C, SIDE), (SIDE, SIDE),
        dw, db, dy, x, mean, rstd, add[1], add[2],
    )  # fmt: skip
    launch(d_layernorm_kernel, N, BLOCK, dx, dy, x, w, mean, rstd, add[0])
