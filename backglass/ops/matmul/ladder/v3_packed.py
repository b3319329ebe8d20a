"""Rung 3: packed panels and a tile of sums in registers, in plain Numba.

114 / 104 / 67 GFLOP/s for matmul / d_matmul_x / d_matmul_w (N = 256, O = 2304, C = 768, 2 cores of
a Sapphire Rapids, 2026-11-22).

A dot product loads two floats for each product it adds. A tile of 4×4 dot products loads 4 + 4
floats for 16 products: its 16 sums stay in registers while k runs. For that, 4 rows of A and 4
columns of B must each lie along k, so blocks of both are copied (packed) first:

             k                        WIDTH columns
       +-----------+                 +--+--+--+--+--+
   4   |     A     |           k     |  |  |B |  |  |      ->   4×4 sums of out
       +-----------+                 +--+--+--+--+--+
         a strip, packed once          a panel, packed once for
         for each panel                all rows of A
"""

import numpy as np

from backglass.device.host import inline, kernel, prange

TILE, WIDTH, DEPTH = 4, 64, 768
TASK_WORK = (TILE + WIDTH) * DEPTH + TILE * TILE  # a strip, a panel, the sums
ZERO, ONE, NO = np.int64(0), np.int64(1), np.bool_(False)


def matmul_workspace(*, O: int, **_: int) -> int:
    """Floats: a strip, a panel and a tile for each panel of columns."""
    return (O + WIDTH - 1) // WIDTH * TASK_WORK


def d_matmul_x_workspace(*, C: int, **_: int) -> int:
    """Floats: a strip, a panel and a tile for each panel of columns."""
    return (C + WIDTH - 1) // WIDTH * TASK_WORK


d_matmul_w_workspace = d_matmul_x_workspace


@inline
def matmul(y, x, w, b, add, work):
    """y = x · wᵀ + b."""
    C = x.shape[1]
    _gemm(y, x.reshape(-1), C, ONE, w.reshape(-1), ONE, C, C, NO, work)
    if b is not None:
        for n in range(y.shape[0]):
            for o in range(b.size):
                y[n, o] += b[o]


@inline
def d_matmul_x(dx, dy, w, add, work):
    """dx (+)= dy · w."""
    O, C = w.shape
    _gemm(dx, dy.reshape(-1), O, ONE, w.reshape(-1), C, ONE, O, add[0], work)


@inline
def d_matmul_w(dw, db, dy, x, add, work):
    """dw (+)= dyᵀ · x and db (+)= the column sums of dy."""
    N, O = dy.shape
    C = x.shape[1]
    _gemm(dw, dy.reshape(-1), ONE, O, x.reshape(-1), C, ONE, N, add[0], work)
    if db is not None:
        if not add[1]:
            db[:] = 0
        for n in range(N):
            for o in range(O):
                db[o] += dy[n, o]


@kernel
def _gemm(out, a, a_row, a_col, b, b_row, b_col, depth, add, work):
    """out[r, c] (+)= Σ_k a[r·a_row + k·a_col] · b[k·b_row + c·b_col]; one task per panel of B."""
    cols = out.shape[1]
    for task in prange((cols + WIDTH - 1) // WIDTH):
        scratch = work[task * TASK_WORK : (task + 1) * TASK_WORK]
        _gemm_panel(out, a, a_row, a_col, b, b_row, b_col, task * WIDTH, depth, add, scratch)


@inline
def _gemm_panel(out, a, a_row, a_col, b, b_row, b_col, c0, depth, add, scratch):
    """WIDTH columns of out, from c0 on."""
    rows = out.shape[0]
    width = min(WIDTH, out.shape[1] - c0)
    strip, panel = scratch[: TILE * DEPTH], scratch[TILE * DEPTH : (TILE + WIDTH) * DEPTH]
    sums = scratch[(TILE + WIDTH) * DEPTH :]
    for k0 in range(0, depth, DEPTH):
        block = min(DEPTH, depth - k0)
        accumulate = add or k0 > 0
        _pack(panel, b, c0 * b_col + k0 * b_row, b_col, b_row, width, block)
        for r in range(0, rows, TILE):
            _pack(strip, a, r * a_row + k0 * a_col, a_row, a_col, min(TILE, rows - r), block)
            for c in range(0, width, TILE):
                _tile(sums, strip, panel[c * DEPTH : (c + TILE) * DEPTH], block)
                for i in range(min(TILE, rows - r)):
                    for j in range(min(TILE, width - c)):
                        old = out[r + i, c0 + c + j] if accumulate else np.float32(0)
                        out[r + i, c0 + c + j] = old + sums[i * TILE + j]


@inline
def _pack(packed, source, offs, line_step, k_step, lines, depth):
    """packed[line, k] = source(line, k), DEPTH floats a line; lines up to a whole tile are 0."""
    for line in range((lines + TILE - 1) // TILE * TILE):
        to = packed[line * DEPTH : line * DEPTH + depth]
        start = offs + line * line_step
        if line >= lines:
            to[:] = 0
        elif k_step == 1:
            to[:] = source[start : start + depth]
        else:
            for k in range(depth):
                to[k] = source[start + k * k_step]


@inline
def _tile(sums, a, b, depth):
    """sums[4·i + j] = Σ_k a[i, k]·b[j, k]: 16 sums that LLVM keeps in 16 vector registers."""
    a0, a1, a2, a3 = a[:depth], a[DEPTH:], a[2 * DEPTH :], a[3 * DEPTH :]
    b0, b1, b2, b3 = b[:depth], b[DEPTH:], b[2 * DEPTH :], b[3 * DEPTH :]
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
    for k in range(depth):
        x = a0[k]
        s00, s01, s02, s03 = (
            s00 + x * b0[k], s01 + x * b1[k], s02 + x * b2[k], s03 + x * b3[k]
        )  # fmt: skip
        x = a1[k]
        s10, s11, s12, s13 = (
            s10 + x * b0[k], s11 + x * b1[k], s12 + x * b2[k], s13 + x * b3[k]
        )  # fmt: skip
        x = a2[k]
        s20, s21, s22, s23 = (
            s20 + x * b0[k], s21 + x * b1[k], s22 + x * b2[k], s23 + x * b3[k]
        )  # fmt: skip
        x = a3[k]
        s30, s31, s32, s33 = (
            s30 + x * b0[k], s31 + x * b1[k], s32 + x * b2[k], s33 + x * b3[k]
        )  # fmt: skip
    sums[0], sums[1], sums[2], sums[3] = s00, s01, s02, s03
    sums[4], sums[5], sums[6], sums[7] = s10, s11, s12, s13
    sums[8], sums[9], sums[10], sums[11] = s20, s21, s22, s23
    sums[12], sums[13], sums[14], sums[15] = s30, s31, s32, s33
