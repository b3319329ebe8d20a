"""Causal attention on Hopper, in Gluon: two groups of warps share the keys that a third loads.

The same algorithm as attention in gpu.py, there with its numbers.  What limits that one is the L2
cache: a program of 64 queries asks it for 16 KiB of k and v for every 64×64 scores, 5 TB/s in all.
Here a program has 128 queries:

    loader       q once; k and v of the next 64 keys, STAGES ahead
    taker 0      the upper 64 queries: scores, softmax, y
    taker 1      the lower 64

Two such programs on a multiprocessor: while one taker takes exponentials the tensor cores work for
the other three.  A taker's product p·v runs while its next scores are made.

360 TFLOP/s, gpu.py's kernel 311, cuDNN 348 (B=64, NH=12, T=1024, bf16, H200, 2026-11-24).

For head size 64 and T a multiple of 128, in bf16; everything else is gpu.py's.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from backglass.device.hopper import barriers, buffers, describe, load_tile
from backglass.ops.attention.gpu_backward import HS, matrix, store_rows

ROWS = gl.constexpr(64)  # queries of a taker, of which there are two
KEYS = gl.constexpr(64)  # of a tile
STAGES = 4  # of k and v, 16 KiB each time
# 32,768 registers for 3 groups of 128 threads: 80 each, of which the loader gives most away
REGISTERS, TAKER_REGISTERS, LOADER_REGISTERS = 80, 104, 24
LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def attention_specialised_kernel(
    y_p, lse_p, qkv_desc, scale, T: gl.constexpr, NH: gl.constexpr, STAGES: gl.constexpr,
    TAKER_REGISTERS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """y and lse of 128 queries of one head; scale: of scores whose powers of 2 are taken."""
    q = buffers(qkv_desc, 2)
    asked = barriers(1, 1)
    ring = (buffers(qkv_desc, STAGES), buffers(qkv_desc, STAGES))
    full, empty = barriers(STAGES, 1), barriers(STAGES, 2)
    hopper.fence_async_shared()
    end = (y_p, lse_p, scale)
    gl.warp_specialize(
        [
            (taker, (end, q, asked, ring, full, empty, T, NH, 0, STAGES)),
            (taker, (end, q, asked, ring, full, empty, T, NH, 1, STAGES)),
            (loader, (qkv_desc, q, asked, ring, full, empty, T, NH, STAGES)),
        ],
        [4, 1],
        [TAKER_REGISTERS, LOADER_REGISTERS],
    )


@gluon.jit
def place(T: gl.constexpr):
    """(head, first query) of this program; the longest rows of tiles first."""
    blocks = T // (2 * ROWS)
    pid = gl.program_id(0)
    return pid // blocks, (blocks - 1 - pid % blocks) * 2 * ROWS


@gluon.jit
def loader(
    qkv_desc, q, asked, ring, full, empty, T: gl.constexpr, NH: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    head, first = place(T)
    t0 = head // NH * T
    at_q = head % NH * HS
    nbytes: gl.constexpr = qkv_desc.block_type.nbytes
    mbarrier.expect(asked.index(0), 2 * nbytes)
    load_tile(qkv_desc, [t0 + first, at_q], asked.index(0), q.index(0))
    load_tile(qkv_desc, [t0 + first + ROWS, at_q], asked.index(0), q.index(1))
    step = 0
    for n in range(0, first + 2 * ROWS, KEYS):
        s = step % STAGES
        mbarrier.wait(empty.index(s), (step // STAGES + 1) & 1)
        mbarrier.expect(full.index(s), 2 * nbytes)
        load_tile(qkv_desc, [t0 + n, at_q + NH * HS], full.index(s), ring[0].index(s))
        load_tile(qkv_desc, [t0 + n, at_q + 2 * NH * HS], full.index(s), ring[1].index(s))
        step += 1


@gluon.jit
def taker(
    end, q_bufs, asked, ring, full, empty, T: gl.constexpr, NH: gl.constexpr,
    WHICH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """64 queries, the scores of 64 keys at a time."""
    y_p, lse_p, scale = end
    head, first = place(T)
    first += WHICH * ROWS
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    along: gl.constexpr = gl.SliceLayout(1, layout)
    rows = gl.arange(0, ROWS, along)
    keys = gl.arange(0, KEYS, gl.SliceLayout(0, layout))
    zeros = gl.zeros((ROWS, KEYS), gl.float32, layout)
    acc = hopper.warpgroup_mma_init(gl.zeros((ROWS, HS), gl.float32, layout))
    m_i = gl.full((ROWS,), float("-inf"), gl.float32, along)
    l_i = gl.zeros((ROWS,), gl.float32, along)
    q = q_bufs.index(WHICH)
    mbarrier.wait(asked.index(0), 0)
    step = 0
    for n in range(0, first + ROWS, KEYS):
        s = step % STAGES
        mbarrier.wait(full.index(s), (step // STAGES) & 1)
        k = ring[0].index(s).permute((1, 0))
        scores = hopper.warpgroup_mma(q, k, zeros, use_acc=False, is_async=True)
        acc, scores = hopper.warpgroup_mma_wait(0, deps=(acc, scores))
        mbarrier.arrive(empty.index((step + STAGES - 1) % STAGES), pred=n > 0)
        if n == first:
            scores = gl.where(keys[None, :] <= rows[:, None], scores, float("-inf"))
        m_new = gl.maximum(m_i, gl.max(scores, 1) * scale)
        p = gl.exp2(scores * scale - m_new[:, None])
        shrink = gl.exp2(m_i - m_new)
        l_i = l_i * shrink + gl.sum(p, 1)
        m_i = m_new
        left = gl.convert_layout(p.to(gl.bfloat16), gl.DotOperandLayout(0, layout, 2))
        acc *= shrink[:, None]
        acc = hopper.warpgroup_mma(left, ring[1].index(s), acc, is_async=True)
        step += 1
    acc = hopper.warpgroup_mma_wait(0, deps=(acc,))
    to_p = y_p + (head // NH * T + first).to(gl.int64) * NH * HS + head % NH * HS
    store_rows(acc / l_i[:, None], to_p, NH * HS)
    gl.store(lse_p + head * T + first + rows, (m_i + gl.log2(l_i)) * LN2)


def launch(y, lse, qkv, scale):
    """y (B, T, NH, HS) and lse (B, NH, T) from qkv (B, T, 3, NH, HS); scale: log2(e)/√HS."""
    B, T, NH, _ = y.shape
    attention_specialised_kernel[(B * NH * T // 128,)](
        y, lse, describe(matrix(qkv), 64, 64), scale, T=T, NH=NH, STAGES=STAGES,
        TAKER_REGISTERS=TAKER_REGISTERS, LOADER_REGISTERS=LOADER_REGISTERS,
        num_warps=4, maxnreg=REGISTERS,
    )  # fmt: skip
