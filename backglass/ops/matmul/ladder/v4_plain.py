"""matmul on the GPU, plain Triton: pointers and tl.dot, one kernel for all orientations by strides.

    matmul       y  (N, O) = x  (N, C)·wᵀ (C, O) + b        out[m, n] = Σ_k a[m, k]·b[k, n]
    d_matmul_x   dx (N, C) = dy (N, O)·w  (O, C)            M×K times K×N, tile by tile:
    d_matmul_w   dw (O, C) = dyᵀ(O, N)·x  (N, C)
                                                                    BLOCK_N
                 K                        +---- b ----+-            ┌─────┐
           +-----------+                  |   |tile|  | K           │     │
    BLOCK_M| a  tile → |                  |   | ↓  |  |       ──────┼─────┤
           +-----------+                  +---+----+--+             │ acc │  in registers, fp32

A program keeps a BLOCK_M×BLOCK_N tile of sums in registers and walks along K: each number of a tile
of a is used BLOCK_N times and each of b BLOCK_M times once it is on the chip.  Programs that run at
the same time should share what they read, so tiles are visited in groups of GROUP rows of tiles.

The weight gradient is short and wide: 768×768 outputs are 36 tiles for 132 multiprocessors, each a
sum over 65,536 tokens.  There K is cut into `splits` pieces: every piece writes its own fp32 sum to
workspace and `sum_splits` adds the pieces in order, the same bits on every run.

An epilogue works on the sums while they are in registers: gelu and its derivative cost no pass over
memory of their own, only the reading or writing of `pre`.
"""

import triton
import triton.language as tl

from backglass.device.tiles import column_sums, power_of_2, store, sum_splits
from backglass.ops.gelu.gpu import d_gelu_of, gelu_of

GROUP = 8  # rows of tiles visited together: 8 rows of a and 8 columns of b fit the L2 cache
PROGRAMS = 264  # that K is split for: two for each of an H100's 132 multiprocessors
LEAST_K = 1024  # of a piece: shorter ones cost more in partial sums than they gain
# The bias gradient's tiles and programs: 3.8 TB/s at O = 3072 (65,536 rows, bf16, H200, 2026-11-24)
BIAS_ROWS, BIAS_COLUMNS, BIAS_PROGRAMS, BIAS_STAGES = 8, 1024, 264, 3

# (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages)
TILES = {2: (128, 128, 64, 8, 3), 4: (64, 64, 32, 4, 3)}  # by bytes of an operand's number
# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("matmul", "matmul_gelu", "d_matmul_x", "d_matmul_x_gelu", "d_matmul_w"): (
        {"TILES": {2: (128, 128, 64, 4, 3)}}, {"TILES": {2: (128, 128, 64, 8, 4)}},
        {"TILES": {2: (128, 256, 64, 8, 3)}}, {"TILES": {2: (128, 128, 32, 4, 4)}},
    ),
}  # fmt: skip


@triton.jit
def as_it_is(acc, pre_p, offs, mask):
    return acc


@triton.jit
def keep_and_gelu(acc, pre_p, offs, mask):
    store(pre_p + offs, acc, mask, False)
    return gelu_of(acc)


@triton.jit
def times_d_gelu(acc, pre_p, offs, mask):
    return acc * d_gelu_of(tl.load(pre_p + offs, mask=mask, other=0).to(tl.float32))


@triton.jit
def matmul_kernel(
    out_p, pre_p, a_p, b_p, bias_p, M, N, K, k_piece,
    stride_am, stride_ak, stride_bk, stride_bn,
    EPILOGUE: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = grouped_tile(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    first = tl.program_id(1) * k_piece
    last = tl.minimum(first + k_piece, K)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the edge are read from inside and never stored.
    safe_m = tl.where(offs_m < M, offs_m, 0).to(tl.int64)
    safe_n = tl.where(offs_n < N, offs_n, 0).to(tl.int64)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(first, last, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        in_k = offs_k < last
        offs_k = offs_k.to(tl.int64)
        a = tl.load(
            a_p + safe_m[:, None] * stride_am + offs_k[None, :] * stride_ak,
            mask=in_k[None, :], other=0,
        )  # fmt: skip
        b = tl.load(
            b_p + offs_k[:, None] * stride_bk + safe_n[None, :] * stride_bn,
            mask=in_k[:, None], other=0,
        )  # fmt: skip
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if bias_p is not None:
        acc += tl.load(bias_p + safe_n).to(tl.float32)[None, :]
    mask = (offs_m < M)[:, None] & (offs_n < N)[None, :]
    offs = (
        tl.program_id(1).to(tl.int64) * M * N + offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
    )
    store(out_p + offs, EPILOGUE(acc, pre_p, offs, mask), mask, ADD)


@triton.jit
def grouped_tile(
    pid, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """(row, column) of the pid-th tile: GROUP rows of tiles, column by column, then the next."""
    rows, columns = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group = pid // (GROUP * columns)
    height = tl.minimum(rows - group * GROUP, GROUP)
    inside = pid % (GROUP * columns)
    return group * GROUP + inside % height, inside // height


@triton.jit
def bias_gradient_kernel(
    part_p, dy_p, N, O, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr
):
    """part[pid] = the sum over every num_programs-th block of ROWS rows of dy (N, O)."""
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    step = tl.num_programs(0) * ROWS
    for first in tl.range(tl.program_id(0) * ROWS, N, step, num_stages=STAGES):
        rows = first + tl.arange(0, ROWS)
        mask = (rows < N)[:, None] & (cols < O)[None, :]
        dy = tl.load(dy_p + rows.to(tl.int64)[:, None] * O + cols[None, :], mask=mask, other=0)
        acc += tl.sum(dy.to(tl.float32), 0)
    tl.store(part_p + tl.program_id(0) * O + cols, acc, mask=cols < O)


def matmul(y, x, w, b, add):
    """y (N, O) = x (N, C)·wᵀ + b; w (O, C), b (O,) or None."""
    (N, C), (O, _) = x.shape, w.shape
    product(y, x, w, b, (N, O, C), (C, 1), (1, C), False)


def d_matmul_x(dx, dy, w, add):
    """dx (N, C) (+)= dy (N, O)·w (O, C)."""
    (N, O), (_, C) = dy.shape, w.shape
    product(dx, dy, w, None, (N, C, O), (O, 1), (C, 1), add[0])


def matmul_gelu(pre, y, x, w, b, add):
    """pre (N, O) = x (N, C)·wᵀ + b and y = gelu(pre)."""
    (N, C), (O, _) = x.shape, w.shape
    product(y, x, w, b, (N, O, C), (C, 1), (1, C), False, epilogue=keep_and_gelu, pre=pre)


def d_matmul_x_gelu(dpre, dy, w, pre, add):
    """dpre (N, C) = (dy (N, O)·w (O, C)) ⊙ gelu'(pre)."""
    (N, O), (_, C) = dy.shape, w.shape
    product(dpre, dy, w, None, (N, C, O), (O, 1), (C, 1), False, epilogue=times_d_gelu, pre=pre)


def d_matmul_w_workspace(*, N: int, C: int, O: int, dtype: str, **_: object) -> int:
    """The pieces' sums, or the bias gradient's partial rows, which come after them."""
    pieces, _ = splits(O, C, N, 2 if dtype == "bf16" else 4)
    return max(pieces * O * C * 4 if pieces > 1 else 0, bias_programs(N) * O * 4)


def d_matmul_w(dw, db, dy, x, add, work):
    """dw (O, C) (+)= dyᵀ·x, db (O,) (+)= Σ_N dy; dy (N, O), x (N, C)."""
    (N, O), (_, C) = dy.shape, x.shape
    pieces, k_piece = splits(O, C, N, dy.dtype.itemsize)
    if pieces == 1:
        product(dw, dy, x, None, (O, C, N), (1, O), (C, 1), add[0])
    else:
        part = work.part(0, "fp32", pieces, O, C)
        product(part, dy, x, None, (O, C, N), (1, O), (C, 1), False, pieces, k_piece)
        sum_splits(dw, part, add[0])
    if db is not None:
        bias_gradient(db, dy, add[1], work)


def bias_gradient(db, dy, add, work):
    """db (O,) (+)= Σ_N dy (N, O), in two steps: a few hundred partial rows, then their sum."""
    N, O = dy.shape
    programs = bias_programs(N)
    part = work.part(0, "fp32", programs, O)
    block = min(BIAS_COLUMNS, power_of_2(O))
    grid = (programs, triton.cdiv(O, block))
    bias_gradient_kernel[grid](part, dy, N, O, ROWS=BIAS_ROWS, BLOCK=block, STAGES=BIAS_STAGES)
    column_sums(db, part, add)


def bias_programs(N: int) -> int:
    """Partial rows of the bias gradient."""
    return min(BIAS_PROGRAMS, triton.cdiv(N, 4 * BIAS_ROWS))


def splits(M: int, N: int, K: int, itemsize: int) -> tuple[int, int]:
    """(pieces that K is cut into, length of a piece): enough programs to fill the chip."""
    block_m, block_n, block_k, *_ = TILES[itemsize]
    tiles = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    pieces = max(1, min(PROGRAMS // tiles, K // LEAST_K))
    k_piece = triton.cdiv(triton.cdiv(K, pieces), block_k) * block_k
    return triton.cdiv(K, k_piece), k_piece


def product(
    out, a, b, bias, sizes, a_strides, b_strides, add, pieces=1, k_piece=None,
    epilogue=as_it_is, pre=None,
):  # fmt: skip
    """out (M, N) (+)= epilogue(a·b + bias); sizes (M, N, K), strides in elements of a (m, k) and
    b (k, n)."""
    M, N, K = sizes
    block_m, block_n, block_k, warps, stages = TILES[a.dtype.itemsize]
    grid = (triton.cdiv(M, block_m) * triton.cdiv(N, block_n), pieces)
    matmul_kernel[grid](
        out, pre, a, b, bias, M, N, K, k_piece or K, *a_strides, *b_strides,
        EPILOGUE=epilogue, ADD=add, PRECISION=a.precision, BLOCK_M=block_m, BLOCK_N=block_n,
        BLOCK_K=block_k, GROUP=GROUP, num_warps=warps, num_stages=stages,
    )  # fmt: skip
