"""Causal self-attention without the (T, T) matrix, and its gradient, on the GPU.

FlashAttention-2 (Dao, 2023, arXiv 2307.08691) in plain Triton.  Scores exist one tile at a time, in
registers; tiles above the diagonal are never touched:

               keys ->
    queries  +-----+-----+-----+    #      the whole tile counts
       |     |  d  |     |     |    d      on the diagonal: future keys are masked
       v     +-----+-----+-----+
             |  #  |  d  |     |    attention    a program is a row of tiles: q stays, k, v pass
             +-----+-----+-----+    d_attention  a program walks over a head's columns of tiles,
             |  #  |  #  |  d  |                 one by one: k, v, dk, dv stay, q, dy, dq pass
             +-----+-----+-----+

    attention     reads qkv, writes y and lse: 4·B·T·NH·HS numbers
    d_attention   reads qkv and y once, dy twice, writes dqkv: 9·B·T·NH·HS numbers

GPT-2's own case on Hopper, bf16 and head size 64, is computed by the same algorithm in Gluon, where
groups of warps have tasks of their own: gpu_forward.py, gpu_backward.py.

q, k, v, dq, dk, dv lie packed in (B, T, 3, NH, HS) and are read and written there, no permutes.

The backward recomputes a tile once and uses it for dq, dk and dv: five products, where a kernel for
dk, dv and another for dq would need seven.  Each row of dq then is a sum over columns of tiles.
Atomic additions would come in another order on every run; here a program owns a head, keeps its
dq in fp32 in a piece of `work` that only it writes, T·HS numbers that stay in the L2 cache, and
adds to it column after column.  With the tile on the diagonal a row of dq is complete.  Where there
are fewer heads than multiprocessors, `groups` programs share a head's columns, each with a dq of
its own, and sum_dq adds these up in order.
"""

import math

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from backglass.device.tiles import has_copy_engine, power_of_2
from backglass.ops.attention import gpu_backward, gpu_forward
from backglass.ops.scores.gpu import dtype_of, heads_in, load_rows, store_rows

LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = 2^(x·log2 e): the hardware has only exp2
LN2 = tl.constexpr(0.6931471805599453)
PROCESSORS = 132  # multiprocessors of an H100; the backward's programs are as many as they hold

# (BLOCK_M queries, BLOCK_N keys, warps, stages) by (dtype, HS > 64).  In bf16 at B = 64, NH = 12,
# T = 1024, HS = 64 (H200, 2026-11-24): forward 311 TFLOP/s, 306 with three stages, 294 with 128
# queries; backward 220, 203 with 64 queries and eight warps, 172 with 64 keys and four warps.
FORWARD = {
    ("bf16", False): (64, 64, 4, 4),
    ("bf16", True): (128, 64, 8, 2),
    ("tf32", False): (64, 32, 4, 2),
    ("tf32", True): (64, 32, 8, 2),
    ("fp32", False): (32, 32, 8, 2),
    ("fp32", True): (16, 16, 8, 2),
}
# … and programs of a multiprocessor, as many as its registers hold
BACKWARD = {
    ("bf16", False): (32, 128, 4, 3, 2),
    ("bf16", True): (32, 64, 8, 2, 1),
    ("tf32", False): (32, 32, 4, 1, 2),
    ("tf32", True): (32, 32, 8, 1, 1),
    ("fp32", False): (32, 32, 8, 1, 1),
    ("fp32", True): (16, 16, 8, 1, 1),
}
# What `bench ops --tune` times beside them.  In the forward BLOCK_N divides BLOCK_M.
CANDIDATES = {
    ("attention",): (
        {"gpu_forward.STAGES": 2}, {"gpu_forward.STAGES": 3}, {"gpu_forward.STAGES": 5},
        *(
            {"gpu_backward.SPECIALISED": False, "FORWARD": {("bf16", False): tile}}
            for tile in (
                (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 4), (128, 64, 4, 3), (128, 64, 8, 3),
                (128, 64, 8, 4), (128, 128, 8, 2),
            )
        ),
    ),
    ("d_attention",): (
        {"gpu_backward.STAGES": 2}, {"gpu_backward.STAGES": 3},
        *(
            {"gpu_backward.SPECIALISED": False, "BACKWARD": {("bf16", False): tile}}
            for tile in (
                (32, 128, 4, 3, 2), (64, 64, 4, 2, 1), (64, 64, 4, 2, 2), (64, 64, 4, 3, 1),
                (64, 128, 8, 2, 1), (64, 128, 8, 3, 1), (128, 64, 8, 2, 1), (128, 128, 8, 2, 1),
            )
        ),
    ),
}  # fmt: skip


# ---------------------------------------------------------------- forward


@triton.jit
def attention_kernel(
    y_p, lse_p, q_x, kv_x, T, NH, scale,
    HS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """y and lse of BLOCK_M queries of one head.  q_x, kv_x: qkv, as load_rows takes it."""
    blocks = tl.cdiv(T, BLOCK_M)
    head = tl.program_id(0) // blocks
    b, h = head // NH, head % NH
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M  # the longest rows of tiles first
    q = load_rows(q_x, b, first, T, h, 3 * NH, HS, BLOCK_M, BLOCK_D, TMA)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    for n in tl.range(0, first, BLOCK_N):
        k = load_rows(kv_x, b, n, T, NH + h, 3 * NH, HS, BLOCK_N, BLOCK_D, TMA)
        v = load_rows(kv_x, b, n, T, 2 * NH + h, 3 * NH, HS, BLOCK_N, BLOCK_D, TMA)
        s = tl.dot(q, k.T, input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        acc, m_i, l_i = online_softmax(acc, m_i, l_i, s, v, scale, PRECISION)
    rows = first + tl.arange(0, BLOCK_M)
    for n in tl.range(first, tl.minimum(first + BLOCK_M, T), BLOCK_N):
        k = load_rows(kv_x, b, n, T, NH + h, 3 * NH, HS, BLOCK_N, BLOCK_D, TMA)
        v = load_rows(kv_x, b, n, T, 2 * NH + h, 3 * NH, HS, BLOCK_N, BLOCK_D, TMA)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        past = n + tl.arange(0, BLOCK_N)[None, :] <= rows[:, None]
        s = tl.where(past, s, float("-inf"))
        acc, m_i, l_i = online_softmax(acc, m_i, l_i, s, v, scale, PRECISION)
    store_rows(y_p, acc / l_i[:, None], b, first, T, h, NH, HS, False)
    tl.store(lse_p + head * T + rows, (m_i + tl.log2(l_i)) * LN2, mask=rows < T)


@triton.jit
def online_softmax(acc, m_i, l_i, s, v, scale, PRECISION: tl.constexpr):
    """Take the scores s of more keys into acc = Σ p·v and l_i = Σ p with p = 2^(scale·s − m_i).

    The maximum m_i may rise; what was summed so far is then scaled down to it.  Step 11.
    """
    m_new = tl.maximum(m_i, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - m_new[:, None])
    shrink = tl.exp2(m_i - m_new)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return acc, m_new, l_i * shrink + tl.sum(p, 1)


def attention(y, lse, qkv, add):
    """y (B, T, NH, HS) and lse (B, NH, T) from qkv (B, T, 3, NH, HS)."""
    B, T, NH, HS = y.shape
    scale = LOG2E.value / math.sqrt(HS)
    if gpu_backward.specialises(dtype_of(qkv), HS, T):
        gpu_forward.launch(y, lse, qkv, scale)
        return
    block_m, block_n, warps, stages = FORWARD[dtype_of(qkv), HS > 64]
    attention_kernel[(triton.cdiv(T, block_m) * B * NH,)](
        y, lse, heads_of(qkv, block_m), heads_of(qkv, block_n), T, NH, scale,
        HS=HS, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=power_of_2(HS, 16),
        PRECISION=qkv.precision, TMA=has_descriptor(qkv), num_warps=warps, num_stages=stages,
    )  # fmt: skip


def heads_of(x, rows: int):
    """x (B, T, …, HS) for load_rows: a descriptor for tiles of some rows of a head, or a pointer.

    The copy engine sees (B, heads, T, HS); what a tile has beyond T or HS arrives as 0.
    """
    if not has_descriptor(x):
        return x
    (B, T), HS, heads = x.shape[:2], x.shape[-1], heads_in(x)
    strides = [T * heads * HS, HS, heads * HS, 1]
    return TensorDescriptor(x, [B, heads, T, HS], strides, [1, 1, rows, power_of_2(HS, 16)])


def has_descriptor(x) -> bool:
    """Whether there is a copy engine, and every head begins on a multiple of 16 bytes."""
    return has_copy_engine() and x.shape[-1] * x.dtype.itemsize % 16 == 0


# ---------------------------------------------------------------- backward


@triton.jit
def row_dots_kernel(
    d_p, dy_p, y_p, T, NH, rows,
    HS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """D[b,h,t] = Σ_i dy[b,t,h,i]·y[b,t,h,i]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (b·T + t)·NH + h
    cols = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (cols < HS)[None, :]
    offs = row[:, None] * HS + cols[None, :]
    dy = tl.load(dy_p + offs, mask=mask, other=0).to(tl.float32)
    y = tl.load(y_p + offs, mask=mask, other=0).to(tl.float32)
    bt = row // NH
    to = (bt // T * NH + row % NH) * T + bt % T
    tl.store(d_p + to, tl.sum(dy * y, 1), mask=row < rows)  # derivation step 8


@triton.jit
def d_attention_kernel(
    dqkv_p, dq_p, q_x, kv_x, dy_x, lse_p, d_p, heads, T, NH, scale, groups, part,
    HS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, ONE_GROUP: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dk, dv of a group's columns of tiles, and their dq of `part` numbers; head after head."""
    group, slots = tl.program_id(0) % groups, tl.num_programs(0) // groups
    dq_p += tl.program_id(0).to(tl.int64) * part
    rounds = tl.cdiv(tl.cdiv(T, BLOCK_N), groups)
    for head in range(tl.program_id(0) // groups, heads, slots):
        b, h = head // NH, head % NH
        for i in range(rounds):
            # There and back: groups of about as many tiles, since column j is T/BLOCK − j high
            turn = tl.where(i % 2 == 0, group, groups - 1 - group)
            first = (i * groups + turn) * BLOCK_N
            k = load_rows(kv_x, b, first, T, NH + h, 3 * NH, HS, BLOCK_N, BLOCK_D, TMA)
            v = load_rows(kv_x, b, first, T, 2 * NH + h, 3 * NH, HS, BLOCK_N, BLOCK_D, TMA)
            acc_dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            acc_dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            start = first if BLOCK_M <= BLOCK_N else first // BLOCK_M * BLOCK_M
            for m in tl.range(start, T, BLOCK_M, num_stages=STAGES):
                acc_dk, acc_dv = d_tile(
                    acc_dk, acc_dv, dqkv_p, dq_p, q_x, dy_x, k, v, lse_p + head * T,
                    d_p + head * T, b, h, m, first, i > 0, T, NH, scale,
                    HS, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, ONE_GROUP, TMA,
                )  # fmt: skip
            store_rows(dqkv_p, acc_dk * scale, b, first, T, NH + h, 3 * NH, HS, False)  # 3
            store_rows(dqkv_p, acc_dv, b, first, T, 2 * NH + h, 3 * NH, HS, False)
            tl.debug_barrier()  # the next column reads what other threads wrote to dq


@triton.jit
def d_tile(
    acc_dk, acc_dv, dqkv_p, dq_p, q_x, dy_x, k, v, lse_p, d_p, b, h, m, first, again, T, NH, scale,
    HS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, ONE_GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """What the tile of queries m … and keys first … adds to dk, dv and dq; again: dq has begun.

    The tile is held transposed, keys × queries: so pᵀ and dsᵀ are in registers what the products
    for dv and dk want on their left.
    """
    rows = m + tl.arange(0, BLOCK_M)
    dq_p += rows[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    q = load_rows(q_x, b, m, T, h, 3 * NH, HS, BLOCK_M, BLOCK_D, TMA)
    dy = load_rows(dy_x, b, m, T, h, NH, HS, BLOCK_M, BLOCK_D, TMA)
    lse = tl.load(lse_p + rows, mask=rows < T, other=0) * LOG2E
    d = tl.load(d_p + rows, mask=rows < T, other=0)
    s = tl.dot(k, q.T, input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
    p = tl.exp2(s * (scale * LOG2E) - lse[None, :])  # 5
    diagonal = m < first + BLOCK_N
    if diagonal:
        p = tl.where(first + tl.arange(0, BLOCK_N)[:, None] <= rows[None, :], p, 0)
    dp = tl.dot(v, dy.T, input_precision=PRECISION)  # 1
    acc_dv = tl.dot(p.to(dy.dtype), dy, acc_dv, input_precision=PRECISION)  # 1
    ds = (p * (dp - d[None, :])).to(q.dtype)  # 2
    dq = tl.load(dq_p, mask=again, other=0)  # (BLOCK_M, BLOCK_D)
    dq += tl.dot(ds.T, k, input_precision=PRECISION) * scale  # 3
    acc_dk = tl.dot(ds, q, acc_dk, input_precision=PRECISION)  # 3
    # Whether no later column has a part in these rows.
    complete = diagonal if BLOCK_M <= BLOCK_N else tl.minimum(m + BLOCK_M, T) <= first + BLOCK_N
    if ONE_GROUP and complete:
        store_rows(dqkv_p, dq, b, m, T, h, 3 * NH, HS, False)
    else:
        tl.store(dq_p, dq)
    return acc_dk, acc_dv


@triton.jit
def sum_dq_kernel(
    dqkv_p, part_p, T, NH, H, groups, part,
    HS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq of one column's height of rows of a query head: the groups' parts, in order.

    Group g's first column is g, and it has no part in the rows above that.  part: numbers in one.
    dqkv holds H heads, of which NH are q's.
    """
    head, block = tl.program_id(0) // tl.cdiv(T, BLOCK_N), tl.program_id(0) % tl.cdiv(T, BLOCK_N)
    rows = block * BLOCK_N + tl.arange(0, BLOCK_N)
    part_p += head.to(tl.int64) * groups * part
    part_p += rows[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    acc = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for _ in range(tl.minimum(groups, block + 1)):
        acc += tl.load(part_p, mask=(rows < T)[:, None], other=0)
        part_p += part
    store_rows(dqkv_p, acc, head // NH, block * BLOCK_N, T, head % NH, H, HS, False)


def d_attention_workspace(*, B: int, T: int, NH: int, HS: int, dtype: str) -> int:
    """D, and a dq in fp32 for each program: in bf16 69 MB at most for T = 1024, HS = 64."""
    programs, _, part = parts_of_dq(B * NH, T, HS, backward_tiles(dtype, HS, T))
    return 4 * (B * NH * T + programs * part)


def backward_tiles(dtype: str, HS: int, T: int) -> tuple[int, int, int, int, int]:
    """From the table; without a copy engine smaller ones, for addresses take registers."""
    if gpu_backward.specialises(dtype, HS, T):
        return gpu_backward.TILES
    if dtype == "bf16" and not has_copy_engine():
        return (32, 64, 4, 1, 2) if HS <= 64 else (32, 32, 4, 1, 2)
    return BACKWARD[dtype, HS > 64]


def parts_of_dq(heads: int, T: int, HS: int, tiles: tuple) -> tuple[int, int, int]:
    """(programs of the backward, of which so many share a head, numbers in the dq of each)."""
    block_m, block_n, _, _, each = tiles
    groups = max(1, min(each * PROCESSORS // heads, triton.cdiv(T, block_n) // 2))
    programs = groups * min(heads, each * PROCESSORS)
    return programs, groups, triton.cdiv(T, block_m) * block_m * power_of_2(HS, 16)


def d_attention(dqkv, dy, qkv, y, lse, add, work):
    """dqkv (B, T, 3, NH, HS) from dy and y (B, T, NH, HS), qkv, lse (B, NH, T)."""
    B, T, NH, HS = y.shape
    heads, block_d, scale = B * NH, power_of_2(HS, 16), 1 / math.sqrt(HS)
    tiles = backward_tiles(dtype_of(qkv), HS, T)
    block_m, block_n, warps, stages, _ = tiles
    programs, groups, part = parts_of_dq(heads, T, HS, tiles)
    dq = work.part(0, "fp32", programs, part)
    d = work.part(4 * programs * part, "fp32", B, NH, T)
    rows = 4096 // block_d
    row_dots_kernel[(triton.cdiv(heads * T, rows),)](
        d, dy, y, T, NH, heads * T, HS=HS, ROWS=rows, BLOCK_D=block_d
    )
    if gpu_backward.specialises(dtype_of(qkv), HS, T):
        gpu_backward.launch(dqkv, dq, qkv, dy, lse, d, groups)
    else:
        d_attention_kernel[(programs,)](
            dqkv, dq, heads_of(qkv, block_m), heads_of(qkv, block_n), heads_of(dy, block_m), lse,
            d, heads, T, NH, scale, groups, part,
            HS=HS, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d, PRECISION=qkv.precision,
            ONE_GROUP=groups == 1, TMA=has_descriptor(qkv), STAGES=stages, num_warps=warps,
        )  # fmt: skip
    if groups > 1:
        sum_dq_kernel[(heads * triton.cdiv(T, block_n),)](
            dqkv, dq, T, NH, 3 * NH, groups, part, HS=HS, BLOCK_N=block_n, BLOCK_D=block_d
        )
