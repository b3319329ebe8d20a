"""global_norm on the GPU: PROGRAMS partial sums of squares, then one program adds them in order.

    dp     |tile 0|tile 1| … |tile PROGRAMS|  …  |      a program takes every PROGRAMS-th tile
    work   [ Σ dp², Σ dp², … ]   in float64
    norm   √ Σ work

Reads N numbers, at the speed of memory.  Squares are added in float64, which holds the square of
any gradient, 1e-30 or 1e20, and which these chips do at the rate that memory delivers.
"""

import triton
import triton.language as tl

# Four for each of an H100's 132 multiprocessors, each with the loads of three tiles in flight while
# it works on a fourth: 8 KB of bf16 each, 96 KB a multiprocessor.
PROGRAMS = 528
STAGES = 4
BLOCK = 4096  # numbers of a tile, 16 for each of 256 threads


@triton.jit
def sum_of_squares_kernel(work_p, dp_p, N, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """work[program] = Σ dp² over the program's tiles."""
    acc = tl.zeros((BLOCK,), tl.float64)
    step = tl.num_programs(0).to(tl.int64) * BLOCK
    for first in tl.range(tl.program_id(0).to(tl.int64) * BLOCK, N, step, num_stages=STAGES):
        offs = first + tl.arange(0, BLOCK)
        dp = tl.load(dp_p + offs, mask=offs < N, other=0).to(tl.float64)
        acc += dp * dp
    tl.store(work_p + tl.program_id(0), tl.sum(acc, 0))


@triton.jit
def global_norm_kernel(norm_p, work_p, N, BLOCK: tl.constexpr):
    """norm = √ Σ work, N partial sums."""
    offs = tl.arange(0, BLOCK)
    total = tl.sum(tl.load(work_p + offs, mask=offs < N, other=0), 0)
    tl.store(norm_p, tl.sqrt(total).to(tl.float32))


def global_norm_workspace(**_: object) -> int:
    """A float64 for each program."""
    return PROGRAMS * 8


def global_norm(norm, dp, add, work):
    """norm (1,) = √(Σ dp²), dp (N,)."""
    (N,) = dp.shape
    programs = min(PROGRAMS, triton.cdiv(N, STAGES * BLOCK))
    sums = work.part(0, "fp64", programs)
    sum_of_squares_kernel[(programs,)](sums, dp, N, BLOCK=BLOCK, STAGES=STAGES, num_warps=8)
    global_norm_kernel[(1,)](norm, sums, programs, BLOCK=triton.next_power_of_2(PROGRAMS))
