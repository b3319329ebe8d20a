"""SIMD instructions on blocks of float32: a register tile of a product, copies, a transpose.

    TILE_ROWS, TILE_VECTORS     the register tile; TILE_COLS = TILE_VECTORS·LANES

    tile_gemm(out, offs, out_row,     out[r, c] = Σ_k a[r, k]·b[k, c]   (+ plus[r, c] if has_plus)
              plus, offs, plus_row, has_plus,
              a, offs, a_row, a_col,  a[r, k] is at offs + r·a_row + k·a_col: packed or not
              b, offs,                b[k, c] is at offs + k·panel_width(cols) + c: a packed panel
              depth, rows, cols)      depth ≥ 1, 1 ≤ rows ≤ TILE_ROWS, 1 ≤ cols ≤ TILE_COLS

    copy_panel(out, offs, out_row, x, offs, x_row, rows, cols)   rows×cols floats, cols ≤ TILE_COLS
    copy_strip(the same)                                         the same, cols ≤ TILE_ROWS
    transpose_edge(the same)       out[c, r] = x[r, c] if r < rows else 0, for r < LANES, c < cols;
                                   rows, cols ≤ LANES

Arrays have any number of dimensions; `x, offs` is element `offs` of `x`, flattened. `plus` may be
`out` (accumulate) or, with plus_row 0, one row that is added to every row of the tile (a bias).
`out` is not read unless it is also `plus`. Nothing outside the named rows and columns is read or
written, with two exceptions: the pad columns of the panel `b` are read, and where cols is less than
the full width the copies and the transpose round the rows they write up to whole vectors of zeros.

Why intrinsics: a matrix product in Numba loops reaches a third of the machine (ladder/v3_packed).
"""

import platform
from functools import partial

import numpy as np
from llvmlite import ir
from numba import types

from backglass.device.vector_ir import (
    F32,
    I32,
    LANES,
    VECTOR,
    VOID,
    ZERO,
    called,
    element,
    fmuladd,
    instruction,
    integer,
    lanes_below,
    llvm_call,
    load,
    load_masked,
    loop,
    on_stack,
    panel_width,
    splat,
    store,
    store_masked,
    typed,
)


def _choose_tile() -> tuple[int, int]:
    """Rows and vectors of the register tile.

    rows·vectors accumulators, `vectors` registers of b and one of a must fit the register file,
    and rows·vectors ≥ 2 FMA units · 4 cycles latency, or the units wait. More rows save loads.
    """
    has_32_registers = LANES == 16 or platform.machine().lower() in ("aarch64", "arm64")
    return (8, 3) if has_32_registers else (4, 3)  # 24+3+1 of 32 or 12+3+1 of 16 registers


TILE_ROWS, TILE_VECTORS = _choose_tile()
TILE_COLS = TILE_VECTORS * LANES

i64 = types.int64


# ---------------------------------------------------------------- the register tile


def _tile_gemm_plain(
    out, out_offs, out_row, plus, plus_offs, plus_row, has_plus,
    a, a_offs, a_row, a_col, b, b_offs, depth, rows, cols,
):  # fmt: skip
    r, k, c = np.arange(rows)[:, None], np.arange(depth), np.arange(cols)
    a_tile = a.reshape(-1)[a_offs + r * a_row + k * a_col]  # (rows, depth)
    b_tile = b.reshape(-1)[b_offs + k[:, None] * panel_width(cols) + c]  # (depth, cols)
    value = a_tile @ b_tile  # (rows, cols)
    if has_plus:
        value += plus.reshape(-1)[plus_offs + r * plus_row + c]
    out.reshape(-1)[out_offs + r * out_row + c] = value


@instruction(_tile_gemm_plain)
def tile_gemm(
    typing_context, out, out_offs, out_row, plus, plus_offs, plus_row, has_plus,
    a, a_offs, a_row, a_col, b, b_offs, depth, rows, cols,
):  # fmt: skip
    """One register tile of a matrix product; the arguments are at the top of this file."""

    def write(builder, *tile):
        end = builder.append_basic_block()
        for vectors in range(TILE_VECTORS, 0, -1):
            wide = builder.icmp_signed(">", tile[-1], integer((vectors - 1) * LANES))
            with builder.if_then(wide, likely=vectors == TILE_VECTORS):
                name = f"backglass_tile_gemm_{TILE_ROWS}x{vectors * LANES}"
                called(name, partial(_write_tile, vectors))(builder, *tile)
                builder.branch(end)
        builder.branch(end)
        builder.position_at_end(end)

    kinds = (out, i64, i64, plus, i64, i64, types.boolean, a, i64, i64, i64, b, i64, i64, i64, i64)
    return typed(types.void, kinds, write)


def _write_tile(
    vectors, builder, out, out_row, plus, plus_row, has_plus, a, a_row, a_col, b, depth, rows, cols
):
    """tile_gemm for panels of `vectors` vectors.

      b[k]   | 0 . . . 15 | 16 . . . 31 | 32 . . . 47 |   loaded once per k
    a[0, k]  |  acc 0,0   |   acc 0,1   |   acc 0,2   |
      ...    |            |             |             |   one broadcast and
    a[7, k]  |  acc 7,0   |   acc 7,1   |   acc 7,2   |   `vectors` FMAs per row
    """
    _prefetch_tile(builder, vectors, out, out_row)
    acc = _sum_tile(builder, vectors, a, a_row, a_col, b, depth, rows)
    full_rows = builder.icmp_signed("==", rows, integer(TILE_ROWS))
    full = builder.and_(full_rows, builder.icmp_signed("==", cols, integer(vectors * LANES)))
    with builder.if_else(full) as (whole, edge):
        with whole, builder.if_else(has_plus) as (accumulate, overwrite):
            with accumulate:
                _store_tile(builder, acc, out, out_row, plus, plus_row)
            with overwrite:
                _store_tile(builder, acc, out, out_row)
        with edge:  # by way of the stack, to share one small masked loop
            x, x_row = on_stack(builder, TILE_ROWS * vectors), integer(vectors * LANES)
            _store_tile(builder, acc, x, x_row)
            store_edge = called("backglass_store_edge", _write_store_edge)
            store_edge(builder, x, x_row, out, out_row, plus, plus_row, has_plus, rows, cols)


def _prefetch_tile(builder, vectors, out, out_row):
    """Ask for the tile's cache lines before the loop, which hides their way from memory.

    d_matmul_w with add, 256×3072×768: 131 to 141 GFLOP/s (1 core of Sapphire Rapids, 2026-11-22).
    """
    write, keep, data = (ir.Constant(I32, flag) for flag in (1, 3, 1))
    for r in range(TILE_ROWS):
        for v in range(0, vectors * LANES, 16):  # 16 floats are a cache line
            here = element(builder, out, _at(builder, out_row, r, v))
            llvm_call(builder, "llvm.prefetch.p0", VOID, here, write, keep, data)


def _sum_tile(builder, vectors, a, a_row, a_col, b, depth, rows):
    """The loop over k; the accumulators, row by row."""
    last_row = builder.sub(rows, integer(1))
    row_offs = []  # rows beyond the edge repeat the last one: nothing outside a is read
    for r in range(TILE_ROWS):
        inside = builder.icmp_signed("<", integer(r), rows)
        row_offs.append(builder.mul(a_row, builder.select(inside, integer(r), last_row)))
    carried = [a, b, *[ZERO] * (TILE_ROWS * vectors)]
    with loop(builder, depth, 1, carried) as (_, now):
        a_k, b_k, *acc = now
        b_rows = [load(builder, b_k, integer(v * LANES)) for v in range(vectors)]
        for r in range(TILE_ROWS):
            a_rk = splat(builder, load(builder, a_k, row_offs[r], F32))
            for v in range(vectors):
                i = r * vectors + v
                acc[i] = fmuladd(builder, a_rk, b_rows[v], acc[i])
        now[0] = element(builder, a_k, a_col)
        now[1] = element(builder, b_k, integer(vectors * LANES))
        now[2:] = acc
    return [now[2 + r * vectors : 2 + (r + 1) * vectors] for r in range(TILE_ROWS)]


def _store_tile(builder, acc, out, out_row, plus=None, plus_row=None):
    """A whole tile. `plus` is added last, where its cache misses overlap the next tile."""
    for r, acc_r in enumerate(acc):
        for v, value in enumerate(acc_r):
            if plus is not None:
                old = load(builder, plus, _at(builder, plus_row, r, v * LANES))
                value = builder.fadd(value, old)
            store(builder, value, out, _at(builder, out_row, r, v * LANES))


def _at(builder, row, r, c):
    """The offset of row r, column c, both known now."""
    return builder.add(builder.mul(row, integer(r)), integer(c))


def _write_store_edge(builder, x, x_row, out, out_row, plus, plus_row, has_plus, rows, cols):
    """out[r, c] = x[r, c] (+ plus[r, c]) for r < rows and, by masks, c < cols."""
    add_lane = splat(builder, has_plus)
    with loop(builder, rows, 1) as (r, _), loop(builder, cols, LANES) as (c, _):
        inside = lanes_below(builder, builder.sub(cols, c))
        value, there, here = (
            element(builder, start, builder.add(builder.mul(row, r), c))
            for start, row in ((x, x_row), (plus, plus_row), (out, out_row))
        )
        old = load_masked(builder, there, builder.and_(inside, add_lane))
        store_masked(builder, builder.fadd(load(builder, value, integer(0)), old), here, inside)


# ---------------------------------------------------------------- copies


def _copy_block_plain(out, out_offs, out_row, x, x_offs, x_row, rows, cols):
    r, c = np.arange(rows)[:, None], np.arange(cols)
    if cols not in (TILE_COLS, TILE_ROWS):  # zeros first: those of one row may lie in the next
        out.reshape(-1)[out_offs + r * out_row + np.arange(panel_width(cols))] = 0
    out.reshape(-1)[out_offs + r * out_row + c] = x.reshape(-1)[x_offs + r * x_row + c]


def _copy_block(floats):
    """The instruction for blocks of cols ≤ floats columns, fast where cols = floats."""
    copy_whole = called(f"backglass_copy_{floats}", partial(_write_copy, floats))

    @instruction(_copy_block_plain)
    def copy(typing_context, out, out_offs, out_row, x, x_offs, x_row, rows, cols):
        def write(builder, *block):
            full = builder.icmp_signed("==", block[-1], integer(floats))
            with builder.if_else(full) as (whole, edge):
                with whole:
                    copy_whole(builder, *block)
                with edge:
                    copy_edge(builder, *block)

        return typed(types.void, (out, i64, i64, x, i64, i64, i64, i64), write)

    return copy


def _write_copy(floats, builder, out, out_row, x, x_row, rows, cols):
    """Rows of `floats` floats; or, if floats is 0, of cols, rounded up to vectors with zeros."""
    vector = ir.VectorType(F32, min(floats, LANES)) if floats else VECTOR
    with loop(builder, rows, 1) as (r, _):
        to = element(builder, out, builder.mul(r, out_row))
        source = element(builder, x, builder.mul(r, x_row))
        for c in range(0, floats, vector.count):
            store(builder, load(builder, source, integer(c), vector), to, integer(c))
        if not floats:
            with loop(builder, cols, LANES) as (c, _):
                mask = lanes_below(builder, builder.sub(cols, c))
                store(builder, load_masked(builder, element(builder, source, c), mask), to, c)


copy_edge = called("backglass_copy_edge", partial(_write_copy, 0))
copy_panel, copy_strip = _copy_block(TILE_COLS), _copy_block(TILE_ROWS)


# ---------------------------------------------------------------- transpose


def _transpose_edge_plain(out, out_offs, out_row, x, x_offs, x_row, rows, cols):
    r, c, lane = np.arange(rows), np.arange(cols), np.arange(LANES)
    block = np.zeros((cols, LANES), np.float32)
    block[:, :rows] = x.reshape(-1)[x_offs + r * x_row + c[:, None]]
    out.reshape(-1)[out_offs + c[:, None] * out_row + lane] = block


@instruction(_transpose_edge_plain)
def transpose_edge(typing_context, out, out_offs, out_row, x, x_offs, x_row, rows, cols):
    """out[c, r] = x[r, c] if r < rows else 0, for c < cols and r < LANES."""

    def write(builder, *block):
        rows, cols = block[-2:]
        whole_rows = builder.icmp_signed("==", rows, integer(LANES))
        whole = builder.and_(whole_rows, builder.icmp_signed("==", cols, integer(LANES)))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                transpose_block(builder, *block[:4])
            with otherwise:
                called("backglass_transpose_edge", _write_transpose_edge)(builder, *block)

    return typed(types.void, (out, i64, i64, x, i64, i64, i64, i64), write)


def _write_transpose(builder, out, out_row, x, x_row):
    """LANES loads, log2(LANES)·LANES shuffles (swap halves, then quarters, ...), LANES stores."""
    block = [load(builder, x, builder.mul(x_row, integer(r))) for r in range(LANES)]
    distance = LANES // 2
    while distance:
        _swap(builder, block, distance)
        distance //= 2
    for c in range(LANES):
        store(builder, block[c], out, builder.mul(out_row, integer(c)))


transpose_block = called("backglass_transpose_block", _write_transpose)


def _swap(builder, block, distance):
    """In each square of 2·distance, the upper right and lower left quarters change places."""
    low, high = [], []  # lane numbers; LANES + lane picks from the second operand
    for lane in range(LANES):
        in_low = not lane & distance
        low.append(lane if in_low else LANES + lane - distance)
        high.append(lane + distance if in_low else LANES + lane)
    low, high = (ir.Constant(ir.VectorType(I32, LANES), lanes) for lanes in (low, high))
    for r in range(LANES):
        if not r & distance:
            upper, lower = block[r], block[r + distance]
            block[r] = builder.shuffle_vector(upper, lower, low)
            block[r + distance] = builder.shuffle_vector(upper, lower, high)


def _write_transpose_edge(builder, out, out_row, x, x_row, rows, cols):
    """A block with fewer rows or columns: through a whole block of zeros on the stack."""
    stack, lanes = on_stack(builder, LANES), integer(LANES)
    for r in range(LANES):
        store(builder, ZERO, stack, integer(r * LANES))
    copy_edge(builder, stack, lanes, x, x_row, rows, cols)
    transpose_block(builder, stack, lanes, stack, lanes)
    copy_edge(builder, out, out_row, stack, lanes, cols, lanes)
