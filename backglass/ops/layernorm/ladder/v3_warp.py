"""layernorm on the GPU, rung 3: one warp, one row; its sums are shuffled from register to register.

The 32 threads of a warp run in step.  A *shuffle* hands each of them a register of another one:
with the neighbour's sum, then that of the neighbouring pair, … after five shuffles all 32 have the
total, without shared memory and without waiting for anybody.

    step 16:  a0+a16  a1+a17  a2+a18 …      step 8:  a0+a16+a8+a24 …      …      step 1:  the total

dw and db in two steps: each of PIECES blocks walks over rows of its own, one warp down 32 columns,
and writes partial sums to workspace; a second kernel adds the pieces up in order.  So many blocks
keep the whole chip busy, and the bits are the same in every run.
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
    warp_sum,
)

WARPS = max(1, BLOCK // WARP)  # of a block, each with a row of its own
PIECES = BLOCK // 4  # that the rows are cut into for dw and db: 64 on a GPU


@kernel
def layernorm_kernel(y, mean, rstd, x, w, b, eps):
    n, t, C = cuda.blockIdx.x * WARPS + cuda.threadIdx.y, cuda.threadIdx.x, x.shape[1]
    if n < x.shape[0]:
        total = float32(0)
        for c in range(t, C, WARP):
            total += f32(x[n, c])
        m = warp_sum(total) / float32(C)
        squares = float32(0)
        for c in range(t, C, WARP):
            squares += (f32(x[n, c]) - m) ** 2
        r = float32(1) / math.sqrt(warp_sum(squares) / float32(C) + eps)
        for c in range(t, C, WARP):
            y[n, c] = like((f32(x[n, c]) - m) * r * f32(w[c]) + f32(b[c]), y[n, c])
        if t == 0:
            mean[n], rstd[n] = m, r


@kernel
def d_layernorm_kernel(dx, dy, x, w, mean, rstd, add):
    n, t, C = cuda.blockIdx.x * WARPS + cuda.threadIdx.y, cuda.threadIdx.x, x.shape[1]
    if n < x.shape[0]:
        along_ones, along_n = float32(0), float32(0)
        for c in range(t, C, WARP):
            dn = f32(dy[n, c]) * f32(w[c])  # 3
            along_ones += dn
            along_n += dn * (f32(x[n, c]) - mean[n]) * rstd[n]
        along_ones = warp_sum(along_ones) / float32(C)
        along_n = warp_sum(along_n) / float32(C)
        for c in range(t, C, WARP):
            xhat = (f32(x[n, c]) - mean[n]) * rstd[n]
            value = rstd[n] * (f32(dy[n, c]) * f32(w[c]) - along_ones - xhat * along_n)  # 13
            if add:
                value += f32(dx[n, c])
            dx[n, c] = like(value, dx[n, c])


@kernel
def partial_sums_kernel(part, dy, x, mean, rstd):
    """part[piece, 0 or 1, c] = what every PIECES-th row adds to dw[c] or db[c]."""
    c, piece = cuda.blockIdx.x * WARP + cuda.threadIdx.x, cuda.blockIdx.y
    if c < x.shape[1]:
        acc_dw, acc_db = float32(0), float32(0)
        for n in range(piece, x.shape[0], PIECES):
            acc_dw += f32(dy[n, c]) * (f32(x[n, c]) - mean[n]) * rstd[n]  # 2
            acc_db += f32(dy[n, c])  # 1
        part[piece, 0, c], part[piece, 1, c] = acc_dw, acc_db


@kernel
def column_sums_kernel(dw, db, part, add_w, add_b):
    c = cuda.grid(1)
    if c < part.shape[2]:
        acc_dw, acc_db = float32(0), float32(0)
        for piece in range(PIECES):
            acc_dw += part[piece, 0, c]
            acc_db += part[piece, 1, c]
        if add_w:
            acc_dw += f32(dw[c])
        if add_b:
            acc_db += f32(db[c])
        dw[c] = like(acc_dw, dw[c])
        db[c] = like(acc_db, db[c])


def layernorm(y, mean, rstd, x, w, b, eps, add):
    """y (N, C), mean, rstd (N,) from x (N, C), w, b (C,)."""
    launch(
        layernorm_kernel, blocks_for(x.shape[0], WARPS), (WARP, WARPS),
        y, mean, rstd, x, w, b, float32(eps),
    )  # fmt: skip


def d_layernorm_workspace(*, C: int, **_: object) -> int:
    """Partial dw and db in fp32."""
    return PIECES * 2 * C * 4


def d_layernorm(dx, dw, db, dy, x, w, mean, rstd, add, work):
    """dx (N, C), dw, db (C,) from dy, x (N, C); dw and db first, for dx may be dy's memory."""
    N, C = x.shape
    part = work.part(0, "fp32", PIECES, 2, C)
    launch(partial_sums_kernel, (blocks_for(C, WARP), PIECES), WARP, part, dy, x, mean, rstd)
    launch(column_sums_kernel, blocks_for(C, BLOCK), BLOCK, dw, db, part, add[1], add[2])
    launch(
        d_layernorm_kernel, blocks_for(N, WARPS), (WARP, WARPS),
        dx, dy, x, w, mean, rstd, add[0],
    )  # fmt: skip
