"""SIMD instructions for CPU kernels, emitted as LLVM IR from Python. The only file with intrinsics.

Interface, all float32. `x, offs` is element `offs` of the C-contiguous array `x`, flattened.

    LANES                       floats in one vector: 16 (AVX-512), 8 (AVX2) or 4 (NEON, SSE)
    TILE_ROWS, TILE_VECTORS     the register tile; TILE_COLS = TILE_VECTORS·LANES
    panel_width(cols)           cols rounded up to whole vectors: the row length of a packed panel

    tile_gemm(out, offs, out_row,     out[r, c] = Σ_k a[r, k]·b[k, c]   (+ plus[r, c] if has_plus)
              plus, offs, plus_row, has_plus,
              a, offs, a_row, a_col,  a[r, k] is at offs + r·a_row + k·a_col: packed or not
              b, offs,                b[k, c] is at offs + k·panel_width(cols) + c: a packed panel
              depth, rows, cols)      depth ≥ 1, 1 ≤ rows ≤ TILE_ROWS, 1 ≤ cols ≤ TILE_COLS

    copy_panel(out, offs, out_row, x, offs, x_row, rows, cols)   rows×cols floats, cols ≤ TILE_COLS
    copy_strip(the same)                                         the same, cols ≤ TILE_ROWS
    transpose_block(out, offs, out_row, x, offs, x_row)          LANES×LANES: out[c, r] = x[r, c]
    transpose_edge(the same, rows, cols)                         fewer rows or columns than LANES

    row_max(x, offs, n)               maximum of n ≥ 1 floats; a NaN gives NaN
    row_softmax, row_d_softmax, row_scale, row_dot               see their section below
    fexp(x)                           exp(x) for a loop over floats, which then vectorises
    fma(a, b, c)                      a·b + c, kept in this order by the optimiser
    bits_to_float(i), float_to_bits(x)                           the same 32 bits as float32 / int32

`out`, `plus`, `a`, `b` have any number of dimensions. `plus` may be `out` (accumulate) or, with
plus_row 0, one row that is added to every row of the tile (a bias). Nothing outside the named rows
and columns is read or written, with two exceptions: the pad columns of the panel `b` are read, and
where cols is less than the full width the copies and transposes round the row they write up to
whole vectors, with zeros. `out` is not read unless it is also `plus`.

Why intrinsics: a matrix product in Numba loops reaches a third of the machine (ladder/v3_packed),
a maximum never vectorises, and there is no vector exp. Vectors in LLVM IR are legal on every
target: one text serves AVX-512, AVX2, NEON and SSE; only LANES and the tile differ. The functions
are called, not inlined, and optimised for size: inlined and unrolled they took half as long again
to compile. With NUMBA_DISABLE_JIT=1 each name is plain Python, in which NumPy checks every index.

Environment: BACKGLASS_LANES=16|8|4 overrides the detection, for tests. Numba's cache does not know
of it: give each value its own NUMBA_CACHE_DIR.
"""

import os
import platform
from contextlib import contextmanager

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from backglass.device.host import inline

__all__ = [
    "LANES",
    "TILE_COLS",
    "TILE_ROWS",
    "TILE_VECTORS",
    "bits_to_float",
    "copy_panel",
    "copy_strip",
    "fexp",
    "float_to_bits",
    "fma",
    "panel_width",
    "row_max",
    "tile_gemm",
    "transpose_block",
    "transpose_edge",
]


def _detect_lanes() -> int:
    """Floats per vector register of the CPU that Numba compiles for."""
    if "BACKGLASS_LANES" in os.environ:
        return int(os.environ["BACKGLASS_LANES"])
    if config.CPU_FEATURES is None:
        features = {name for name, present in llvm.get_host_cpu_features().items() if present}
    else:  # NUMBA_CPU_FEATURES="+avx2,+fma,-avx512f"
        features = {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}
    if "avx512f" in features:
        return 16
    return 8 if {"avx2", "fma"} <= features else 4


def _choose_tile() -> tuple[int, int]:
    """Rows and vectors of the register tile.

    rows·vectors accumulators, `vectors` registers of b and one of a must fit the register file,
    and rows·vectors ≥ 2 FMA units · 4 cycles latency, or the units wait. More rows save loads.
    """
    has_32_registers = LANES == 16 or platform.machine().lower() in ("aarch64", "arm64")
    return (8, 3) if has_32_registers else (4, 3)  # 24+3+1 of 32 or 12+3+1 of 16 registers


LANES = _detect_lanes()
TILE_ROWS, TILE_VECTORS = _choose_tile()
TILE_COLS = TILE_VECTORS * LANES

_I32, _I64, _F32, _BOOL = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(1)
_POINTER, _VOID = ir.PointerType(), ir.VoidType()
_VECTOR, _MASK = ir.VectorType(_F32, LANES), ir.VectorType(_BOOL, LANES)
_LANE_NUMBERS = ir.Constant(ir.VectorType(_I64, LANES), list(range(LANES)))
_ZERO = ir.Constant(_VECTOR, [0.0] * LANES)
_SUFFIX = f"v{LANES}f32"
_ALIGN = ir.Constant(_I32, 4)


@inline
def panel_width(cols):
    """cols rounded up to whole vectors."""
    return (cols + LANES - 1) // LANES * LANES


# ---------------------------------------------------------------- small pieces of IR


def _int(value):
    return ir.Constant(_I64, value)


def _declare(module, name, returns, *arguments):
    """An LLVM intrinsic, declared once per module."""
    if name not in module.globals:
        ir.Function(module, ir.FunctionType(returns, arguments), name)
    return module.globals[name]


def _define(module, name, returns, *arguments):
    """A new function that is called, not inlined; equal ones of several modules become one."""
    function = ir.Function(module, ir.FunctionType(returns, arguments), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    function.attributes.add("optsize")
    return function, ir.IRBuilder(function.append_basic_block())


def _element(builder, pointer, offs):
    """The address of element offs."""
    return builder.gep(pointer, [offs], source_etype=_F32)


def _load(builder, pointer, offs, kind=_VECTOR):
    return builder.load(_element(builder, pointer, offs), typ=kind, align=4)


def _store(builder, value, pointer, offs):
    builder.store(value, _element(builder, pointer, offs), align=4)


def _masked_load(module):
    """(pointer, align, mask, otherwise) -> vector; lanes outside the mask are not touched."""
    name = f"llvm.masked.load.{_SUFFIX}.p0"
    return _declare(module, name, _VECTOR, _POINTER, _I32, _MASK, _VECTOR)


def _masked_store(module):
    """(vector, pointer, align, mask); lanes outside the mask are not touched."""
    name = f"llvm.masked.store.{_SUFFIX}.p0"
    return _declare(module, name, _VOID, _VECTOR, _POINTER, _I32, _MASK)


def _splat(builder, scalar):
    """One scalar in every lane."""
    kind = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, zeros)


def _lanes_below(builder, count):
    """The mask of the lanes with a number below count."""
    return builder.icmp_signed("<", _LANE_NUMBERS, _splat(builder, count))


@contextmanager
def _loop(builder, stop, step):
    """for index in range(0, stop, step), stop ≥ 1; leaves builder behind the loop."""
    before = builder.block
    body, after = builder.append_basic_block(), builder.append_basic_block()
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(_I64)
    index.add_incoming(_int(0), before)
    yield index
    following = builder.add(index, _int(step))
    index.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, stop), body, after)
    builder.position_at_end(after)


def _array_element(context, builder, kind, array, offs):
    """The address of element offs of a Numba array, as an untyped pointer."""
    data = context.make_array(kind)(context, builder, value=array).data
    address = builder.ptrtoint(builder.gep(data, [offs]), _I64)
    return builder.inttoptr(address, _POINTER)


def _check_arrays(*kinds):
    for kind in kinds:
        is_array = isinstance(kind, types.Array)
        if not (is_array and kind.dtype == types.float32 and kind.layout == "C"):
            raise TypeError(f"simd: expected a C-contiguous float32 array, found {kind}")


# ---------------------------------------------------------------- the register tile


def _tile_function(module, vectors):
    """tile_gemm for panels of `vectors` vectors.

      b[k]   | 0 . . . 15 | 16 . . . 31 | 32 . . . 47 |   loaded once per k
    a[0, k]  |  acc 0,0   |   acc 0,1   |   acc 0,2   |
      ...    |            |             |             |   one broadcast and
    a[7, k]  |  acc 7,0   |   acc 7,1   |   acc 7,2   |   `vectors` FMAs per row
    """
    name = f"backglass_tile_gemm_{TILE_ROWS}x{vectors * LANES}"
    if name in module.globals:
        return module.globals[name]
    arguments = [_POINTER, _I64, _POINTER, _I64, _BOOL]
    arguments += [_POINTER, _I64, _I64, _POINTER, _I64, _I64, _I64]
    function, builder = _define(module, name, _VOID, *arguments)
    out, out_row, plus, plus_row, has_plus, a, a_row, a_col, b, depth, rows, cols = function.args
    _prefetch_tile(builder, vectors, out, out_row)
    acc = _tile_loop(function, builder, vectors, a, a_row, a_col, b, depth, rows)

    full_rows = builder.icmp_signed("==", rows, _int(TILE_ROWS))
    full = builder.and_(full_rows, builder.icmp_signed("==", cols, _int(vectors * LANES)))
    with builder.if_else(full) as (whole, edge):
        with whole:
            with builder.if_else(has_plus) as (accumulate, overwrite):
                with accumulate:
                    _store_tile(builder, acc, out, out_row, plus, plus_row)
                with overwrite:
                    _store_tile(builder, acc, out, out_row)
        with edge:
            _store_edge(builder, acc, out, out_row, plus, plus_row, has_plus, rows, cols)
    builder.ret_void()
    return function


def _prefetch_tile(builder, vectors, out, out_row):
    """Ask for the tile's cache lines before the loop, which hides their way from memory.

    d_matmul_w with add, 256×3072×768: 131 to 141 GFLOP/s (1 core of Sapphire Rapids, 2026-11-22).
    """
    prefetch = _declare(builder.module, "llvm.prefetch.p0", _VOID, _POINTER, _I32, _I32, _I32)
    write, keep, data = (ir.Constant(_I32, flag) for flag in (1, 3, 1))
    for r in range(TILE_ROWS):
        for v in range(0, vectors * LANES, 16):  # 16 floats are a cache line
            offs = builder.add(builder.mul(out_row, _int(r)), _int(v))
            builder.call(prefetch, [_element(builder, out, offs), write, keep, data])


def _tile_loop(function, builder, vectors, a, a_row, a_col, b, depth, rows):
    """The loop over k; leaves `builder` behind it and returns the accumulators."""
    last_row = builder.sub(rows, _int(1))
    row_offs = []  # rows beyond the edge repeat the last one: nothing outside a is read
    for r in range(TILE_ROWS):
        inside = builder.icmp_signed("<", _int(r), rows)
        row_offs.append(builder.mul(a_row, builder.select(inside, _int(r), last_row)))
    before, (loop, after) = builder.block, (function.append_basic_block() for _ in range(2))
    builder.branch(loop)

    builder.position_at_end(loop)
    k, a_k, b_k = builder.phi(_I64), builder.phi(_POINTER), builder.phi(_POINTER)
    acc = [[builder.phi(_VECTOR) for _ in range(vectors)] for _ in range(TILE_ROWS)]
    multiply_add = _declare(function.module, f"llvm.fmuladd.{_SUFFIX}", _VECTOR, *[_VECTOR] * 3)
    b_rows = [_load(builder, b_k, _int(v * LANES)) for v in range(vectors)]
    updated = []
    for r in range(TILE_ROWS):
        a_rk = _splat(builder, _load(builder, a_k, row_offs[r], _F32))
        operands = [[a_rk, b_rows[v], acc[r][v]] for v in range(vectors)]
        updated.append([builder.call(multiply_add, three) for three in operands])
    k_next = builder.add(k, _int(1))
    steps = [(k, _int(0), k_next), (a_k, a, _element(builder, a_k, a_col))]
    steps.append((b_k, b, _element(builder, b_k, _int(vectors * LANES))))
    steps += [(acc[r][v], _ZERO, updated[r][v]) for r in range(TILE_ROWS) for v in range(vectors)]
    for phi, first, following in steps:
        phi.add_incoming(first, before)
        phi.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", k_next, depth), loop, after)

    builder.position_at_end(after)
    return updated


def _store_tile(builder, acc, out, out_row, plus=None, plus_row=None):
    """A whole tile. `plus` is added last, where its cache misses overlap the next tile."""
    for r, acc_r in enumerate(acc):
        for v, value in enumerate(acc_r):
            if plus is not None:
                offs = builder.add(builder.mul(plus_row, _int(r)), _int(v * LANES))
                value = builder.fadd(value, _load(builder, plus, offs))
            _store(builder, value, out, builder.add(builder.mul(out_row, _int(r)), _int(v * LANES)))


def _store_edge(builder, acc, out, out_row, plus, plus_row, has_plus, rows, cols):
    """A tile at the lower or right edge: by way of the stack, to share one small masked loop."""
    vectors = len(acc[0])
    with builder.goto_entry_block():
        spilled = builder.alloca(_VECTOR, TILE_ROWS * vectors)
    spilled = builder.inttoptr(builder.ptrtoint(spilled, _I64), _POINTER)
    for r, acc_r in enumerate(acc):
        for v, value in enumerate(acc_r):
            _store(builder, value, spilled, _int((r * vectors + v) * LANES))
    tile = [spilled, _int(vectors * LANES), out, out_row, plus, plus_row, has_plus, rows, cols]
    builder.call(_edge_function(builder.module), tile)


def _edge_function(module):
    """out[r, c] = x[r, c] (+ plus[r, c]) for r < rows and, by masks, c < cols."""
    name = "backglass_store_edge"
    if name in module.globals:
        return module.globals[name]
    arguments = [_POINTER, _I64, _POINTER, _I64, _POINTER, _I64, _BOOL, _I64, _I64]
    function, builder = _define(module, name, _VOID, *arguments)
    x, x_row, out, out_row, plus, plus_row, has_plus, rows, cols = function.args
    add_lane = _splat(builder, has_plus)
    with _loop(builder, rows, 1) as r, _loop(builder, cols, LANES) as c:
        inside = _lanes_below(builder, builder.sub(cols, c))
        value, there, here = (
            _element(builder, start, builder.add(builder.mul(row, r), c))
            for start, row in ((x, x_row), (plus, plus_row), (out, out_row))
        )
        added = builder.and_(inside, add_lane)
        old = builder.call(_masked_load(module), [there, _ALIGN, added, _ZERO])
        value = builder.fadd(_load(builder, value, _int(0)), old)
        builder.call(_masked_store(module), [value, here, _ALIGN, inside])
    builder.ret_void()
    return function


@intrinsic
def tile_gemm(
    typing_context, out, out_offs, out_row, plus, plus_offs, plus_row, has_plus,
    a, a_offs, a_row, a_col, b, b_offs, depth, rows, cols,
):  # fmt: skip
    """One register tile of a matrix product; the arguments are at the top of this file."""
    _check_arrays(out, plus, a, b)
    i64 = types.int64
    signature = types.void(
        out, i64, i64, plus, i64, i64, types.boolean, a, i64, i64, i64, b, i64, i64, i64, i64
    )

    def generate(context, builder, signature, args):
        kinds = signature.args
        (out, out_offs, out_row, plus, plus_offs, plus_row, has_plus,
         a, a_offs, a_row, a_col, b, b_offs, depth, rows, cols) = args  # fmt: skip
        tile = [
            _array_element(context, builder, kinds[0], out, out_offs), out_row,
            _array_element(context, builder, kinds[3], plus, plus_offs), plus_row,
            builder.trunc(has_plus, _BOOL) if has_plus.type != _BOOL else has_plus,
            _array_element(context, builder, kinds[7], a, a_offs), a_row, a_col,
            _array_element(context, builder, kinds[11], b, b_offs), depth, rows, cols,
        ]  # fmt: skip
        end = builder.append_basic_block()
        for vectors in range(TILE_VECTORS, 0, -1):
            wide = builder.icmp_signed(">", cols, _int((vectors - 1) * LANES))
            with builder.if_then(wide, likely=vectors == TILE_VECTORS):
                builder.call(_tile_function(builder.module, vectors), tile)
                builder.branch(end)
        builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, generate


# ---------------------------------------------------------------- transpose, maximum


def _transpose_function(module):
    """LANES loads, log2(LANES)·LANES shuffles (swap halves, then quarters, ...), LANES stores."""
    name = "backglass_transpose_block"
    if name in module.globals:
        return module.globals[name]
    function, builder = _define(module, name, _VOID, _POINTER, _I64, _POINTER, _I64)
    out, out_row, x, x_row = function.args
    block = [_load(builder, x, builder.mul(x_row, _int(r))) for r in range(LANES)]
    distance = LANES // 2
    while distance:
        _swap(builder, block, distance)
        distance //= 2
    for c in range(LANES):
        _store(builder, block[c], out, builder.mul(out_row, _int(c)))
    builder.ret_void()
    return function


def _transpose_edge_function(module):
    """A block with fewer rows or columns: through a whole block of zeros on the stack."""
    name = "backglass_transpose_edge"
    if name in module.globals:
        return module.globals[name]
    arguments = [_POINTER, _I64, _POINTER, _I64, _I64, _I64]
    function, builder = _define(module, name, _VOID, *arguments)
    out, out_row, x, x_row, rows, cols = function.args
    stack = builder.alloca(_VECTOR, LANES)
    stack = builder.inttoptr(builder.ptrtoint(stack, _I64), _POINTER)
    for r in range(LANES):
        _store(builder, _ZERO, stack, _int(r * LANES))
    copy, lanes = _copy_function(module, 0), _int(LANES)
    builder.call(copy, [stack, lanes, x, x_row, rows, cols])
    builder.call(_transpose_function(module), [stack, lanes, stack, lanes])
    builder.call(copy, [out, out_row, stack, lanes, cols, lanes])
    builder.ret_void()
    return function


def _swap(builder, block, distance):
    """In each square of 2·distance, the upper right and lower left quarters change places."""
    low, high = [], []  # lane numbers; LANES + lane picks from the second operand
    for lane in range(LANES):
        in_low = not lane & distance
        low.append(lane if in_low else LANES + lane - distance)
        high.append(lane + distance if in_low else LANES + lane)
    low, high = (ir.Constant(ir.VectorType(_I32, LANES), lanes) for lanes in (low, high))
    for r in range(LANES):
        if not r & distance:
            upper, lower = block[r], block[r + distance]
            block[r] = builder.shuffle_vector(upper, lower, low)
            block[r + distance] = builder.shuffle_vector(upper, lower, high)


@intrinsic
def transpose_edge(typing_context, out, out_offs, out_row, x, x_offs, x_row, rows, cols):
    """out[c, r] = x[r, c] if r < rows else 0, for c < cols and r < LANES."""
    _check_arrays(out, x)
    i64 = types.int64

    def generate(context, builder, signature, args):
        out = _array_element(context, builder, signature.args[0], args[0], args[1])
        x = _array_element(context, builder, signature.args[3], args[3], args[4])
        rows, cols = args[6:]
        whole_rows = builder.icmp_signed("==", rows, _int(LANES))
        whole = builder.and_(whole_rows, builder.icmp_signed("==", cols, _int(LANES)))
        block = [out, args[2], x, args[5]]
        with builder.if_else(whole) as (then, otherwise):
            with then:
                builder.call(_transpose_function(builder.module), block)
            with otherwise:
                builder.call(_transpose_edge_function(builder.module), [*block, rows, cols])
        return context.get_dummy_value()

    return types.void(out, i64, i64, x, i64, i64, i64, i64), generate


@inline
def transpose_block(out, out_offs, out_row, x, x_offs, x_row):
    """out[c, r] = x[r, c] for LANES×LANES floats, in registers."""
    transpose_edge(out, out_offs, out_row, x, x_offs, x_row, LANES, LANES)


def _copy_function(module, floats):
    """Rows of `floats` floats; or, if floats is 0, of cols, rounded up to vectors with zeros."""
    name = f"backglass_copy_{floats or 'edge'}"
    if name in module.globals:
        return module.globals[name]
    arguments = [_POINTER, _I64, _POINTER, _I64, _I64, _I64]
    function, builder = _define(module, name, _VOID, *arguments)
    out, out_row, x, x_row, rows, cols = function.args
    vector = ir.VectorType(_F32, min(floats, LANES)) if floats else _VECTOR
    with _loop(builder, rows, 1) as r:
        to = _element(builder, out, builder.mul(r, out_row))
        source = _element(builder, x, builder.mul(r, x_row))
        for c in range(0, floats, vector.count):
            _store(builder, _load(builder, source, _int(c), vector), to, _int(c))
        if not floats:
            with _loop(builder, cols, LANES) as c:
                mask = _lanes_below(builder, builder.sub(cols, c))
                masked = [_element(builder, source, c), _ALIGN, mask, _ZERO]
                _store(builder, builder.call(_masked_load(module), masked), to, c)
    builder.ret_void()
    return function


def _copy_block(floats):
    """The intrinsic for blocks of cols ≤ floats columns, fast where cols = floats."""

    @intrinsic
    def copy(typing_context, out, out_offs, out_row, x, x_offs, x_row, rows, cols):
        _check_arrays(out, x)
        i64 = types.int64

        def generate(context, builder, signature, args):
            out = _array_element(context, builder, signature.args[0], args[0], args[1])
            x = _array_element(context, builder, signature.args[3], args[3], args[4])
            block = [out, args[2], x, args[5], args[6], args[7]]
            full = builder.icmp_signed("==", args[7], _int(floats))
            with builder.if_else(full) as (whole, edge):
                with whole:
                    builder.call(_copy_function(builder.module, floats), block)
                with edge:
                    builder.call(_copy_function(builder.module, 0), block)
            return context.get_dummy_value()

        return types.void(out, i64, i64, x, i64, i64, i64, i64), generate

    return copy


copy_panel = _copy_block(TILE_COLS)
copy_strip = _copy_block(TILE_ROWS)


def _max_function(module):
    """The maximum of n ≥ 1 floats. The last vector may overlap the one before."""
    name = "backglass_row_max"
    if name in module.globals:
        return module.globals[name]
    maximum = _declare(module, f"llvm.maximum.{_SUFFIX}", _VECTOR, _VECTOR, _VECTOR)
    reduce = _declare(module, f"llvm.vector.reduce.fmaximum.{_SUFFIX}", _F32, _VECTOR)
    function, builder = _define(module, name, _F32, _POINTER, _I64)
    x, n = function.args
    inside = _lanes_below(builder, n)
    x_0 = _splat(builder, _load(builder, x, _int(0), _F32))
    first = builder.call(_masked_load(module), [x, _ALIGN, inside, x_0])
    last = builder.sub(n, _int(LANES))
    before, (loop, after) = builder.block, (function.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed("<", last, _int(0)), after, loop)

    builder.position_at_end(loop)
    offs, best = builder.phi(_I64), [builder.phi(_VECTOR) for _ in range(4)]
    updated = []
    for i in range(4):  # four maxima hide the latency; beyond the end the last vector comes again
        here = builder.add(offs, _int(i * LANES))
        here = builder.select(builder.icmp_signed("<", here, last), here, last)
        updated.append(builder.call(maximum, [best[i], _load(builder, x, here)]))
        best[i].add_incoming(first, before)
        best[i].add_incoming(updated[i], loop)
    following = builder.add(offs, _int(4 * LANES))
    offs.add_incoming(_int(0), before)
    offs.add_incoming(following, loop)
    pairs = [builder.call(maximum, updated[i : i + 2]) for i in (0, 2)]
    best_of_4 = builder.call(maximum, pairs)
    builder.cbranch(builder.icmp_signed("<", following, n), loop, after)

    builder.position_at_end(after)
    result = builder.phi(_VECTOR)
    result.add_incoming(first, before)
    result.add_incoming(best_of_4, loop)
    builder.ret(builder.call(reduce, [result]))
    return function


@intrinsic
def row_max(typing_context, x, offs, n):
    """The maximum of n ≥ 1 floats from element offs on; NaN if one of them is."""
    _check_arrays(x)

    def generate(context, builder, signature, args):
        start = _array_element(context, builder, signature.args[0], args[0], args[1])
        return builder.call(_max_function(builder.module), [start, args[2]])

    return types.float32(x, types.int64, types.int64), generate


# ---------------------------------------------------------------- scalars


@intrinsic
def fma(typing_context, a, b, c):
    """a·b + c, rounded once where the CPU can. A call, so that no reassociation undoes it."""
    f32 = types.float32

    def generate(context, builder, signature, args):
        return builder.call(_declare(builder.module, "llvm.fmuladd.f32", _F32, *[_F32] * 3), args)

    return f32(f32, f32, f32), generate


@intrinsic
def bits_to_float(typing_context, i):
    """The float32 with the bits of the int32 i."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), generate


@intrinsic
def float_to_bits(typing_context, x):
    """The int32 with the bits of the float32 x."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], _I32)

    return types.int32(types.float32), generate


_LOG2_E = np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.69314575), np.float32(1.4286068e-6)
_ROUND = np.float32(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits
_ROUND_BITS = np.int32(0x4B400000)  # float_to_bits(_ROUND)
_SMALLEST, _LARGEST = np.float32(-87.33654), np.float32(88.37626)  # exp(x), 2ⁿ stay normal
_ZERO_F32, _ONE, _INFINITY = np.float32(0.0), np.float32(1.0), np.float32(np.inf)


@inline
def fexp(x):
    """exp(x), float32, ≤ 1 ulp for x in [-87.33, 88.37]; below 0, above inf; NaN stays NaN.

    x = n·ln 2 + r with |r| ≤ ln 2 / 2, so exp(x) = 2ⁿ·exp(r): 2ⁿ is n in the exponent bits, exp(r)
    a polynomial of degree 6 (coefficients of Cephes' expf). No branch, no table: a loop vectorises.
    """
    inside = _SMALLEST if x < _SMALLEST else (_LARGEST if x > _LARGEST else x)
    n = np.int32(float_to_bits(fma(inside, _LOG2_E, _ROUND)) - _ROUND_BITS)
    n_float = np.float32(n)
    r = fma(n_float, -_LN_2_LOW, fma(n_float, -_LN_2_HIGH, inside))
    p = np.float32(1.9875691500e-4)
    p = fma(p, r, np.float32(1.3981999507e-3))
    p = fma(p, r, np.float32(8.3334519073e-3))
    p = fma(p, r, np.float32(4.1665795894e-2))
    p = fma(p, r, np.float32(1.6666665459e-1))
    p = fma(p, r, np.float32(5.0000001201e-1))
    p = fma(p, r * r, r) + _ONE
    y = p * bits_to_float(np.int32((n + 127) << 23))
    return _ZERO_F32 if x < _SMALLEST else (_INFINITY if x > _LARGEST else y)


# ---------------------------------------------------------------- plain Python, without the JIT


def _tile_gemm_python(
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


def _transpose_edge_python(out, out_offs, out_row, x, x_offs, x_row, rows, cols):
    r, c, lane = np.arange(rows), np.arange(cols), np.arange(LANES)
    block = np.zeros((cols, LANES), np.float32)
    block[:, :rows] = x.reshape(-1)[x_offs + r * x_row + c[:, None]]
    out.reshape(-1)[out_offs + c[:, None] * out_row + lane] = block


def _copy_block_python(out, out_offs, out_row, x, x_offs, x_row, rows, cols):
    r, c = np.arange(rows)[:, None], np.arange(cols)
    if cols not in (TILE_COLS, TILE_ROWS):  # zeros first: those of one row may lie in the next
        out.reshape(-1)[out_offs + r * out_row + np.arange(panel_width(cols))] = 0
    out.reshape(-1)[out_offs + r * out_row + c] = x.reshape(-1)[x_offs + r * x_row + c]


def _row_max_python(x, offs, n):
    return x.reshape(-1)[offs : offs + n].max()


def _fma_python(a, b, c):
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


def _bits_to_float_python(i):
    return np.int32(i).view(np.float32)


def _float_to_bits_python(x):
    return np.float32(x).view(np.int32)


if config.DISABLE_JIT:
    tile_gemm, row_max = _tile_gemm_python, _row_max_python
    copy_panel = copy_strip = _copy_block_python
    transpose_edge = _transpose_edge_python
    fma, bits_to_float, float_to_bits = _fma_python, _bits_to_float_python, _float_to_bits_python


# ---------------------------------------------------------------- softmax of a row
#
#     row_softmax(x, offs, n, fill, scale, shift)    x[j] = exp(scale·x[j] - shift); returns Σ x[j]
#     row_d_softmax(p, offs, dp, offs, n, fill,      p[j] = exp(scale·p[j] - shift), p being scores
#                   scale, shift, delta)             dp[j] = p[j]·(dp[j] - delta)·scale
#     row_scale(out, offs, x, offs, n, fill, factor) out[j] = factor·x[j]; out may be x
#     row_dot(x, offs, y, offs, n)                   Σ x[j]·y[j]
#
# for j < n; what is stored at n ≤ j < fill is 0 (a causal row ends inside a tile). The first two
# read and write whole vectors: fill rounded up to LANES must lie in the array. The others touch
# nothing outside. Exponentials and scaled numbers below 2⁻¹⁰⁰ are stored as 0: beside a row's
# largest they count for nothing, and denormal numbers make the matrix products that follow up to 30
# times slower (the head at N = 256 with logits up to ±120: 9.1 s against 0.77 s, Sapphire Rapids,
# 2026-11-22). Why not Numba loops: LLVM takes 8 lanes where the machine has 16 (exp: 0.47 against
# 0.68 ns a float, rows of 100), and what it makes of each loop costs 0.2 to 0.3 s to compile.


def _constant(value):
    return ir.Constant(_VECTOR, [float(np.float32(value))] * LANES)


def _exp(builder, x):
    """fexp for one vector, but 0 below 2⁻¹⁰⁰, which also covers what is too small for 2ⁿ."""
    kind = ir.VectorType(_I32, LANES)
    multiply_add = _declare(builder.module, f"llvm.fmuladd.{_SUFFIX}", _VECTOR, *[_VECTOR] * 3)

    def fma(a, b, c):
        return builder.call(multiply_add, [a, b, c])

    round_and_bias = _constant(_ROUND + 127)  # leaves n + 127, the exponent of 2ⁿ, in the low bits
    n_bits = fma(x, _constant(_LOG2_E), round_and_bias)
    n = builder.fsub(n_bits, round_and_bias)
    r = fma(n, _constant(-_LN_2_LOW), fma(n, _constant(-_LN_2_HIGH), x))
    p = _constant(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(p, r, _constant(c))
    p = builder.fadd(fma(p, builder.fmul(r, r), r), _constant(1))
    two_n = builder.shl(builder.bitcast(n_bits, kind), ir.Constant(kind, [23] * LANES))
    y = builder.fmul(p, builder.bitcast(two_n, _VECTOR))
    y = builder.select(builder.fcmp_ordered(">", x, _constant(_LARGEST)), _constant(np.inf), y)
    return builder.select(builder.fcmp_ordered("<", x, _constant(-100 * np.log(2))), _ZERO, y)


def _row_function(module, name, rows, scalars, body):
    """name(row…, n, fill, scalar…): `body` once per vector up to fill; sums what it returns."""
    if name in module.globals:
        return module.globals[name]
    arguments = [_POINTER] * rows + [_I64, _I64] + [_F32] * scalars
    function, builder = _define(module, name, _F32, *arguments)
    n, fill = function.args[rows : rows + 2]
    scalars = [_splat(builder, scalar) for scalar in function.args[rows + 2 :]]
    before, (loop, after) = builder.block, (function.append_basic_block() for _ in range(2))
    builder.branch(loop)

    builder.position_at_end(loop)
    offs, total = builder.phi(_I64), builder.phi(_VECTOR)
    lanes = builder.add(_splat(builder, offs), _LANE_NUMBERS)
    masks = [builder.icmp_signed("<", lanes, _splat(builder, end)) for end in (n, fill)]
    here = [_element(builder, row, offs) for row in function.args[:rows]]
    value = builder.fadd(total, body(builder, here, scalars, *masks))
    following = builder.add(offs, _int(LANES))
    for phi, first, update in ((offs, _int(0), following), (total, _ZERO, value)):
        phi.add_incoming(first, before)
        phi.add_incoming(update, loop)
    builder.cbranch(builder.icmp_signed("<", following, fill), loop, after)

    builder.position_at_end(after)
    add_lanes = _declare(module, f"llvm.vector.reduce.fadd.{_SUFFIX}", _F32, _F32, _VECTOR)
    builder.ret(builder.call(add_lanes, [ir.Constant(_F32, 0.0), value], fastmath=["reassoc"]))
    return function


def _softmax_body(builder, here, scalars, inside, stored):
    (x_here,), (scale, shift) = here, scalars
    e = _exp(builder, _scaled_score(builder, x_here, scale, shift))
    e = builder.select(inside, e, _ZERO)
    _store(builder, e, x_here, _int(0))
    return e


def _d_softmax_body(builder, here, scalars, inside, stored):
    (p_here, dp_here), (scale, shift, delta) = here, scalars
    p = _exp(builder, _scaled_score(builder, p_here, scale, shift))
    dp = builder.fsub(_load(builder, dp_here, _int(0)), delta)
    dp = builder.fmul(builder.fmul(p, scale), dp)
    _store(builder, builder.select(inside, p, _ZERO), p_here, _int(0))
    _store(builder, builder.select(inside, dp, _ZERO), dp_here, _int(0))
    return _ZERO


def _scale_body(builder, here, scalars, inside, stored):
    (out_here, x_here), (factor,) = here, scalars
    value = builder.fmul(_load_masked(builder, x_here, inside), factor)
    size = builder.call(_declare(builder.module, f"llvm.fabs.{_SUFFIX}", _VECTOR, _VECTOR), [value])
    value = builder.select(builder.fcmp_ordered("<", size, _constant(2.0**-100)), _ZERO, value)
    align = ir.Constant(_I32, 4)
    builder.call(_masked_store(builder.module), [value, out_here, align, stored])
    return _ZERO


def _dot_body(builder, here, scalars, inside, stored):
    x, y = (_load_masked(builder, row, inside) for row in here)
    return builder.fmul(x, y)


def _load_masked(builder, here, inside):
    align = ir.Constant(_I32, 4)
    return builder.call(_masked_load(builder.module), [here, align, inside, _ZERO])


def _scaled_score(builder, here, scale, shift):
    """scale·x - shift."""
    multiply_add = _declare(builder.module, f"llvm.fmuladd.{_SUFFIX}", _VECTOR, *[_VECTOR] * 3)
    return builder.call(multiply_add, [_load(builder, here, _int(0)), scale, builder.fneg(shift)])


@intrinsic
def row_softmax(typing_context, x, offs, n, fill, scale, shift):
    """x[j] = exp(scale·x[j] - shift) for j < n, 0 for n ≤ j < fill; returns the sum."""
    _check_arrays(x)
    i64, f32 = types.int64, types.float32

    def generate(context, builder, signature, args):
        here = _array_element(context, builder, signature.args[0], args[0], args[1])
        function = _row_function(builder.module, "backglass_row_softmax", 1, 2, _softmax_body)
        return builder.call(function, [here, *args[2:]])

    return f32(x, i64, i64, i64, f32, f32), generate


@intrinsic
def row_d_softmax(typing_context, p, p_offs, dp, dp_offs, n, fill, scale, shift, delta):
    """p[j] = exp(scale·p[j] - shift), dp[j] = p[j]·(dp[j] - delta)·scale; 0 for n ≤ j < fill."""
    _check_arrays(p, dp)
    i64, f32 = types.int64, types.float32

    def generate(context, builder, signature, args):
        p_here = _array_element(context, builder, signature.args[0], args[0], args[1])
        dp_here = _array_element(context, builder, signature.args[2], args[2], args[3])
        function = _row_function(builder.module, "backglass_row_d_softmax", 2, 3, _d_softmax_body)
        builder.call(function, [p_here, dp_here, *args[4:]])
        return context.get_dummy_value()

    return types.void(p, i64, dp, i64, i64, i64, f32, f32, f32), generate


@intrinsic
def row_scale(typing_context, out, out_offs, x, x_offs, n, fill, factor):
    """out[j] = factor·x[j] for j < n, 0 for n ≤ j < fill. `out` may be `x`."""
    _check_arrays(out, x)
    i64, f32 = types.int64, types.float32

    def generate(context, builder, signature, args):
        out_here = _array_element(context, builder, signature.args[0], args[0], args[1])
        x_here = _array_element(context, builder, signature.args[2], args[2], args[3])
        function = _row_function(builder.module, "backglass_row_scale", 2, 1, _scale_body)
        builder.call(function, [out_here, x_here, *args[4:]])
        return context.get_dummy_value()

    return types.void(out, i64, x, i64, i64, i64, f32), generate


@intrinsic
def row_dot(typing_context, x, x_offs, y, y_offs, n):
    """Σ x[j]·y[j] over j < n."""
    _check_arrays(x, y)
    i64 = types.int64

    def generate(context, builder, signature, args):
        x_here = _array_element(context, builder, signature.args[0], args[0], args[1])
        y_here = _array_element(context, builder, signature.args[2], args[2], args[3])
        function = _row_function(builder.module, "backglass_row_dot", 2, 0, _dot_body)
        return builder.call(function, [x_here, y_here, args[4], args[4]])

    return types.float32(x, i64, y, i64, i64), generate


def _row_softmax_python(x, offs, n, fill, scale, shift):
    x[offs : offs + n] = np.exp(x[offs : offs + n] * scale - shift)
    x[offs + n : offs + panel_width(fill)] = 0
    return x[offs : offs + n].sum()


def _row_d_softmax_python(p, p_offs, dp, dp_offs, n, fill, scale, shift, delta):
    width = panel_width(fill)
    p_row, dp_row = p[p_offs : p_offs + width], dp[dp_offs : dp_offs + width]
    p_row[:n] = np.exp(p_row[:n] * scale - shift)
    dp_row[:n] = p_row[:n] * (dp_row[:n] - delta) * scale
    p_row[n:] = dp_row[n:] = 0


def _row_scale_python(out, out_offs, x, x_offs, n, fill, factor):
    out, x = out.reshape(-1), x.reshape(-1)
    out[out_offs : out_offs + n] = factor * x[x_offs : x_offs + n]
    out[out_offs + n : out_offs + fill] = 0


def _row_dot_python(x, x_offs, y, y_offs, n):
    return x.reshape(-1)[x_offs : x_offs + n] @ y.reshape(-1)[y_offs : y_offs + n]


if config.DISABLE_JIT:
    row_softmax, row_d_softmax = _row_softmax_python, _row_d_softmax_python
    row_scale, row_dot = _row_scale_python, _row_dot_python

__all__ += ["row_d_softmax", "row_dot", "row_scale", "row_softmax"]
