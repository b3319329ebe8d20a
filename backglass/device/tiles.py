"""Pieces of Triton that the kernels of several ops share.

`_p` is a pointer, `offs` offsets, `acc` a sum in fp32.  Loads widen bf16 to fp32 at once; stores
round once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from backglass.device.gpu import Tensor

COLUMNS = 32  # that a program of column_sums adds up, so that 768 of them busy 24 programs …
ROWS = 128  # … with this many rows' loads under way; the time is latency, not bandwidth
ELEMENTS = 2048  # that a program of an element-wise kernel works on: 16 for each of 128 threads


@triton.jit
def store(p, value, mask, ADD: tl.constexpr):
    """*p = value, or *p += value; the sum is taken in fp32 and rounded once."""
    if ADD:
        value += tl.load(p, mask=mask, other=0).to(tl.float32)
    tl.store(p, value.to(p.dtype.element_ty), mask=mask)


@triton.jit
def column_sums_kernel(
    out_p, x_p, N, C, stride, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """out[c] (+)= Σ_n x[n, c] for a few hundred fp32 rows, in an order that N alone decides."""
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, N, ROWS):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < C)[None, :]
        acc += tl.load(x_p + rows[:, None] * stride + cols[None, :], mask=mask, other=0)
    store(out_p + cols, tl.sum(acc, 0), cols < C, ADD)


def column_sums(out: Tensor, x: Tensor, add: bool, first: int = 0) -> None:
    """out (C,) (+)= the sum over the rows of x (N, ≥ first + C), fp32, from column `first` on.

    The last step of a reduction in two: reads 4·N·C bytes.
    """
    (C,), (N, stride) = out.shape, x.shape
    x = x.part(4 * first, "fp32", N, stride)
    grid = (triton.cdiv(C, COLUMNS),)
    column_sums_kernel[grid](out, x, N, C, stride, add, ROWS=ROWS, BLOCK=COLUMNS)


@triton.jit
def sum_splits_kernel(out_p, part_p, SIZE, splits, ADD: tl.constexpr, BLOCK: tl.constexpr):
    """out (SIZE,) (+)= Σ_s part[s], in order.  Reads 4·splits·SIZE bytes."""
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for s in range(splits):
        acc += tl.load(part_p + s * SIZE + offs, mask=offs < SIZE, other=0)
    store(out_p + offs, acc, offs < SIZE, ADD)


def sum_splits(out, part, add):
    """out (M, N) (+)= the sum of part (pieces, M, N), fp32, in order."""
    pieces, M, N = part.shape
    sum_splits_kernel[(triton.cdiv(M * N, ELEMENTS),)](
        out, part, M * N, pieces, add, BLOCK=ELEMENTS
    )


def has_copy_engine() -> bool:
    """Whether descriptors pay: from Hopper on (before, Triton imitates them, in vast registers)."""
    if triton.knobs.runtime.interpret:
        return True
    return triton.runtime.driver.active.get_current_target().arch >= 90


def power_of_2(n: int, low: int = 1) -> int:
    """The smallest power of two ≥ n and ≥ low: what a tile's side must be."""
    return max(low, triton.next_power_of_2(n))
