"""matmul on the CPU: one packed matrix product serves the forward and both backward calls.

    call          out[row, col]   +=   Σ_k A(row, k) · B(k, col)        A is read    B is packed by
    matmul        y [N, O]             x[n, c]        w[o, c]   k = c    in place     transposing
    d_matmul_x    dx[N, C]             dy[n, o]       w[o, c]   k = o    in place     copying
    d_matmul_w    dw[O, C]             dy[n, o]       x[n, c]   k = n    packed       copying

Tiling of one thread's share of `out` (a tile is 8×48 with AVX-512, 32 vector registers):

                  BLOCK_DEPTH              BLOCK_COLS
                 +-----------+        +-----+-----+-----+
       TILE_ROWS |  strip    |   x    |panel|     |     | BLOCK_DEPTH
                 +-----------+        |     |     |     |     k
                 |  of A     |        +-----+-----+-----+
                 |           |      of B: packed, in the L2 cache

Panels of B (TILE_COLS wide) are packed just before they are used and never leave the L2 cache.
Each strip of A, which fits the L1 cache, meets all of them in turn, with the sums of one tile of
`out` in registers (`tile_gemm`). Packing all of w first, as a step of its own, would write it to
memory and read it back.

Every sum runs over k in the same order and in the same blocks whatever the number of threads, so
the result has the same bits on 1 thread and on 16.

GFLOP/s of matmul / d_matmul_x / d_matmul_w (+=, with db), packing included, at 1024×2304×768 on
2 cores of a Sapphire Rapids, 2026-11-22: 319 / 320 / 286; OpenBLAS 293 / 299 / 300, torch 309 /
314 / 302.
"""

import numpy as np

from backglass.device.host import inline, kernel, prange
from backglass.device.simd import row_dot
from backglass.device.simd_blocks import (
    TILE_COLS,
    TILE_ROWS,
    copy_panel,
    copy_strip,
    tile_gemm,
    transpose_edge,
)
from backglass.device.vector_ir import LANES, panel_width

__all__ = [
    "GEMM_WORK",
    "d_matmul_w",
    "d_matmul_w_workspace",
    "d_matmul_x",
    "d_matmul_x_workspace",
    "gemm_block",
    "gemm_parallel",
    "matmul",
    "matmul_workspace",
    "pack_panels",
    "pack_strips",
]

# 0.6 MiB of panels and, where A is packed, 0.8 MiB of strips: an L2 cache of 2 MiB. Deeper blocks
# save passes over `out`, but more than a few hundred terms summed in one register lose accuracy.
BLOCK_DEPTH, BLOCK_ROWS, BLOCK_COLS = 384, 512, 384
STRIP_PAD = 16  # a cache line between packed strips, or all would fall into the same cache sets
GEMM_WORK = BLOCK_ROWS * (BLOCK_DEPTH + STRIP_PAD) + BLOCK_DEPTH * BLOCK_COLS  # floats per thread
PACK_DEPTH = 16  # rows of the source that are copied together
FEW_ROWS = 3  # up to here a dot product per output beats packing w: 1 row is a decoding step
SERIAL_PRODUCTS = 1 << 22  # below this, waking the other threads costs more than it saves

# As NumPy scalars, because Numba compiles the whole product again for each literal argument.
ZERO, ONE, YES, NO = np.int64(0), np.int64(1), np.bool_(True), np.bool_(False)


def matmul_workspace(*, threads: int, **_: int) -> int:
    """Floats of `work` for any shape: packed blocks for each thread."""
    return threads * GEMM_WORK


d_matmul_x_workspace = d_matmul_w_workspace = matmul_workspace


@inline
def matmul(y, x, w, b, add, work):
    """y[N, O] = x[N, C] · w[O, C]ᵀ + b[O]. Reads 4(NC + OC + O) bytes, writes 4·N·O."""
    N, C = x.shape
    O = w.shape[0]
    out, x_flat, w_flat = y.reshape(-1), x.reshape(-1), w.reshape(-1)
    has_bias, bias = NO, out
    if b is not None:
        has_bias, bias = YES, b
    gemm_parallel(
        out, bias, ZERO, has_bias, x_flat, C, ONE, w_flat, ONE, C, out, NO, NO, N, O, C, work
    )


@inline
def d_matmul_x(dx, dy, w, add, work):
    """dx[N, C] (+)= dy[N, O] · w[O, C]. Reads 4(NO + OC) bytes, writes 4·N·C."""
    N, O = dy.shape
    C = w.shape[1]
    out, dy_flat, w_flat = dx.reshape(-1), dy.reshape(-1), w.reshape(-1)
    gemm_parallel(out, out, C, add[0], dy_flat, O, ONE, w_flat, C, ONE, out, NO, NO, N, C, O, work)


@inline
def d_matmul_w(dw, db, dy, x, add, work):
    """dw[O, C] (+)= dy[N, O]ᵀ · x[N, C] and db[O] (+)= Σ_n dy[n]. Writes 4·O·C bytes."""
    N, O = dy.shape
    C = x.shape[1]
    out, dy_flat, x_flat = dw.reshape(-1), dy.reshape(-1), x.reshape(-1)
    has_sums, sums = NO, out
    if db is not None:
        has_sums, sums = YES, db
    gemm_parallel(
        out, out, C, add[0], dy_flat, ONE, O, x_flat, C, ONE, sums, has_sums, add[1], O, C, N, work
    )


@kernel
def gemm_parallel(
    out, plus, plus_row, has_plus, a, a_row, a_col, b, b_row, b_col,
    sums, has_sums, add_sums, rows, cols, depth, work,
):  # fmt: skip
    """out[rows, cols] = A·B (+ plus) on all threads; has_sums: sums[row] (+)= Σ_k A(row, k).

    A(r, k) = a[r·a_row + k·a_col] and B(k, c) = b[k·b_row + c·b_col], with one stride of each 1.
    plus[r·plus_row + c] is `out` itself (accumulate) or, with plus_row 0, a bias.
    """
    if rows * cols * depth < SERIAL_PRODUCTS:
        _gemm_part(
            out, plus, plus_row, has_plus, a, a_row, a_col, b, b_row, b_col,
            sums, has_sums, add_sums, rows, cols, depth, work, ZERO, ONE, ONE,
        )  # fmt: skip
        return
    row_parts, col_parts = _split(rows, cols, work.size // GEMM_WORK)
    for part in prange(row_parts * col_parts):
        _gemm_part(
            out, plus, plus_row, has_plus, a, a_row, a_col, b, b_row, b_col,
            sums, has_sums, add_sums, rows, cols, depth, work, np.int64(part), row_parts, col_parts,
        )  # fmt: skip


@inline
def _split(rows, cols, threads):
    """(row_parts, col_parts): the grid of shares with the least work for the busiest thread.

    Packing one float of B costs about as much as 16 multiply-adds and serves BLOCK_ROWS rows.
    """
    best_cost, best_row_parts = np.int64(0), np.int64(0)
    for row_parts in range(1, threads + 1):
        if threads % row_parts == 0:
            share_rows = -(-rows // (TILE_ROWS * row_parts)) * TILE_ROWS
            share_cols = -(-cols // (TILE_COLS * (threads // row_parts))) * TILE_COLS
            cost = share_cols * (share_rows + 16 * -(-share_rows // BLOCK_ROWS))
            if best_row_parts == 0 or cost < best_cost:
                best_cost, best_row_parts = cost, row_parts
    return best_row_parts, threads // best_row_parts


@inline
def _share(size, unit, part, parts):
    """Start and end of share `part` of `parts`, in whole units but for the end."""
    units = (size + unit - 1) // unit
    return units * part // parts * unit, min(units * (part + 1) // parts * unit, size)


@inline
def _gemm_part(
    out, plus, plus_row, has_plus, a, a_row, a_col, b, b_row, b_col,
    sums, has_sums, add_sums, rows, cols, depth, work, part, row_parts, col_parts,
):  # fmt: skip
    """One thread's rectangle of `out`, and its share of the sums."""
    r0, r1 = _share(rows, np.int64(TILE_ROWS), part // col_parts, row_parts)
    c0, c1 = _share(cols, np.int64(TILE_COLS), part % col_parts, col_parts)
    if rows <= FEW_ROWS and a_col == 1 and b_row == 1:
        _dot_rows(
            out, cols, plus, plus_row, has_plus, a, a_row, b, b_col, r0, r1, c0, c1, depth
        )  # fmt: skip
    elif r0 < r1 and c0 < c1:
        gemm_block(
            out, r0 * cols + c0, cols, plus, r0 * plus_row + c0, plus_row, has_plus,
            a, r0 * a_row, a_row, a_col, b, c0 * b_col, b_row, b_col,
            r1 - r0, c1 - c0, depth, work, part * GEMM_WORK,
        )  # fmt: skip
    if has_sums:
        s0, s1 = _share(rows, np.int64(LANES), part, row_parts * col_parts)
        _add_rows(sums[s0:s1], add_sums, a, s0, a_col, depth)


@inline
def _dot_rows(out, out_row, plus, plus_row, has_plus, a, a_row, b, b_col, r0, r1, c0, c1, depth):
    """A few rows of `out`, columns c0 to c1, as dot products: reads b once, packs nothing."""
    for c in range(c0, c1):
        for r in range(r0, r1):
            value = row_dot(a, r * a_row, b, c * b_col, depth)
            if has_plus:
                value += plus[r * plus_row + c]
            out[r * out_row + c] = value


@inline
def _add_rows(total, add, a, a_offs, a_step, depth):
    """total[i] (+)= Σ_k a[a_offs + k·a_step + i]."""
    if not add:
        total[:] = 0
    for k in range(depth):
        row = a[a_offs + k * a_step : a_offs + k * a_step + total.size]
        for i in range(total.size):
            total[i] += row[i]


@inline
def gemm_block(
    out, out_offs, out_row, plus, plus_offs, plus_row, has_plus, a, a_offs, a_row, a_col,
    b, b_offs, b_row, b_col, rows, cols, depth, work, work_offs,
):  # fmt: skip
    """out[rows, cols] = A·B (+ plus) on one thread, any size; arguments as for `tile_gemm`.

    All arrays are 1-D float32. GEMM_WORK floats of `work` from work_offs on are overwritten.
    """
    panels_offs = work_offs + BLOCK_ROWS * (BLOCK_DEPTH + STRIP_PAD)
    in_place = a_col == 1
    rows_step = rows if in_place else BLOCK_ROWS
    for r0 in range(0, rows, rows_step):
        block_rows = min(rows_step, rows - r0)
        for k0 in range(0, depth, BLOCK_DEPTH):
            block_depth = min(BLOCK_DEPTH, depth - k0)
            block, block_offs = a, a_offs + r0 * a_row + k0 * a_col
            strip, strip_row, strip_col = TILE_ROWS * a_row, a_row, a_col
            if not in_place:
                pack_strips(work, work_offs, a, block_offs, a_col, block_depth, block_rows)
                block, block_offs = work, work_offs
                strip, strip_row, strip_col = TILE_ROWS * block_depth + STRIP_PAD, 1, TILE_ROWS
            first, first_offs, first_row, has_first = plus, plus_offs, plus_row, has_plus
            if k0 > 0:  # a later block of k adds to what the earlier ones wrote
                first, first_offs, first_row, has_first = out, out_offs, out_row, YES
            for c0 in range(0, cols, BLOCK_COLS):
                block_cols = min(BLOCK_COLS, cols - c0)
                b_block = b_offs + k0 * b_row + c0 * b_col
                pack_panels(work, panels_offs, b, b_block, b_row, b_col, block_depth, block_cols)
                _gemm_packed(
                    out, out_offs + r0 * out_row + c0, out_row,
                    first, first_offs + r0 * first_row + c0, first_row, has_first,
                    block, block_offs, strip, strip_row, strip_col, work, panels_offs,
                    block_rows, block_cols, block_depth,
                )  # fmt: skip


@inline
def _gemm_packed(
    out, out_offs, out_row, plus, plus_offs, plus_row, has_plus,
    a, a_offs, a_strip, a_row, a_col, panels, panels_offs, rows, cols, depth,
):  # fmt: skip
    """A block of A (strip s starts at a_offs + s·a_strip) times a block of packed panels."""
    for r in range(0, rows, TILE_ROWS):
        for c in range(0, cols, TILE_COLS):
            tile_gemm(
                out, out_offs + r * out_row + c, out_row,
                plus, plus_offs + r * plus_row + c, plus_row, has_plus,
                a, a_offs + r // TILE_ROWS * a_strip, a_row, a_col,
                panels, panels_offs + c * depth,
                depth, min(TILE_ROWS, rows - r), min(TILE_COLS, cols - c),
            )  # fmt: skip


@inline
def pack_strips(strips, offs, a, a_offs, a_col, depth, rows):
    """A block of A with contiguous columns as strips: row r, column k is at

    offs + (r // TILE_ROWS)·(TILE_ROWS·depth + STRIP_PAD) + k·TILE_ROWS + r % TILE_ROWS.
    """
    strip = TILE_ROWS * depth + STRIP_PAD
    for k in range(0, depth, PACK_DEPTH):
        block_depth = min(PACK_DEPTH, depth - k)
        for r in range(0, rows, TILE_ROWS):
            copy_strip(
                strips, offs + r // TILE_ROWS * strip + k * TILE_ROWS, TILE_ROWS,
                a, a_offs + k * a_col + r, a_col, block_depth, min(TILE_ROWS, rows - r),
            )  # fmt: skip


@inline
def pack_panels(panels, offs, b, b_offs, b_row, b_col, depth, cols):
    """A block of B as panels of TILE_COLS columns: row k, column c = p·TILE_COLS + j is at

    offs + p·TILE_COLS·depth + k·width + j, width TILE_COLS or, at the end, panel_width(rest).
    """
    if b_col == 1:
        _copy_panels(panels, offs, b, b_offs, b_row, depth, cols)
    else:
        _transpose_panels(panels, offs, b, b_offs, b_col, depth, cols)


@inline
def _copy_panels(panels, offs, b, b_offs, b_row, depth, cols):
    """Rows of B are contiguous. A few rows of all panels at a time: longer runs from memory."""
    for k in range(0, depth, PACK_DEPTH):
        block_depth = min(PACK_DEPTH, depth - k)
        for c in range(0, cols, TILE_COLS):
            tile_cols = min(TILE_COLS, cols - c)
            width = panel_width(tile_cols)
            copy_panel(
                panels, offs + c * depth + k * width, width,
                b, b_offs + k * b_row + c, b_row, block_depth, tile_cols,
            )  # fmt: skip


@inline
def _transpose_panels(panels, offs, b, b_offs, b_col, depth, cols):
    """Columns of B are contiguous: LANES×LANES blocks are transposed in registers."""
    for c0 in range(0, cols, TILE_COLS):
        end = min(c0 + TILE_COLS, cols)
        width = panel_width(end - c0)
        for c in range(c0, end, LANES):
            for k in range(0, depth, LANES):
                transpose_edge(
                    panels, offs + c0 * depth + k * width + c - c0, width,
                    b, b_offs + c * b_col + k, b_col, min(LANES, end - c), min(LANES, depth - k),
                )  # fmt: skip
