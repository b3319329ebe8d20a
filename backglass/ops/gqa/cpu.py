"""Grouped-query attention on the CPU: the blocks of ops/attention, with fewer keys and a window.

Scores exist one BLOCK by BLOCK square at a time, as in ops/attention, whose products these are.
With a window a row of squares begins where its first query's window does:

               keys ->
    queries  +-----+-----+-----+-----+    #      the whole square
       |     |  d  |     |     |     |    d      on the diagonal: keys up to the query
       v     +-----+-----+-----+-----+    e      on the window's edge: keys from some column on
             | e   |  d  |     |     |    blank  never touched
             +-----+-----+-----+-----+
             | e   |  #  |  d  |     |    gqa      a task is a row of squares of one query head
             +-----+-----+-----+-----+    d_gqa    a task is some columns of one head of keys,
             |     | e   |  #  |  d  |             for the query heads that share it, in turn
             +-----+-----+-----+-----+

Query heads that share keys follow one another, and a thread packs kᵀ and v for all of them once.
d_gqa adds their parts of dk and dv up where they lie, query head after query head. The number of
threads does not change a bit of the results; with KV = NH and no window they are attention's bits.
"""

import math

import numpy as np

from backglass.device.host import inline, kernel, part, prange
from backglass.device.rows import accumulate
from backglass.device.simd import row_d_softmax, row_dot, row_scale
from backglass.device.simd_blocks import TILE_ROWS
from backglass.device.vector_ir import panel_width
from backglass.ops.attention.cpu import (
    A_LOWER,
    A_UPPER,
    BLOCK,
    NO,
    ONE,
    OUT_LOWER,
    S_ROW,
    WHOLE,
    block_rows,
    count_blocks,
    count_groups,
    d_layout,
    d_scratch_floats,
    online_softmax,
    pack_rows,
    pack_transposed,
    product,
    scratch_floats,
    store_block,
)
from backglass.ops.gqa.maths import count_kv_heads

__all__ = ["d_gqa", "d_gqa_workspace", "gqa", "gqa_workspace"]

NOTHING, ONCE = np.float32(-np.inf), np.float32(1)


@inline
def first_seen(i, window):
    """The first block of keys that a query of block i sees."""
    return max(i * BLOCK - window + 1, 0) // BLOCK if window else 0


@inline
def after_last(j, blocks, window):
    """The first block of queries beyond block j that sees none of its keys."""
    return min((j * BLOCK + BLOCK + window - 2) // BLOCK + 1, blocks) if window else blocks


@inline
def hidden_keys(t, j, window):
    """How many keys of block j lie before the window of position t, if t sees any later ones."""
    return max(t - window + 1 - j * BLOCK, 0) if window else 0


@inline
def hide(work, row, hidden):
    """0 for the keys before the window."""
    row_scale(work, row, work, row, 0, hidden, ONCE)


# ---------------------------------------------------------------- forward


def gqa_workspace(*, B, T, H, NH, HS, threads, **_) -> int:
    """Floats of `work` for `gqa`: about 2·T·HS a thread.  Raises ValueError for wrong heads."""
    count_kv_heads(H, NH)
    return threads * scratch_floats(T, HS)


@kernel
def gqa(y, lse, qkv, window, add, work):
    """y (B, T, NH, HS) and lse (B, NH, T) from qkv (B, T, NH + 2·KV, HS).

    Each thread takes an equal share of the squares: whole heads, and part of one or two.
    """
    B, T, NH, HS = y.shape
    G = 2 * NH // (qkv.shape[2] - NH)  # query heads that share keys
    size, blocks = scratch_floats(T, HS), count_blocks(T)
    threads = work.size // size
    for share in prange(threads):
        thread = np.int64(share)
        scratch = work[thread * size : (thread + 1) * size]
        start = share_start(thread, threads, B * NH, blocks, window)
        stop = share_start(thread + 1, threads, B * NH, blocks, window)
        lo, hi = 0, 0  # the blocks whose keys and values are packed
        for head in range(start // blocks, (stop + blocks - 1) // blocks):
            first, last = max(start - head * blocks, 0), min(stop - head * blocks, blocks)
            b, h, begin = head // NH, head % NH, first_seen(first, window)
            if h % G == 0 or begin < lo or last > hi:
                lo, hi = begin, last
                pack_head(qkv, scratch, b, NH, h // G, lo, hi)
            attend_head(y, lse, qkv, scratch, b, h, first, last, window)


@inline
def share_start(thread, threads, heads, blocks, window):
    """The first block of rows of a thread, as head·blocks + block."""
    squares = 0
    for i in range(blocks):
        squares += i + 1 - first_seen(i, window)
    target = heads * squares * thread // threads
    head, rest = target // squares, target % squares
    block, done = 0, 0
    while 2 * done + block + 1 - first_seen(block, window) <= 2 * rest:
        done += block + 1 - first_seen(block, window)
        block += 1
    return head * blocks + block


@inline
def pack_head(qkv, work, b, NH, g, first, last):
    """Panels of kᵀ and v of the blocks first … last-1 of one head of keys."""
    _, T, H, HS = qkv.shape
    KV, width, v_panels = (H - NH) // 2, panel_width(HS), count_blocks(T) * BLOCK * HS
    k = qkv.ravel()[(b * T * H + NH + g) * HS :]  # k[t, c] is k[t·H·HS + c], v is KV·HS on
    for j in range(first, last):
        here, keys = j * BLOCK, block_rows(j, T)
        at = here * H * HS
        pack_transposed(work, here * HS, k, at, H * HS, keys, HS)
        pack_rows(work, v_panels + here * width, k, at + KV * HS, H * HS, keys, HS)


@inline
def attend_head(y, lse, qkv, work, b, h, first, last, window):
    """The blocks of rows first … last-1 of one query head."""
    _, T, H, HS = qkv.shape
    q = qkv.ravel()[(b * T * H + h) * HS :]  # q[t, c] is q[t·H·HS + c]
    v = count_blocks(T) * BLOCK * HS
    scratch = v + count_blocks(T) * BLOCK * panel_width(HS)
    for i in range(first, last):
        attend_block(work, scratch, v, q, H * HS, i, T, HS, window)
        store_block(y, lse, work, scratch, b, h, i)


@part
def attend_block(work, scratch, v, q, q_row, i, T, HS, window):
    """acc (rows, HS), m_i and l_i of a block of rows: online softmax over the blocks of keys.

    A row that sees no key of the first square starts from m_i = -inf, l_i = 0, acc = 0.
    """
    width, rows = panel_width(HS), block_rows(i, T)
    s, acc = scratch, scratch + BLOCK * S_ROW
    m_i, l_i = acc + BLOCK * width, acc + BLOCK * width + BLOCK
    scale, begin = np.float32(1 / math.sqrt(HS)), first_seen(i, window)
    for j in range(begin, i + 1):
        here, keys = j * BLOCK, block_rows(j, T)
        product(
            work, s, S_ROW, q, i * BLOCK * q_row, q_row, ONE, work, here * HS,
            rows, keys, HS, OUT_LOWER if j == i else WHOLE, NO,
        )  # fmt: skip
        for r in range(rows):
            n = r + 1 if j == i else keys  # keys that row r sees, but for the hidden ones
            hidden = min(hidden_keys(i * BLOCK + r, j, window), n)
            fill = min(n + TILE_ROWS, keys)
            row = s + r * S_ROW
            if hidden < n:
                online_softmax(
                    work, row + hidden, acc + r * width, m_i + r, l_i + r,
                    n - hidden, fill - hidden, HS, scale, j == begin,
                )  # fmt: skip
            elif j == begin:
                work[m_i + r], work[l_i + r] = NOTHING, np.float32(0)
            if hidden > 0:
                hide(work, row, hidden)
        product(
            work, acc, width, work, s, S_ROW, ONE, work, v + here * width,
            rows, HS, keys, A_LOWER if j == i else WHOLE, j > begin,
        )  # fmt: skip


# ---------------------------------------------------------------- backward


def d_gqa_workspace(*, B, T, H, NH, HS, threads, **_) -> int:
    """Floats of `work` for `d_gqa`: 2·T·HS a thread, and for few heads the dq of their groups."""
    KV = count_kv_heads(H, NH)
    return partial_floats(B * NH, B * KV, T, HS) + threads * d_scratch_floats(T, HS)


@inline
def partial_floats(heads, kv_heads, T, HS):
    """Floats of the dq of each query head's second, third, … group, in whole cache lines."""
    return (heads * (count_groups(kv_heads, T) - 1) * T * HS + 15) // 16 * 16


@kernel
def d_gqa(dqkv, dy, qkv, y, lse, window, add, work):
    """dqkv (B, T, NH + 2·KV, HS) from dy and y (B, T, NH, HS), qkv and lse (B, NH, T).

    A task is a group of blocks of keys of one head of them, and owns their dk and dv. The group
    with the first key that a block of queries sees writes that block's dq in place, the others to
    `work`; those are added at the end, in the order of the groups.
    """
    B, T, NH, HS = y.shape
    KV = (qkv.shape[2] - NH) // 2
    partials, size = partial_floats(B * NH, B * KV, T, HS), d_scratch_floats(T, HS)
    threads, groups = (work.size - partials) // size, count_groups(B * KV, T)
    tasks = B * KV * groups
    for share in prange(threads):
        thread = np.int64(share)
        here = partials + thread * size
        scratch = work[here : here + size]
        for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
            g, group = task // groups, task % groups
            for h in range(g % KV * (NH // KV), (g % KV + 1) * (NH // KV)):
                d_attend_group(
                    dqkv, dy, qkv, y, lse, work, scratch, g // KV, h, group, groups, window
                )
    for n in prange(B * NH):
        head = np.int64(n)
        for group in range(1, groups):
            add_partial(dqkv, work, head // NH, head % NH, NH, group, groups, window)


@inline
def d_attend_group(dqkv, dy, qkv, y, lse, work, scratch, b, h, group, groups, window):
    """One query head's part in dk and dv of a group's blocks of keys, and their part in its dq."""
    _, T, H, HS = qkv.shape
    NH = y.shape[2]
    KV, blocks = (H - NH) // 2, count_blocks(T)
    first, last = group_span(group, groups, blocks, window)
    g = h // (NH // KV)
    begin = b * T * H * HS
    q, k = qkv.ravel()[begin + h * HS :], qkv.ravel()[begin + (NH + g) * HS :]
    dq, dk = dqkv.ravel()[begin + h * HS :], dqkv.ravel()[begin + (NH + g) * HS :]
    dy_h, own = dy.ravel()[(b * T * NH + h) * HS :], work
    if group > 0:
        own = work[partial_start(b * NH + h, group, groups, T, HS) :]
    if first < last:
        for i in range(first, after_last(last - 1, blocks, window)):
            pack_queries(scratch, q, H * HS, dy_h, dy, y, b, h, i)
    for j in range(first, last):
        pack_keys(scratch, k, KV * HS, H * HS, j, T, HS)
        for i in range(j, after_last(j, blocks, window)):
            d_scores(scratch, q, H * HS, dy_h, NH * HS, lse[b, h], i, j, HS, window)
            begun = i > j or h % (NH // KV) > 0
            d_keys(dk, KV * HS, H * HS, scratch, i, j, T, HS, begun)
            seen = first_seen(i, window)
            if seen >= first:
                d_queries(dq, H * HS, scratch, i, j, T, HS, j > seen)
            else:
                d_queries(own, HS, scratch, i, j, T, HS, j > first)


@inline
def group_span(group, groups, blocks, window):
    """The first block of keys of a group, and of the next. Groups have about as many squares."""
    squares = 0
    for j in range(blocks):
        squares += after_last(j, blocks, window) - j
    first, before = 0, 0
    while before * groups < group * squares:
        before += after_last(first, blocks, window) - first
        first += 1
    last = first
    while before * groups < (group + 1) * squares:
        before += after_last(last, blocks, window) - last
        last += 1
    return first, last


@inline
def partial_start(head, group, groups, T, HS):
    """Where the dq of a group other than a query head's first is in `work`."""
    return (head * (groups - 1) + group - 1) * T * HS


@inline
def pack_queries(work, q, q_row, dy_h, dy, y, b, h, i):
    """Panels of a block of rows of q and dy, and delta = Σ_c dy·y of each row."""
    _, T, NH, HS = y.shape
    C, width, here = NH * HS, panel_width(HS), i * BLOCK
    q_panels, dy_panels, delta, _, _, _, _, _ = d_layout(T, HS)
    rows = block_rows(i, T)
    pack_rows(work, q_panels + here * width, q, here * q_row, q_row, rows, HS)
    pack_rows(work, dy_panels + here * width, dy_h, here * C, C, rows, HS)
    for t in range(here, here + rows):
        y_t = ((b * T + t) * NH + h) * HS
        work[delta + t] = row_dot(dy, y_t, y, y_t, HS)


@inline
def pack_keys(work, k, v, row, j, T, HS):
    """Panels of kᵀ, vᵀ and k of a block of keys; v: how far v is from k."""
    _, _, _, kT, vT, k_panels, _, _ = d_layout(T, HS)
    at, keys = j * BLOCK * row, block_rows(j, T)
    pack_transposed(work, kT, k, at, row, keys, HS)
    pack_transposed(work, vT, k, at + v, row, keys, HS)
    pack_rows(work, k_panels, k, at, row, keys, HS)


@inline
def d_scores(work, q, q_row, dy, dy_row, lse, i, j, HS, window):
    """One square of p = exp(q·kᵀ/√HS - lse) and of its scores' gradient p·(dy·vᵀ - delta)/√HS."""
    T = lse.size
    _, _, delta, kT, vT, _, p, dp = d_layout(T, HS)
    rows, keys = block_rows(i, T), block_rows(j, T)
    shape = OUT_LOWER if i == j else WHOLE
    product(work, p, S_ROW, q, i * BLOCK * q_row, q_row, ONE, work, kT, rows, keys, HS, shape, NO)
    product(
        work, dp, S_ROW, dy, i * BLOCK * dy_row, dy_row, ONE, work, vT, rows, keys, HS, shape, NO
    )
    scale = np.float32(1 / math.sqrt(HS))
    for r in range(rows):
        t = i * BLOCK + r
        n = r + 1 if i == j else keys
        fill = min(n + TILE_ROWS, keys)
        hidden = min(hidden_keys(t, j, window), n)
        p_r, dp_r = p + r * S_ROW, dp + r * S_ROW
        row_d_softmax(
            work, p_r + hidden, work, dp_r + hidden, n - hidden, fill - hidden,
            scale, lse[t], work[delta + t],
        )  # fmt: skip
        if hidden > 0:
            hide(work, p_r, hidden)
            hide(work, dp_r, hidden)


@inline
def d_keys(dk, dv, row, work, i, j, T, HS, begun):
    """dv (+)= pᵀ·dy and dk (+)= dsᵀ·q for one square; dv: how far it is from dk."""
    q_panels, dy_panels, _, _, _, _, p, ds = d_layout(T, HS)
    rows, keys, width = block_rows(i, T), block_rows(j, T), panel_width(HS)
    at, shape = j * BLOCK * row, A_UPPER if i == j else WHOLE
    product(
        dk, at + dv, row, work, p, ONE, S_ROW, work, dy_panels + i * BLOCK * width,
        keys, HS, rows, shape, begun,
    )  # fmt: skip
    product(
        dk, at, row, work, ds, ONE, S_ROW, work, q_panels + i * BLOCK * width,
        keys, HS, rows, shape, begun,
    )  # fmt: skip


@inline
def d_queries(dq, row, work, i, j, T, HS, begun):
    """dq (+)= ds·k for one square."""
    _, _, _, _, _, k_panels, _, ds = d_layout(T, HS)
    shape = A_LOWER if i == j else WHOLE
    product(
        dq, i * BLOCK * row, row, work, ds, S_ROW, ONE, work, k_panels,
        block_rows(i, T), HS, block_rows(j, T), shape, begun,
    )  # fmt: skip


@inline
def add_partial(dqkv, work, b, h, NH, group, groups, window):
    """Add to one query head's dq what a group wrote elsewhere."""
    _, T, _, HS = dqkv.shape
    blocks = count_blocks(T)
    first, last = group_span(group, groups, blocks, window)
    start = partial_start(b * NH + h, group, groups, T, HS)
    if first < last:  # a group may be empty
        for i in range(first, after_last(last - 1, blocks, window)):
            if first_seen(i, window) < first:
                for t in range(i * BLOCK, i * BLOCK + block_rows(i, T)):
                    accumulate(dqkv[b, t, h], work[start + t * HS : start + (t + 1) * HS])
