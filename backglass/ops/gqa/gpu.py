"""Grouped-query attention on the GPU: the tiles of ops/attention, with fewer keys and a window.

               keys ->
    queries  +-----+-----+-----+-----+    #      the whole tile counts
       |     |  d  |     |     |     |    d      on the diagonal: future keys are masked
       v     +-----+-----+-----+-----+    e      on the window's edge: keys before it are masked
             | e   |  d  |     |     |    blank  never touched
             +-----+-----+-----+-----+
             | e   |  #  |  d  |     |    gqa      a program is a row of tiles of a query head
             +-----+-----+-----+-----+    d_gqa    a program walks over a query head's columns of
             |     | e   |  #  |  d  |             tiles, one by one
             +-----+-----+-----+-----+

    gqa      reads q once, k and v once a query head that shares them, from the L2 cache
    d_gqa    a query head's part in dk and dv is a tensor in fp32 of its own, 2·B·T·NH·HS numbers of
             `work`; sum_heads adds the parts of a group up in order.  No atomics: where several
             programs add to one number, the order would be another on every run

In d_gqa dq is summed as in ops/attention, whose docstring says how.
"""

import math

import triton
import triton.language as tl

from backglass.device.tiles import has_copy_engine, power_of_2
from backglass.ops.attention import gpu as attention
from backglass.ops.attention.gpu import (
    LN2,
    LOG2E,
    has_descriptor,
    heads_of,
    online_softmax,
    parts_of_dq,
    row_dots_kernel,
    sum_dq_kernel,
)
from backglass.ops.gqa.maths import count_kv_heads
from backglass.ops.scores.gpu import dtype_of, load_rows, store_rows

# Where the maximum starts.  Not −∞: a tile on the window's edge may hold no key that a query sees,
# and −∞ − (−∞) is NaN.
LOWEST = tl.constexpr(-1e30)

# attention's tiles, but for those that spill here (compiled with Triton 3.6 for 32 query heads, 8
# of keys).  (BLOCK_M queries, BLOCK_N keys, warps, stages) by (dtype, HS > 64) …
FORWARD = attention.FORWARD
# … and programs of a multiprocessor
BACKWARD = {
    **attention.BACKWARD,
    ("bf16", False): (64, 128, 8, 2, 1),
    ("bf16", True): (64, 32, 8, 2, 1),
}
# Without a copy engine addresses take registers.
PLAIN_FORWARD = {("bf16", True): (64, 64, 8, 2)}
PLAIN_BACKWARD = {("bf16", False): (64, 32, 4, 1, 2), ("bf16", True): (32, 32, 8, 1, 1)}


def forward_tiles(dtype: str, HS: int) -> tuple[int, int, int, int]:
    plain = {} if has_copy_engine() else PLAIN_FORWARD
    return (FORWARD | plain)[dtype, HS > 64]


def backward_tiles(dtype: str, HS: int) -> tuple[int, int, int, int, int]:
    plain = {} if has_copy_engine() else PLAIN_BACKWARD
    return (BACKWARD | plain)[dtype, HS > 64]


# ---------------------------------------------------------------- forward


@triton.jit
def gqa_kernel(
    y_p, lse_p, q_x, kv_x, T, NH, KV, window, scale,
    HS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """y and lse of BLOCK_M queries of one head.  q_x, kv_x: qkv, as load_rows takes it."""
    blocks = tl.cdiv(T, BLOCK_M)
    head = tl.program_id(0) // blocks
    b, h, H = head // NH, head % NH, NH + 2 * KV
    k_head = NH + h // (NH // KV)
    first = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK_M  # the longest rows of tiles first
    rows = first + tl.arange(0, BLOCK_M)
    q = load_rows(q_x, b, first, T, h, H, HS, BLOCK_M, BLOCK_D, TMA)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m_i = tl.full((BLOCK_M,), LOWEST, tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    start = 0
    if WINDOWED:
        start = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
    for n in tl.range(start, first, BLOCK_N):
        k = load_rows(kv_x, b, n, T, k_head, H, HS, BLOCK_N, BLOCK_D, TMA)
        v = load_rows(kv_x, b, n, T, k_head + KV, H, HS, BLOCK_N, BLOCK_D, TMA)
        s = tl.dot(q, k.T, input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        if WINDOWED:
            near = n + tl.arange(0, BLOCK_N)[None, :] > rows[:, None] - window
            s = tl.where(near, s, float("-inf"))
        acc, m_i, l_i = online_softmax(acc, m_i, l_i, s, v, scale, PRECISION)
    for n in tl.range(first, tl.minimum(first + BLOCK_M, T), BLOCK_N):
        k = load_rows(kv_x, b, n, T, k_head, H, HS, BLOCK_N, BLOCK_D, TMA)
        v = load_rows(kv_x, b, n, T, k_head + KV, H, HS, BLOCK_N, BLOCK_D, TMA)
        s = tl.dot(q, k.T, input_precision=PRECISION)
        keys = n + tl.arange(0, BLOCK_N)[None, :]
        s = tl.where(seen(keys, rows[:, None], window, WINDOWED), s, float("-inf"))
        acc, m_i, l_i = online_softmax(acc, m_i, l_i, s, v, scale, PRECISION)
    store_rows(y_p, acc / l_i[:, None], b, first, T, h, NH, HS, False)
    tl.store(lse_p + head * T + rows, (m_i + tl.log2(l_i)) * LN2, mask=rows < T)


@triton.jit
def seen(keys, rows, window, WINDOWED: tl.constexpr):
    """Whether the queries at `rows` see the keys."""
    found = keys <= rows
    if WINDOWED:
        found &= keys > rows - window
    return found


def gqa(y, lse, qkv, window, add):
    """y (B, T, NH, HS) and lse (B, NH, T) from qkv (B, T, NH + 2·KV, HS)."""
    B, T, NH, HS = y.shape
    block_m, block_n, warps, stages = forward_tiles(dtype_of(qkv), HS)
    gqa_kernel[(triton.cdiv(T, block_m) * B * NH,)](
        y, lse, heads_of(qkv, block_m), heads_of(qkv, block_n), T, NH,
        count_kv_heads(qkv.shape[2], NH), window, LOG2E.value / math.sqrt(HS),
        HS=HS, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=power_of_2(HS, 16),
        PRECISION=qkv.precision, TMA=has_descriptor(qkv), WINDOWED=0 < window < T,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


# ---------------------------------------------------------------- backward


@triton.jit
def d_gqa_kernel(
    dqkv_p, dkv_p, dq_p, q_x, kv_x, dy_x, lse_p, d_p, heads, T, NH, KV, dk_head, window, scale,
    groups, part,
    HS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, ONE_GROUP: tl.constexpr, TMA: tl.constexpr, STAGES: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """A group's columns of tiles, and their dq of `part` numbers; query head after query head.

    dkv_p: where dk of query head h is head dk_head + h, and its dv NH further, of dk_head + 2·NH.
    """
    group, slots = tl.program_id(0) % groups, tl.num_programs(0) // groups
    dq_p += tl.program_id(0).to(tl.int64) * part
    rounds, H = tl.cdiv(tl.cdiv(T, BLOCK_N), groups), NH + 2 * KV
    for head in range(tl.program_id(0) // groups, heads, slots):
        b, h = head // NH, head % NH
        k_head = NH + h // (NH // KV)
        if WINDOWED:
            zero_rows(dq_p, part, BLOCK_M, BLOCK_D)
        for i in range(rounds):
            # There and back: groups of about as many tiles, since column j is T/BLOCK − j high
            turn = tl.where(i % 2 == 0, group, groups - 1 - group)
            first = (i * groups + turn) * BLOCK_N
            k = load_rows(kv_x, b, first, T, k_head, H, HS, BLOCK_N, BLOCK_D, TMA)
            v = load_rows(kv_x, b, first, T, k_head + KV, H, HS, BLOCK_N, BLOCK_D, TMA)
            acc_dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            acc_dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            start = first if BLOCK_M <= BLOCK_N else first // BLOCK_M * BLOCK_M
            end = T
            if WINDOWED:
                end = tl.minimum(first + BLOCK_N + window - 1, T)
            for m in tl.range(start, end, BLOCK_M, num_stages=STAGES):
                acc_dk, acc_dv = d_tile(
                    acc_dk, acc_dv, dqkv_p, dq_p, q_x, dy_x, k, v, lse_p + head * T,
                    d_p + head * T, b, h, m, first, i > 0, T, NH, H, window, scale,
                    HS, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION, ONE_GROUP, TMA, WINDOWED,
                )  # fmt: skip
            dkv_heads, dk = dk_head + 2 * NH, dk_head + h
            store_rows(dkv_p, acc_dk * scale, b, first, T, dk, dkv_heads, HS, False)  # 6
            store_rows(dkv_p, acc_dv, b, first, T, dk + NH, dkv_heads, HS, False)  # 5
            tl.debug_barrier()  # the next column reads what other threads wrote to dq


@triton.jit
def zero_rows(dq_p, part, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """dq = 0: with a window a row's first column is not the walk's first."""
    rows = tl.arange(0, BLOCK_M)
    offs = rows[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    for at in range(0, part, BLOCK_M * BLOCK_D):
        tl.store(dq_p + at + offs, tl.zeros((BLOCK_M, BLOCK_D), tl.float32))
    tl.debug_barrier()


@triton.jit
def d_tile(
    acc_dk, acc_dv, dqkv_p, dq_p, q_x, dy_x, k, v, lse_p, d_p, b, h, m, first, again, T, NH, H,
    window, scale,
    HS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, ONE_GROUP: tl.constexpr, TMA: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """What the tile of queries m … and keys first … adds to dk, dv and dq; again: dq has begun.

    The tile is held transposed, keys × queries: so pᵀ and dsᵀ are in registers what the products
    for dv and dk want on their left.
    """
    rows = m + tl.arange(0, BLOCK_M)
    dq_p += rows[:, None] * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    q = load_rows(q_x, b, m, T, h, H, HS, BLOCK_M, BLOCK_D, TMA)
    dy = load_rows(dy_x, b, m, T, h, NH, HS, BLOCK_M, BLOCK_D, TMA)
    lse = tl.load(lse_p + rows, mask=rows < T, other=0) * LOG2E
    d = tl.load(d_p + rows, mask=rows < T, other=0)
    s = tl.dot(k, q.T, input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
    p = tl.exp2(s * (scale * LOG2E) - lse[None, :])
    diagonal = m < first + BLOCK_N
    keys = first + tl.arange(0, BLOCK_N)[:, None]
    if WINDOWED:
        p = tl.where(seen(keys, rows[None, :], window, True), p, 0)  # 8
    elif diagonal:
        p = tl.where(keys <= rows[None, :], p, 0)
    dp = tl.dot(v, dy.T, input_precision=PRECISION)  # 1
    acc_dv = tl.dot(p.to(dy.dtype), dy, acc_dv, input_precision=PRECISION)  # 5
    ds = (p * (dp - d[None, :])).to(q.dtype)  # 2
    dq = tl.load(dq_p, mask=again, other=0)  # (BLOCK_M, BLOCK_D)
    dq += tl.dot(ds.T, k, input_precision=PRECISION) * scale  # 4
    acc_dk = tl.dot(ds, q, acc_dk, input_precision=PRECISION)  # 6
    # Whether no later column has a part in these rows.
    complete = diagonal if BLOCK_M <= BLOCK_N else tl.minimum(m + BLOCK_M, T) <= first + BLOCK_N
    if ONE_GROUP and complete:
        store_rows(dqkv_p, dq, b, m, T, h, H, HS, False)
    else:
        tl.store(dq_p, dq)
    return acc_dk, acc_dv


@triton.jit
def sum_heads_kernel(
    dqkv_p, dkv_p, T, NH, KV, HS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    """ROWS rows of one head of dk or dv: the parts of its query heads, in order."""
    b, i = tl.program_id(0) // (2 * KV), tl.program_id(0) % (2 * KV)  # i: dk's heads, then dv's
    first, G = tl.program_id(1) * ROWS, NH // KV
    acc = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for g in range(G):
        acc += load_rows(dkv_p, b, first, T, i * G + g, 2 * NH, HS, ROWS, BLOCK_D, False)
    store_rows(dqkv_p, acc, b, first, T, NH + i, NH + 2 * KV, HS, False)


def d_gqa_workspace(*, B: int, T: int, H: int, NH: int, HS: int, window: int, dtype: str) -> int:
    """D, a dq in fp32 for each program, and where query heads share keys a dk and dv for each."""
    programs, _, part = parts_of_dq(B * NH, T, HS, backward_tiles(dtype, HS))
    of_heads = 2 * B * T * NH * HS if count_kv_heads(H, NH) < NH else 0
    return 4 * (B * NH * T + programs * part + of_heads)


def d_gqa(dqkv, dy, qkv, y, lse, window, add, work):
    """dqkv (B, T, NH + 2·KV, HS) from dy and y (B, T, NH, HS), qkv, lse (B, NH, T)."""
    (B, T, NH, HS), H = y.shape, qkv.shape[2]
    heads, block_d, KV = B * NH, power_of_2(HS, 16), count_kv_heads(H, NH)
    tiles = backward_tiles(dtype_of(qkv), HS)
    block_m, block_n, warps, stages, _ = tiles
    programs, groups, part = parts_of_dq(heads, T, HS, tiles)
    dq = work.part(0, "fp32", programs, part)
    d = work.part(4 * programs * part, "fp32", B, NH, T)
    dkv, dk_head = dqkv, NH
    if KV < NH:
        dkv, dk_head = work.part(4 * (programs * part + heads * T), "fp32", B, T, 2 * NH, HS), 0
    row_dots_kernel[(triton.cdiv(heads * T, 4096 // block_d),)](
        d, dy, y, T, NH, heads * T, HS=HS, ROWS=4096 // block_d, BLOCK_D=block_d
    )
    d_gqa_kernel[(programs,)](
        dqkv, dkv, dq, heads_of(qkv, block_m), heads_of(qkv, block_n), heads_of(dy, block_m), lse,
        d, heads, T, NH, KV, dk_head, window, 1 / math.sqrt(HS), groups, part,
        HS=HS, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d, PRECISION=qkv.precision,
        ONE_GROUP=groups == 1, TMA=has_descriptor(qkv), STAGES=stages, WINDOWED=0 < window < T,
        num_warps=warps,
    )  # fmt: skip
    if groups > 1:
        sum_dq_kernel[(heads * triton.cdiv(T, block_n),)](
            dqkv, dq, T, NH, H, groups, part, HS=HS, BLOCK_N=block_n, BLOCK_D=block_d
        )
    if KV < NH:
        sum_heads_kernel[(2 * B * KV, triton.cdiv(T, 64))](
            dqkv, dkv, T, NH, KV, HS=HS, ROWS=64, BLOCK_D=block_d
        )
