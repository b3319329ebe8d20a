"""Writing vector code as LLVM IR from Python: what simd.py and simd_blocks.py are written with.

A vector of LANES floats is legal IR on every target, so one text serves AVX-512, AVX2, NEON and
SSE. Where an operation is a function of its own (`called`) it is called, not inlined, and optimised
for size: inlined and unrolled they took half as long again to compile.

Environment: BACKGLASS_LANES=16|8|4 overrides the detection, for tests.
"""

import os
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, TypeVar

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from backglass.device.host import inline


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


Plain = TypeVar("Plain", bound=Callable)
LANES = _detect_lanes()  # floats in one vector: 16 (AVX-512), 8 (AVX2) or 4 (NEON, SSE)

I32, I64, F32, BOOL = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.IntType(1)
POINTER, VOID = ir.PointerType(), ir.VoidType()
VECTOR = ir.VectorType(F32, LANES)
SUFFIX = f"v{LANES}f32"
ZERO = ir.Constant(VECTOR, [0.0] * LANES)
LANE_NUMBERS = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
ALIGN = ir.Constant(I32, 4)


@inline
def panel_width(cols):
    """cols rounded up to whole vectors: the row length of a packed panel."""
    return (cols + LANES - 1) // LANES * LANES


# ---------------------------------------------------------------- from Numba to IR and back


def instruction(plain: Plain) -> Callable[[Callable], Plain]:
    """Decorates a Numba intrinsic; with NUMBA_DISABLE_JIT=1 its name stands for `plain` instead,
    which does the same in NumPy, where every index is checked."""
    decorator: Any = intrinsic
    return (lambda written: plain) if config.DISABLE_JIT else decorator


def typed(returns, arguments, write):
    """What an intrinsic returns: its Numba signature and what writes its IR.

    write(builder, *values) is given an array and the offset behind it as one pointer.
    """
    for kind in arguments:
        if isinstance(kind, types.Array) and (kind.dtype, kind.layout) != (types.float32, "C"):
            raise TypeError(f"simd: expected a C-contiguous float32 array, found {kind}")

    def generate(context, builder, signature, args):
        values, pairs = [], zip(signature.args, args, strict=True)
        for kind, value in pairs:
            if isinstance(kind, types.Array):
                data = context.make_array(kind)(context, builder, value=value).data
                value = _untyped(builder, builder.gep(data, [next(pairs)[1]]))
            values.append(value)
        result = write(builder, *values)
        return context.get_dummy_value() if returns == types.void else result

    return returns(*arguments), generate


def called(name, body, returns: ir.Type = VOID):
    """write(builder, *values): a call of the function `name`, which body(builder, *its arguments)
    writes once per module; equal ones of several modules become one."""

    def write(builder, *values):
        if name not in builder.module.globals:
            kind = ir.FunctionType(returns, [v.type for v in values])
            function = ir.Function(builder.module, kind, name)
            function.linkage = "linkonce_odr"
            for attribute in ("noinline", "nounwind", "optsize"):
                function.attributes.add(attribute)
            inside = ir.IRBuilder(function.append_basic_block())
            result = body(inside, *function.args)
            inside.ret_void() if returns == VOID else inside.ret(result)
        return builder.call(builder.module.globals[name], values)

    return write


# ---------------------------------------------------------------- small pieces of IR


def llvm_call(builder, name, returns, *values, fastmath=()):
    """One of LLVM's own intrinsics."""
    if name not in builder.module.globals:
        ir.Function(builder.module, ir.FunctionType(returns, [v.type for v in values]), name)
    return builder.call(builder.module.globals[name], values, fastmath=fastmath)


def integer(value):
    return ir.Constant(I64, value)


def _untyped(builder, pointer):
    return builder.inttoptr(builder.ptrtoint(pointer, I64), POINTER)


def element(builder, pointer, offs):
    """The address of float number offs."""
    return builder.gep(pointer, [offs], source_etype=F32)


def load(builder, pointer, offs, kind: ir.Type = VECTOR):
    return builder.load(element(builder, pointer, offs), typ=kind, align=4)


def store(builder, value, pointer, offs):
    builder.store(value, element(builder, pointer, offs), align=4)


def load_masked(builder, pointer, mask, otherwise=ZERO):
    """Lanes outside the mask are not touched in memory, and are those of `otherwise`."""
    name = f"llvm.masked.load.{SUFFIX}.p0"
    return llvm_call(builder, name, VECTOR, pointer, ALIGN, mask, otherwise)


def store_masked(builder, value, pointer, mask):
    """Lanes outside the mask are not touched."""
    llvm_call(builder, f"llvm.masked.store.{SUFFIX}.p0", VOID, value, pointer, ALIGN, mask)


def fmuladd(builder, a, b, c):
    """a·b + c for vectors, rounded once where the CPU can."""
    return llvm_call(builder, f"llvm.fmuladd.{SUFFIX}", VECTOR, a, b, c)


def splat(builder, scalar):
    """One scalar in every lane."""
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, zeros)


def lanes_below(builder, count):
    """The mask of the lanes with a number below count."""
    return builder.icmp_signed("<", LANE_NUMBERS, splat(builder, count))


def on_stack(builder, vectors):
    """The address of room for so many vectors, until the function returns."""
    with builder.goto_entry_block():
        return _untyped(builder, builder.alloca(VECTOR, vectors))


@contextmanager
def loop(builder, stop, step, carried=()):
    """for index in range(0, stop, step), stop ≥ 1; leaves builder behind the loop.

    Yields (index, now). `now` is a list: the values of `carried` in the first round; what the body
    puts into it is there in the next round, and at last behind the loop.
    """
    before, (body, after) = builder.block, (builder.append_basic_block() for _ in range(2))
    builder.branch(body)
    builder.position_at_end(body)
    phis = [builder.phi(value.type) for value in (integer(0), *carried)]
    index, *now = phis
    yield index, now
    following = builder.add(index, integer(step))
    for phi, first, last in zip(phis, (integer(0), *carried), (following, *now), strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, stop), body, after)
    builder.position_at_end(after)
