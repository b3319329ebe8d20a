"""SIMD instructions on rows and single numbers, float32; simd_blocks.py has those on blocks.

`x, offs` is element `offs` of the C-contiguous array `x`, flattened; j runs from 0 to n.

    row_max(x, offs, n)                            maximum of n ≥ 1 floats; a NaN gives NaN
    row_dot(x, offs, y, offs, n)                   Σ x[j]·y[j]
    row_scale(out, offs, x, offs, n, fill, factor) out[j] = factor·x[j]; out may be x
    row_softmax(x, offs, n, fill, scale, shift)    x[j] = exp(scale·x[j] - shift); returns Σ x[j]
    row_d_softmax(p, offs, dp, offs, n, fill,      p[j] = exp(scale·p[j] - shift), p being scores
                  scale, shift, delta)             dp[j] = p[j]·(dp[j] - delta)·scale

    fexp(x)                                        exp(x) for a loop over floats, which vectorises
    fma(a, b, c)                                   a·b + c, in this order whatever the optimiser

What is stored at n ≤ j < fill is 0 (a causal row ends inside a tile). The two softmaxes read and
write whole vectors: fill rounded up to LANES must lie in the array. The others touch nothing
outside. Exponentials and scaled numbers below 2⁻¹⁰⁰ are stored as 0: beside a row's largest they
count for nothing, and denormal numbers make the matrix products that follow up to 30 times slower
(the head at N = 256 with logits up to ±120: 9.1 s against 0.77 s, Sapphire Rapids, 2026-11-22).

Why intrinsics: a maximum never vectorises, there is no vector exp, and in the loops that do
vectorise LLVM takes 8 lanes where the machine has 16 (exp: 0.47 against 0.68 ns a float, rows of
100), and what it makes of each costs 0.2 to 0.3 s to compile.
"""

import numpy as np
from llvmlite import ir
from numba import types

from backglass.device.host import inline
from backglass.device.vector_ir import (
    F32,
    I32,
    LANE_NUMBERS,
    LANES,
    SUFFIX,
    VECTOR,
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
    panel_width,
    splat,
    store,
    store_masked,
    typed,
)

f32, i32, i64 = types.float32, types.int32, types.int64


# ---------------------------------------------------------------- numbers


def _fma_plain(a, b, c) -> np.float32:
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


@instruction(_fma_plain)
def fma(typing_context, a, b, c):
    """a·b + c, rounded once where the CPU can. A call, so that no reassociation undoes it."""

    def write(builder, a, b, c):
        return llvm_call(builder, "llvm.fmuladd.f32", F32, a, b, c)

    return typed(f32, (f32, f32, f32), write)


def _bits_to_float_plain(i) -> np.float32:
    return np.int32(i).view(np.float32)


@instruction(_bits_to_float_plain)
def _bits_to_float(typing_context, i):
    """The float32 with the bits of the int32 i."""
    return typed(f32, (i32,), lambda builder, i: builder.bitcast(i, F32))


def _float_to_bits_plain(x) -> np.int32:
    return np.float32(x).view(np.int32)


@instruction(_float_to_bits_plain)
def _float_to_bits(typing_context, x):
    """The int32 with the bits of the float32 x."""
    return typed(i32, (f32,), lambda builder, x: builder.bitcast(x, I32))


_LOG2_E = np.float32(1.44269504)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.69314575), np.float32(1.4286068e-6)
_ROUND = np.float32(1.5 * 2**23)  # adding it leaves the nearest integer in the low bits
_ROUND_BITS = np.int32(0x4B400000)  # of _ROUND
_SMALLEST, _LARGEST = np.float32(-87.33654), np.float32(88.37626)  # exp(x), 2ⁿ stay normal
_POLYNOMIAL = (  # (exp(r) - 1 - r)/r² for |r| ≤ ln 2 / 2, highest power first; Cephes' expf
    np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3),
    np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1),
)  # fmt: skip
_ZERO, _ONE, _INFINITY = np.float32(0.0), np.float32(1.0), np.float32(np.inf)


@inline
def fexp(x):
    """exp(x), float32, ≤ 1 ulp for x in [-87.33, 88.37]; below 0, above inf; NaN stays NaN.

    x = n·ln 2 + r with |r| ≤ ln 2 / 2, so exp(x) = 2ⁿ·exp(r): 2ⁿ is n in the exponent bits, exp(r)
    a polynomial of degree 6. No branch, no table: a loop vectorises.
    """
    inside = _SMALLEST if x < _SMALLEST else (_LARGEST if x > _LARGEST else x)
    n = np.int32(_float_to_bits(fma(inside, _LOG2_E, _ROUND)) - _ROUND_BITS)
    n_float = np.float32(n)
    r = fma(n_float, -_LN_2_LOW, fma(n_float, -_LN_2_HIGH, inside))
    p = fma(_POLYNOMIAL[0], r, _POLYNOMIAL[1])  # a loop over them would not be unrolled in time
    p = fma(p, r, _POLYNOMIAL[2])
    p = fma(p, r, _POLYNOMIAL[3])
    p = fma(p, r, _POLYNOMIAL[4])
    p = fma(p, r, _POLYNOMIAL[5])
    p = fma(p, r * r, r) + _ONE
    y = p * _bits_to_float(np.int32((n + 127) << 23))
    return _ZERO if x < _SMALLEST else (_INFINITY if x > _LARGEST else y)


def _constant(value):
    return ir.Constant(VECTOR, [float(np.float32(value))] * LANES)


def _write_exp(builder, x):
    """fexp for one vector, but 0 below 2⁻¹⁰⁰, which also covers what is too small for 2ⁿ."""
    kind = ir.VectorType(I32, LANES)
    round_and_bias = _constant(_ROUND + 127)  # leaves n + 127, the exponent of 2ⁿ, in the low bits
    n_bits = fmuladd(builder, x, _constant(_LOG2_E), round_and_bias)
    n = builder.fsub(n_bits, round_and_bias)
    r = fmuladd(builder, n, _constant(-_LN_2_HIGH), x)
    r = fmuladd(builder, n, _constant(-_LN_2_LOW), r)
    p = _constant(_POLYNOMIAL[0])
    for c in _POLYNOMIAL[1:]:
        p = fmuladd(builder, p, r, _constant(c))
    p = builder.fadd(fmuladd(builder, p, builder.fmul(r, r), r), _constant(1))
    two_n = builder.shl(builder.bitcast(n_bits, kind), ir.Constant(kind, [23] * LANES))
    y = builder.fmul(p, builder.bitcast(two_n, VECTOR))
    y = builder.select(builder.fcmp_ordered(">", x, _constant(_LARGEST)), _constant(np.inf), y)
    return builder.select(builder.fcmp_ordered("<", x, _constant(-100 * np.log(2))), ZERO, y)


# ---------------------------------------------------------------- rows


def _row_max_plain(x, offs, n):
    return x.reshape(-1)[offs : offs + n].max()


@instruction(_row_max_plain)
def row_max(typing_context, x, offs, n):
    """The maximum of n ≥ 1 floats from element offs on; NaN if one of them is."""
    return typed(f32, (x, i64, i64), called("backglass_row_max", _write_max, F32))


def _write_max(builder, x, n):
    """Four maxima hide the latency. The last vector may overlap the one before: beyond the end it
    comes again."""

    def maximum(a, b):
        return llvm_call(builder, f"llvm.maximum.{SUFFIX}", VECTOR, a, b)

    start, x_0 = builder.block, splat(builder, load(builder, x, integer(0), F32))
    first = load_masked(builder, x, lanes_below(builder, n), x_0)
    last = builder.sub(n, integer(LANES))
    with builder.if_then(builder.icmp_signed(">=", last, integer(0))):
        with loop(builder, n, 4 * LANES, [first] * 4) as (offs, best):
            for i in range(4):
                here = builder.add(offs, integer(i * LANES))
                here = builder.select(builder.icmp_signed("<", here, last), here, last)
                best[i] = maximum(best[i], load(builder, x, here))
        best_of_4 = maximum(maximum(best[0], best[1]), maximum(best[2], best[3]))
        end = builder.block
    result = builder.phi(VECTOR)
    result.add_incoming(first, start)
    result.add_incoming(best_of_4, end)
    return llvm_call(builder, f"llvm.vector.reduce.fmaximum.{SUFFIX}", F32, result)


def _by_vectors(name, rows, write):
    """A function name(row…, n, fill, scalar…) that runs write(builder, addresses in the rows,
    scalars, mask of j < n, mask of j < fill) once a vector up to fill, and sums what it returns."""

    def body(builder, *args):
        n, fill = args[rows : rows + 2]
        scalars = [splat(builder, scalar) for scalar in args[rows + 2 :]]
        with loop(builder, fill, LANES, [ZERO]) as (offs, total):
            lanes = builder.add(splat(builder, offs), LANE_NUMBERS)
            masks = [builder.icmp_signed("<", lanes, splat(builder, end)) for end in (n, fill)]
            here = [element(builder, row, offs) for row in args[:rows]]
            total[0] = builder.fadd(total[0], write(builder, here, scalars, *masks))
        name, zero = f"llvm.vector.reduce.fadd.{SUFFIX}", ir.Constant(F32, 0.0)
        return llvm_call(builder, name, F32, zero, total[0], fastmath=["reassoc"])

    return called(name, body, F32)


def _row_dot_plain(x, x_offs, y, y_offs, n):
    return x.reshape(-1)[x_offs : x_offs + n] @ y.reshape(-1)[y_offs : y_offs + n]


@instruction(_row_dot_plain)
def row_dot(typing_context, x, x_offs, y, y_offs, n):
    """Σ x[j]·y[j] over j < n."""

    def write(builder, x, y, n):
        return _by_vectors("backglass_row_dot", 2, _write_dot)(builder, x, y, n, n)

    return typed(f32, (x, i64, y, i64, i64), write)


def _write_dot(builder, here, scalars, inside, stored):
    x, y = (load_masked(builder, row, inside) for row in here)
    return builder.fmul(x, y)


def _row_scale_plain(out, out_offs, x, x_offs, n, fill, factor):
    out, x = out.reshape(-1), x.reshape(-1)
    out[out_offs : out_offs + n] = factor * x[x_offs : x_offs + n]
    out[out_offs + n : out_offs + fill] = 0


@instruction(_row_scale_plain)
def row_scale(typing_context, out, out_offs, x, x_offs, n, fill, factor):
    """out[j] = factor·x[j] for j < n, 0 for n ≤ j < fill. `out` may be `x`."""
    write = _by_vectors("backglass_row_scale", 2, _write_scale)
    return typed(types.void, (out, i64, x, i64, i64, i64, f32), write)


def _write_scale(builder, here, scalars, inside, stored):
    (out_here, x_here), (factor,) = here, scalars
    value = builder.fmul(load_masked(builder, x_here, inside), factor)
    size = llvm_call(builder, f"llvm.fabs.{SUFFIX}", VECTOR, value)
    value = builder.select(builder.fcmp_ordered("<", size, _constant(2.0**-100)), ZERO, value)
    store_masked(builder, value, out_here, stored)
    return ZERO


def _row_softmax_plain(x, offs, n, fill, scale, shift):
    x[offs : offs + n] = np.exp(x[offs : offs + n] * scale - shift)
    x[offs + n : offs + panel_width(fill)] = 0
    return x[offs : offs + n].sum()


@instruction(_row_softmax_plain)
def row_softmax(typing_context, x, offs, n, fill, scale, shift):
    """x[j] = exp(scale·x[j] - shift) for j < n, 0 for n ≤ j < fill; returns the sum."""
    write = _by_vectors("backglass_row_softmax", 1, _write_softmax)
    return typed(f32, (x, i64, i64, i64, f32, f32), write)


def _write_softmax(builder, here, scalars, inside, stored):
    (x_here,), (scale, shift) = here, scalars
    e = _write_exp(builder, _scaled_score(builder, x_here, scale, shift))
    e = builder.select(inside, e, ZERO)
    store(builder, e, x_here, integer(0))
    return e


def _row_d_softmax_plain(p, p_offs, dp, dp_offs, n, fill, scale, shift, delta):
    width = panel_width(fill)
    p_row, dp_row = p[p_offs : p_offs + width], dp[dp_offs : dp_offs + width]
    p_row[:n] = np.exp(p_row[:n] * scale - shift)
    dp_row[:n] = p_row[:n] * (dp_row[:n] - delta) * scale
    p_row[n:] = dp_row[n:] = 0


@instruction(_row_d_softmax_plain)
def row_d_softmax(typing_context, p, p_offs, dp, dp_offs, n, fill, scale, shift, delta):
    """p[j] = exp(scale·p[j] - shift), dp[j] = p[j]·(dp[j] - delta)·scale; 0 for n ≤ j < fill."""
    write = _by_vectors("backglass_row_d_softmax", 2, _write_d_softmax)
    return typed(types.void, (p, i64, dp, i64, i64, i64, f32, f32, f32), write)


def _write_d_softmax(builder, here, scalars, inside, stored):
    (p_here, dp_here), (scale, shift, delta) = here, scalars
    p = _write_exp(builder, _scaled_score(builder, p_here, scale, shift))
    dp = builder.fsub(load(builder, dp_here, integer(0)), delta)
    dp = builder.fmul(builder.fmul(p, scale), dp)
    store(builder, builder.select(inside, p, ZERO), p_here, integer(0))
    store(builder, builder.select(inside, dp, ZERO), dp_here, integer(0))
    return ZERO


def _scaled_score(builder, here, scale, shift):
    """scale·x - shift."""
    return fmuladd(builder, load(builder, here, integer(0)), scale, builder.fneg(shift))
