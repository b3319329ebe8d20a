"""The weight gradient on the GPU: two groups of warps share a tile, a third sums the bias gradient.

    dw (O, C) = dyᵀ·x,   db (O,) = Σ_N dy;   dy (N, O), x (N, C)

The sum is long, N = 65,536, so a tile's sums are stored rarely and nothing need hide that: no turns
as in gpu.py.  A tile is as large as the registers of two consumers hold, 128×256, for then each
number that comes from memory is multiplied most often:

    producer     64 rows of dy (two tiles of 64×64) and of x (64×256), STAGES ahead
    consumer 0   sums of the tile's upper 64 rows, from the first tile of dy and all of x
    consumer 1   … the lower 64 rows, from the second
    adder        adds up the columns of both tiles of dy

All of dy passes through shared memory, and db needs nothing else: where a pass of its own over dy
took 57 µs on average, this makes a call of 0.51 ms 0.02 longer (O = 3,072, H200, 2026-11-24).

Where there are fewer tiles than multiprocessors, N is cut into pieces, and the pieces' sums are
added up afterwards, in order.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from backglass.device.hopper import (
    PROGRAMS,
    barriers,
    buffers,
    describe,
    load_tile,
    specialises,
    tiles_of,
)
from backglass.device.tiles import column_sums, sum_splits
from backglass.ops.matmul.ladder import v5_tma
from backglass.ops.matmul.ladder.v5_tma import GROUP

HALF_M, BLOCK_N, BLOCK_K = 64, 256, 64  # half a tile's rows, its columns, rows of dy and x
STAGES = 4  # of 48 KiB
# 65,536 registers for 3 groups of 128 threads: 168 each, of which the last, two warps that add and
# one that loads, gives some to the others.
REGISTERS, CONSUMER_REGISTERS, OTHER_REGISTERS = 168, 208, 96
# What `bench ops --tune` times beside them.
CANDIDATES = {
    ("d_matmul_w",): ({"STAGES": 3}, {"GROUP": 4}, {"GROUP": 16}, {"BLOCK_K": 32, "STAGES": 8}),
}

grouped_tile = gluon.jit(v5_tma.grouped_tile.fn)


@gluon.jit
def d_matmul_w_kernel(
    dw_p, db_p, dy_desc, x_desc, O, C, N, pieces, piece_rows,
    ADD: gl.constexpr, STAGES: gl.constexpr, GROUP: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, OTHER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """dw (pieces, O, C) and, unless db_p is None, db (pieces, O), both of this piece of N."""
    above, below = buffers(dy_desc, STAGES), buffers(dy_desc, STAGES)
    x_bufs = buffers(x_desc, STAGES)
    readers: gl.constexpr = 2 if db_p is None else 3
    full, empty = barriers(STAGES, 1), barriers(STAGES, readers)
    hopper.fence_async_shared()
    sizes = (O, C, N, pieces, piece_rows)
    gl.warp_specialize(
        [
            (consumer, (dw_p, above, x_bufs, full, empty, sizes, 0, ADD, STAGES, GROUP)),
            (consumer, (dw_p, below, x_bufs, full, empty, sizes, 1, ADD, STAGES, GROUP)),
            (adder, (db_p, above, below, x_bufs, full, empty, sizes, STAGES, GROUP)),
            (
                producer,
                (dy_desc, x_desc, above, below, x_bufs, full, empty, sizes, STAGES, GROUP),
            ),
        ],
        [4, 2, 1],
        [CONSUMER_REGISTERS, OTHER_REGISTERS, OTHER_REGISTERS],
    )


@gluon.jit
def works_of(sizes, HALF_M: gl.constexpr, BLOCK_N: gl.constexpr):
    return tiles_of(sizes[0], sizes[1], 2 * HALF_M, BLOCK_N) * sizes[3]


@gluon.jit
def place_of(work, sizes, HALF_M: gl.constexpr, BLOCK_N: gl.constexpr, GROUP: gl.constexpr):
    """(piece, first row and column of the tile of dw, first row of dy and x, the row after)."""
    O, C, N, _, piece_rows = sizes
    tiles = tiles_of(O, C, 2 * HALF_M, BLOCK_N)
    piece = work // tiles
    tile_m, tile_n = grouped_tile(work % tiles, O, C, 2 * HALF_M, BLOCK_N, GROUP)
    start = piece * piece_rows
    return piece, tile_m * 2 * HALF_M, tile_n * BLOCK_N, start, min(start + piece_rows, N)


@gluon.jit
def producer(
    dy_desc, x_desc, above, below, x_bufs, full, empty, sizes,
    STAGES: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """Loads what the others will read, in their order."""
    HALF_M: gl.constexpr = above.shape[2]
    BLOCK_K: gl.constexpr = x_bufs.shape[1]
    BLOCK_N: gl.constexpr = x_bufs.shape[2]
    nbytes: gl.constexpr = 2 * dy_desc.block_type.nbytes + x_desc.block_type.nbytes
    step = 0
    for work in range(gl.program_id(0), works_of(sizes, HALF_M, BLOCK_N), gl.num_programs(0)):
        _, m, n, start, end = place_of(work, sizes, HALF_M, BLOCK_N, GROUP)
        for k in range(start, end, BLOCK_K):
            s = step % STAGES
            mbarrier.wait(empty.index(s), (step // STAGES + 1) & 1)
            mbarrier.expect(full.index(s), nbytes)
            load_tile(dy_desc, [k, m], full.index(s), above.index(s))
            load_tile(dy_desc, [k, m + HALF_M], full.index(s), below.index(s))
            load_tile(x_desc, [k, n], full.index(s), x_bufs.index(s))
            step += 1


@gluon.jit
def consumer(
    dw_p, dy_bufs, x_bufs, full, empty, sizes, WHICH: gl.constexpr, ADD: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """The sums of the tiles' upper or lower halves."""
    O, C = sizes[0], sizes[1]
    HALF_M: gl.constexpr = dy_bufs.shape[2]
    BLOCK_K: gl.constexpr = x_bufs.shape[1]
    BLOCK_N: gl.constexpr = x_bufs.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    step = 0
    for work in range(gl.program_id(0), works_of(sizes, HALF_M, BLOCK_N), gl.num_programs(0)):
        piece, m, n, start, end = place_of(work, sizes, HALF_M, BLOCK_N, GROUP)
        acc = gl.zeros((HALF_M, BLOCK_N), gl.float32, layout)
        for k in range(start, end, BLOCK_K):
            s = step % STAGES
            mbarrier.wait(full.index(s), (step // STAGES) & 1)
            dy = dy_bufs.index(s).permute((1, 0))
            acc = hopper.warpgroup_mma(dy, x_bufs.index(s), acc, is_async=True)
            acc = hopper.warpgroup_mma_wait(1, deps=(acc,))  # all products but this step's
            mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=k > start)
            step += 1
        acc = hopper.warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES))
        left, right = acc.reshape((HALF_M, 2, BLOCK_N // 2)).permute((0, 2, 1)).split()
        m += WHICH * HALF_M
        store_sums(left, dw_p, piece, m, n, O, C, ADD)
        store_sums(right, dw_p, piece, m, n + BLOCK_N // 2, O, C, ADD)


@gluon.jit
def store_sums(acc, dw_p, piece, m, n, O, C, ADD: gl.constexpr):
    """acc to dw[piece, m …, n …], or onto it."""
    layout: gl.constexpr = acc.type.layout
    rows = m + gl.arange(0, acc.shape[0], gl.SliceLayout(1, layout))
    cols = n + gl.arange(0, acc.shape[1], gl.SliceLayout(0, layout))
    mask = (rows < O)[:, None] & (cols < C)[None, :]
    offs = (piece * O + rows).to(gl.int64)[:, None] * C + cols[None, :]
    if ADD:
        acc += gl.load(dw_p + offs, mask=mask, other=0).to(gl.float32)
    gl.store(dw_p + offs, acc.to(dw_p.dtype.element_ty), mask=mask)


@gluon.jit
def adder(
    db_p, above, below, x_bufs, full, empty, sizes, STAGES: gl.constexpr, GROUP: gl.constexpr
):
    """The sums of dy's columns, by the programs whose tile is the first of its row."""
    if db_p is not None:
        O = sizes[0]
        HALF_M: gl.constexpr = above.shape[2]
        BLOCK_K: gl.constexpr = x_bufs.shape[1]
        BLOCK_N: gl.constexpr = x_bufs.shape[2]
        layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [2, 1], [1, 0])
        step = 0
        for work in range(gl.program_id(0), works_of(sizes, HALF_M, BLOCK_N), gl.num_programs(0)):
            piece, m, n, start, end = place_of(work, sizes, HALF_M, BLOCK_N, GROUP)
            upper = fold(gl.zeros((BLOCK_K, HALF_M), gl.float32, layout))
            lower = fold(gl.zeros((BLOCK_K, HALF_M), gl.float32, layout))
            for _ in range(start, end, BLOCK_K):
                s = step % STAGES
                mbarrier.wait(full.index(s), (step // STAGES) & 1)
                if n == 0:
                    upper += fold(above.index(s).load(layout).to(gl.float32))
                    lower += fold(below.index(s).load(layout).to(gl.float32))
                mbarrier.arrive(empty.index(s))
                step += 1
            if n == 0:
                store_bias(upper, db_p + piece * O, m, O)
                store_bias(lower, db_p + piece * O, m + HALF_M, O)


@gluon.jit
def fold(x):
    """A quarter of the rows: the sums of four that one thread holds."""
    QUARTER: gl.constexpr = x.shape[0] // 4
    x = x.reshape((2, 2 * QUARTER, x.shape[1])).permute((1, 2, 0))
    first, second = x.split()
    x = (first + second).reshape((2, QUARTER, x.shape[1])).permute((1, 2, 0))
    first, second = x.split()
    return first + second


@gluon.jit
def store_bias(acc, db_p, m, O):
    cols = m + gl.arange(0, acc.shape[1], gl.SliceLayout(0, acc.type.layout))
    gl.store(db_p + cols, gl.sum(acc, 0), mask=cols < O)


def d_matmul_w_workspace(*, N: int, C: int, O: int, dtype: str, **_: object) -> int:
    """The pieces' sums and, for db, their sums of dy's columns; or what the rung below needs."""
    below = v5_tma.d_matmul_w_workspace(N=N, C=C, O=O, dtype=dtype)
    if dtype != "bf16":
        return below
    pieces, _ = v5_tma.splits(O, C, N, 2)
    return max(below, for_pieces(pieces, O, C) + 4 * pieces * O)


def for_pieces(pieces: int, O: int, C: int) -> int:
    """Bytes of the workspace for the pieces' dw; one piece goes to dw itself."""
    return -(-4 * pieces * O * C // 256) * 256 if pieces > 1 else 0


def d_matmul_w(dw, db, dy, x, add, work):
    """dw (O, C) (+)= dyᵀ·x, db (O,) (+)= Σ_N dy; dy (N, O), x (N, C)."""
    if not specialises(dy, x):
        v5_tma.d_matmul_w(dw, db, dy, x, add, work)
        return
    (N, O), (_, C) = dy.shape, x.shape
    pieces, piece_rows = v5_tma.splits(O, C, N, 2)
    sums = dw if pieces == 1 else work.part(0, "fp32", pieces, O, C)
    bias = None if db is None else work.part(for_pieces(pieces, O, C), "fp32", pieces, O)
    tiles = triton.cdiv(O, 2 * HALF_M) * triton.cdiv(C, BLOCK_N)
    d_matmul_w_kernel[(min(PROGRAMS, tiles * pieces),)](
        sums, bias, describe(dy, BLOCK_K, HALF_M), describe(x, BLOCK_K, BLOCK_N),
        O, C, N, pieces, piece_rows, ADD=pieces == 1 and add[0], STAGES=STAGES, GROUP=GROUP,
        CONSUMER_REGISTERS=CONSUMER_REGISTERS, OTHER_REGISTERS=OTHER_REGISTERS,
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
    if pieces > 1:
        sum_splits(dw, sums, add[0])
    if bias:
        column_sums(db, bias, add[1])
