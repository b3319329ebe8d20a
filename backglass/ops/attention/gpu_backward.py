"""The gradient of causal attention on Hopper, in Gluon: groups of warps that specialise.

The same algorithm as d_attention in gpu.py, there with its numbers: a program owns a head, walks
over its columns of tiles, keeps dk and dv of 128 keys in registers, and adds to dq in fp32.  What
one group of warps does there one thing after another, here four do at the same time:

    loader       k and v of the next column; q, dy, lse and D of the next rows, STAGES ahead
    maker 0      the tile's upper 64 keys: pᵀ, dsᵀ, and what they add to dv and dk
    maker 1      the lower 64
    gatherer     dq of the tile's rows from both makers' dsᵀ, which pass through shared memory

          q, dy ->  maker 0 --dsᵀ--> gatherer: dq += ds·k
          q, dy ->  maker 1 --dsᵀ-->

While one maker takes exponentials the tensor cores work for the others, and the sums of dq, which
go to the L2 cache and back, are waited for by the gatherer alone.

318 TFLOP/s, gpu.py's kernel 220, cuDNN 257 (B=64, NH=12, T=1024, bf16, H200, 2026-11-24).

For head size 64 and T a multiple of 128, in bf16; everything else is gpu.py's.
"""

import math

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from backglass.device.hopper import barriers, buffers, describe, has_gluon, load_tile

HS = gl.constexpr(64)
SCALE = gl.constexpr(1 / 8)  # 1/√HS
HALF = gl.constexpr(64)  # keys of a maker; a column has two
ROWS = gl.constexpr(64)  # queries of a tile
TILES = (64, 128, 16, 4, 1)  # queries, keys, warps, stages, programs of a multiprocessor
STAGES = TILES[3]  # of q and dy, 16 KiB each time
SPECIALISED = True  # False: gpu.py's plain kernels, beside which `bench ops --tune` times these
# 65,536 registers for 4 groups of 128 threads
REGISTERS, MAKER_REGISTERS, GATHERER_REGISTERS, LOADER_REGISTERS = 128, 192, 96, 32
LOG2E = gl.constexpr(1.4426950408889634)


@gluon.jit
def d_attention_specialised_kernel(
    dqkv_p, dq_p, qkv_desc, dy_desc, lse_p, d_p,
    HEADS: gl.constexpr, T: gl.constexpr, NH: gl.constexpr, GROUPS: gl.constexpr,
    STAGES: gl.constexpr,
    MAKER_REGISTERS: gl.constexpr, GATHERER_REGISTERS: gl.constexpr,
    LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """dk, dv of a group's columns of tiles, and their dq of T·HS numbers; head after head."""
    k = (buffers(qkv_desc, 2), buffers(qkv_desc, 2))  # of either maker, this column's and the next
    v = (buffers(qkv_desc, 2), buffers(qkv_desc, 2))
    column = (k, v, barriers(2, 1), barriers(2, 3))
    layout: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    lse = gl.allocate_shared_memory(gl.float32, [STAGES, ROWS], layout)
    d = gl.allocate_shared_memory(gl.float32, [STAGES, ROWS], layout)
    q, dy = buffers(qkv_desc, STAGES), buffers(qkv_desc, STAGES)
    row = (q, dy, lse, d, barriers(STAGES, 2), barriers(STAGES, 2))
    ds = (buffers(qkv_desc, 2), buffers(qkv_desc, 2))
    passed = (ds, barriers(2, 2), barriers(2, 1))
    hopper.fence_async_shared()
    walk: gl.constexpr = (T, NH, GROUPS, HEADS)
    gl.warp_specialize(
        [
            (maker, (dqkv_p, column, row, passed, walk, 0, STAGES)),
            (maker, (dqkv_p, column, row, passed, walk, 1, STAGES)),
            (gatherer, (dqkv_p, dq_p, column, passed, walk)),
            (loader, (qkv_desc, dy_desc, lse_p, d_p, column, row, walk, STAGES)),
        ],
        [4, 4, 1],
        [MAKER_REGISTERS, GATHERER_REGISTERS, LOADER_REGISTERS],
    )


@gluon.jit
def first_head(walk: gl.constexpr):
    """Of this program; its next is as many heads further as there are groups of programs."""
    return gl.program_id(0) // walk[2]


@gluon.jit
def rounds_of(walk: gl.constexpr):
    """Columns of a head that fall to one group, at most."""
    return (walk[0] // (2 * HALF) + walk[2] - 1) // walk[2]


@gluon.jit
def first_key(i, walk: gl.constexpr):
    """Of this program's i-th column.  There and back: groups of about as many tiles, since column
    j is T/128 − j high."""
    groups: gl.constexpr = walk[2]
    group = gl.program_id(0) % groups
    return (i * groups + group + i % 2 * (groups - 1 - 2 * group)) * 2 * HALF


@gluon.jit
def loader(
    qkv_desc, dy_desc, lse_p, d_p, column, row, walk: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """Loads what the others will read, in their order."""
    k, v, column_full, column_empty = column
    q, dy, lse_bufs, d_bufs, row_full, row_empty = row
    T: gl.constexpr = walk[0]
    NH: gl.constexpr = walk[1]
    lanes: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    offs = gl.arange(0, ROWS, lanes)
    tile = 0
    done = 0
    for head in range(first_head(walk), walk[3], gl.num_programs(0) // walk[2]):
        t0 = head // NH * T
        at_q = head % NH * HS
        at_k = at_q + NH * HS
        at_v = at_k + NH * HS
        for i in range(rounds_of(walk)):
            first = first_key(i, walk)
            if first < T:
                c = done % 2
                mbarrier.wait(column_empty.index(c), (done // 2 + 1) & 1)
                mbarrier.expect(column_full.index(c), 4 * qkv_desc.block_type.nbytes)
                full = column_full.index(c)
                load_tile(qkv_desc, [t0 + first, at_k], full, k[0].index(c))
                load_tile(qkv_desc, [t0 + first + HALF, at_k], full, k[1].index(c))
                load_tile(qkv_desc, [t0 + first, at_v], full, v[0].index(c))
                load_tile(qkv_desc, [t0 + first + HALF, at_v], full, v[1].index(c))
                done += 1
                for m in range(first, T, ROWS):
                    s = tile % STAGES
                    lse = gl.load(lse_p + head * T + m + offs) * LOG2E
                    d = gl.load(d_p + head * T + m + offs)
                    mbarrier.wait(row_empty.index(s), (tile // STAGES + 1) & 1)
                    mbarrier.expect(row_full.index(s), 2 * qkv_desc.block_type.nbytes)
                    load_tile(qkv_desc, [t0 + m, at_q], row_full.index(s), q.index(s))
                    load_tile(dy_desc, [t0 + m, at_q], row_full.index(s), dy.index(s))
                    lse_bufs.index(s).store(lse)
                    d_bufs.index(s).store(d)
                    mbarrier.arrive(row_full.index(s))
                    tile += 1


@gluon.jit
def maker(
    dqkv_p, column, row, passed, walk: gl.constexpr, WHICH: gl.constexpr, STAGES: gl.constexpr
):
    """dk and dv of half of a column's keys, and the gatherer's dsᵀ."""
    k_bufs, v_bufs, column_full, column_empty = column
    row_full, row_empty = row[4], row[5]
    T: gl.constexpr = walk[0]
    NH: gl.constexpr = walk[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, ROWS, 16])
    zeros = gl.zeros((HALF, ROWS), gl.float32, layout)
    tile = 0
    done = 0
    for head in range(first_head(walk), walk[3], gl.num_programs(0) // walk[2]):
        for i in range(rounds_of(walk)):
            first = first_key(i, walk)
            if first < T:
                c = done % 2
                mbarrier.wait(column_full.index(c), (done // 2) & 1)
                done += 1
                k = k_bufs[WHICH].index(c)
                v = v_bufs[WHICH].index(c)
                dk = gl.zeros((HALF, HS), gl.float32, layout)
                dv = gl.zeros((HALF, HS), gl.float32, layout)
                if WHICH == 1:  # the column's first queries are before all of these keys
                    mbarrier.wait(row_full.index(tile % STAGES), (tile // STAGES) & 1)
                    mbarrier.arrive(row_empty.index(tile % STAGES))
                    hand_on(zeros.to(gl.bfloat16), passed, WHICH, tile)
                    tile += 1
                for m in range(first + WHICH * HALF, T, ROWS):
                    diagonal = m == first + WHICH * HALF
                    dk, dv = d_tile(dk, dv, k, v, row, passed, tile, diagonal, WHICH, STAGES)
                    tile += 1
                mbarrier.arrive(column_empty.index(c))
                to_p = dqkv_p + (head // NH * T + first + WHICH * HALF).to(gl.int64) * 3 * NH * HS
                store_rows(dk * SCALE, to_p + (NH + head % NH) * HS, 3 * NH * HS)  # 3
                store_rows(dv, to_p + (2 * NH + head % NH) * HS, 3 * NH * HS)


@gluon.jit
def d_tile(
    dk, dv, k, v, row, passed, tile, diagonal, WHICH: gl.constexpr, STAGES: gl.constexpr
):  # fmt: skip
    """What a tile of queries adds to dk and dv of a maker's keys.

    It is held transposed, keys × queries: so pᵀ and dsᵀ are in registers what the products for dv
    and dk want on their left.
    """
    q_bufs, dy_bufs, lse_bufs, d_bufs, full, empty = row
    layout: gl.constexpr = dk.type.layout
    left: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    along: gl.constexpr = gl.SliceLayout(0, layout)
    keys = gl.arange(0, HALF, gl.SliceLayout(1, layout))
    queries = gl.arange(0, ROWS, along)
    zeros = gl.zeros((HALF, ROWS), gl.float32, layout)
    s = tile % STAGES
    mbarrier.wait(full.index(s), (tile // STAGES) & 1)
    q = q_bufs.index(s)
    dy = dy_bufs.index(s)
    scores = hopper.warpgroup_mma(k, q.permute((1, 0)), zeros, use_acc=False, is_async=True)
    dp = hopper.warpgroup_mma(v, dy.permute((1, 0)), zeros, use_acc=False, is_async=True)  # 1
    lse = lse_bufs.index(s).load(along)
    scores = hopper.warpgroup_mma_wait(1, deps=(scores,))
    p = gl.exp2(scores * (SCALE * LOG2E) - lse[None, :])  # 5
    if diagonal:
        p = gl.where(keys[:, None] <= queries[None, :], p, 0.0)
    pt = gl.convert_layout(p.to(gl.bfloat16), left)
    d = d_bufs.index(s).load(along)
    dp = hopper.warpgroup_mma_wait(0, deps=(dp,))
    dv = hopper.warpgroup_mma(pt, dy, dv, is_async=True)  # 1
    ds = (p * (dp - d[None, :])).to(gl.bfloat16)  # 2
    hand_on(ds, passed, WHICH, tile)
    dst = gl.convert_layout(ds, left)
    dk = hopper.warpgroup_mma(dst, q, dk, is_async=True)  # 3
    dv, dk, pt, dst = hopper.warpgroup_mma_wait(0, deps=(dv, dk, pt, dst))
    mbarrier.arrive(empty.index(s))
    return dk, dv


@gluon.jit
def hand_on(ds, passed, WHICH: gl.constexpr, tile):
    """dsᵀ of a tile to the gatherer."""
    bufs, full, empty = passed
    b = tile % 2
    mbarrier.wait(empty.index(b), (tile // 2 + 1) & 1)
    bufs[WHICH].index(b).store(ds)
    hopper.fence_async_shared()
    mbarrier.arrive(full.index(b))


@gluon.jit
def gatherer(dqkv_p, dq_p, column, passed, walk: gl.constexpr):
    """dq: of every tile the product of both makers' ds with k, added to what is there."""
    k_bufs, _, column_full, column_empty = column
    ds_bufs, ds_full, ds_empty = passed
    T: gl.constexpr = walk[0]
    NH: gl.constexpr = walk[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HS, 16])
    zeros = gl.zeros((ROWS, HS), gl.float32, layout)
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    cols = gl.arange(0, HS, gl.SliceLayout(0, layout))
    dq_p += gl.program_id(0).to(gl.int64) * T * HS
    offs = rows[:, None] * HS + cols[None, :]
    tile = 0
    done = 0
    for head in range(first_head(walk), walk[3], gl.num_programs(0) // walk[2]):
        for i in range(rounds_of(walk)):
            first = first_key(i, walk)
            if first < T:
                c = done % 2
                mbarrier.wait(column_full.index(c), (done // 2) & 1)
                done += 1
                to_p = dqkv_p + (head // NH * T).to(gl.int64) * 3 * NH * HS + head % NH * HS
                for m in range(first, T, ROWS):
                    b = tile % 2
                    # Every thread reads what it has written itself.
                    dq = gl.load(dq_p + m * HS + offs, mask=(offs >= 0) & (i > 0), other=0.0)
                    mbarrier.wait(ds_full.index(b), (tile // 2) & 1)
                    ds0 = ds_bufs[0].index(b).permute((1, 0))
                    ds1 = ds_bufs[1].index(b).permute((1, 0))
                    acc = hopper.warpgroup_mma(
                        ds0, k_bufs[0].index(c), zeros, use_acc=False, is_async=True
                    )
                    acc = hopper.warpgroup_mma(ds1, k_bufs[1].index(c), acc, is_async=True)
                    acc = hopper.warpgroup_mma_wait(0, deps=(acc,))
                    mbarrier.arrive(ds_empty.index(b))
                    dq += acc * SCALE  # 3
                    if walk[2] == 1 and m < first + 2 * HALF:
                        store_rows(dq, to_p + m * 3 * NH * HS, 3 * NH * HS)
                    else:
                        gl.store(dq_p + m * HS + offs, dq)
                    tile += 1
                mbarrier.arrive(column_empty.index(c))


@gluon.jit
def store_rows(x, to_p, stride):
    """64 rows of a head, `stride` numbers apart; in 16 bytes for each thread."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    x = gl.convert_layout(x.to(gl.bfloat16), layout)
    rows = gl.arange(0, x.shape[0], gl.SliceLayout(1, layout))
    cols = gl.arange(0, x.shape[1], gl.SliceLayout(0, layout))
    gl.store(to_p + rows[:, None] * stride + cols[None, :], x)


def specialises(dtype: str, HS: int, T: int) -> bool:
    """Whether this kernel can."""
    return SPECIALISED and dtype == "bf16" and HS == 64 and T % 128 == 0 and has_gluon()


def launch(dqkv, dq, qkv, dy, lse, d, groups):
    """dqkv (B, T, 3, NH, HS) of all heads; dq (programs, part) is scratch."""
    B, T, _, NH, _ = qkv.shape
    d_attention_specialised_kernel[(dq.shape[0],)](
        dqkv, dq, describe(matrix(qkv), 64, 64), describe(matrix(dy), 64, 64), lse, d,
        HEADS=B * NH, T=T, NH=NH, GROUPS=groups, STAGES=STAGES,
        MAKER_REGISTERS=MAKER_REGISTERS, GATHERER_REGISTERS=GATHERER_REGISTERS,
        LOADER_REGISTERS=LOADER_REGISTERS, num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip


def matrix(x):
    """x (B, T, …) as (B·T, …)."""
    return x.part(0, "bf16", x.shape[0] * x.shape[1], math.prod(x.shape[2:]))
