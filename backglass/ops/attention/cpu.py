"""Causal self-attention without the (T, T) matrix, and its gradient.

FlashAttention-2 (Dao, 2023, arXiv 2307.08691) for a CPU. Scores exist one BLOCK by BLOCK square at
a time and stay in the L2 cache. Squares above the diagonal are skipped, and so are the register
tiles above it in a square on the diagonal:

               keys ->
    queries  +-----+-----+-----+    #      the whole square
       |     |  d  |     |     |    d      tile by tile
       v     +-----+-----+-----+    blank  never touched
             |  #  |  d  |     |
             +-----+-----+-----+    attention    a task is a row of squares
             |  #  |  #  |  d  |    d_attention  a task is some columns
             +-----+-----+-----+

q, k, v, dy, dq, dk, dv are read and written where they lie, in rows of 3·NH·HS or NH·HS floats.
Only what a product streams through its inner loop (kᵀ and v; kᵀ, vᵀ, k, q and dy) is copied to
`work`. The number of threads does not change a bit of the results.

GPT-2's B=1, T=1024, NH=12, HS=64 on 2 cores of a Sapphire Rapids, 2026-11-22: forward 9.0 ms (180
GFLOP/s of the causal half), backward 19.8 ms (203); torch 2.13: 11.8 and 29.7 ms.
"""

import math

import numpy as np

from backglass.device.host import inline, kernel, part, prange
from backglass.device.rows import accumulate
from backglass.device.simd import row_d_softmax, row_dot, row_max, row_scale, row_softmax
from backglass.device.simd_blocks import TILE_ROWS, TILE_VECTORS, tile_gemm, transpose_edge
from backglass.device.vector_ir import LANES, panel_width

__all__ = ["attention", "attention_workspace", "d_attention", "d_attention_workspace"]

BLOCK = 64  # rows and columns of a square of scores; a multiple of 16
PANEL = min(2, TILE_VECTORS) * LANES  # columns of a panel: HS is rather a multiple of 32 than of 48
TASKS = 32  # where there are fewer heads, d_attention cuts them up into about so many tasks

# NumPy scalars, because Numba would compile `product` again for each plain constant it is given.
S_ROW = np.int64(BLOCK + 16)  # row length of a square: odd in cache lines, which spreads a column
ONE, NO = np.int64(1), np.bool_(False)
WHOLE, OUT_LOWER, A_LOWER, A_UPPER = np.arange(4)  # the operand of `product` that is triangular


# ---------------------------------------------------------------- forward


def attention_workspace(*, B, T, NH, HS, threads, **_) -> int:
    """Floats of `work` for `attention`: about 2·T·HS a thread."""
    return threads * scratch_floats(T, HS)


@inline
def scratch_floats(T, HS):
    """Floats of a thread of `attention`: kᵀ and v of a head, a square of scores, acc, m_i, l_i."""
    return count_blocks(T) * BLOCK * (HS + panel_width(HS)) + BLOCK * (S_ROW + panel_width(HS) + 2)


@kernel
def attention(y, lse, qkv, add, work):
    """y = softmax(q·kᵀ/√HS, causal)·v; lse is the logarithm of the softmax's denominator.

    y (B, T, NH, HS), lse (B, NH, T), qkv (B, T, 3, NH, HS): reads 3 and writes 1 times B·T·NH·HS
    floats. Each thread takes an equal share of the squares: whole heads, and part of one or two.
    """
    B, T, _, NH, HS = qkv.shape
    size, blocks = scratch_floats(T, HS), count_blocks(T)
    threads = work.size // size  # numba.get_num_threads() would forbid caching the compiled kernel
    for share in prange(threads):
        thread = np.int64(share)  # prange counts unsigned: helpers would be compiled twice
        scratch = work[thread * size : (thread + 1) * size]
        start = share_start(thread, threads, B * NH, blocks)
        stop = share_start(thread + 1, threads, B * NH, blocks)
        for head in range(start // blocks, (stop + blocks - 1) // blocks):
            first, last = max(start - head * blocks, 0), min(stop - head * blocks, blocks)
            attend_head(y, lse, qkv, scratch, head // NH, head % NH, first, last)


@inline
def share_start(thread, threads, heads, blocks):
    """The first block of rows of a thread, as head·blocks + block. Block i has i + 1 squares."""
    squares = blocks * (blocks + 1) // 2
    target = heads * squares * thread // threads
    head, rest = target // squares, target % squares
    block = 0
    while (block + 1) * (block + 1) <= 2 * rest:  # as near to `rest` squares as whole blocks allow
        block += 1
    return head * blocks + block


@inline
def attend_head(y, lse, qkv, work, b, h, first, last):
    """The blocks of rows first … last-1 of one head."""
    _, T, _, NH, HS = qkv.shape
    C, width = NH * HS, panel_width(HS)
    q = qkv.ravel()[(b * T * 3 * NH + h) * HS :]  # q[t, c] is q[t·3C + c], k and v are C and 2C on
    T_blocks = count_blocks(T) * BLOCK
    kT, v, scratch = 0, T_blocks * HS, T_blocks * (HS + width)
    for j in range(last):
        here, keys = j * BLOCK, block_rows(j, T)
        pack_transposed(work, kT + here * HS, q, here * 3 * C + C, 3 * C, keys, HS)
        pack_rows(work, v + here * width, q, here * 3 * C + 2 * C, 3 * C, keys, HS)
    for i in range(first, last):
        attend_block(work, scratch, kT, v, q, 3 * C, i, T, HS)
        store_block(y, lse, work, scratch, b, h, i)


@part
def attend_block(work, scratch, kT, v, q, q_row, i, T, HS):
    """acc (rows, HS), m_i and l_i of a block of rows: online softmax over the blocks of keys."""
    width, rows = panel_width(HS), block_rows(i, T)
    s, acc = scratch, scratch + BLOCK * S_ROW
    m_i, l_i = acc + BLOCK * width, acc + BLOCK * width + BLOCK
    scale = np.float32(1 / math.sqrt(HS))
    for j in range(i + 1):
        here, keys = j * BLOCK, block_rows(j, T)
        product(
            work, s, S_ROW, q, i * BLOCK * q_row, q_row, ONE, work, kT + here * HS,
            rows, keys, HS, OUT_LOWER if j == i else WHOLE, NO,
        )  # fmt: skip
        for r in range(rows):
            n = r + 1 if j == i else keys  # keys that row r sees
            online_softmax(
                work, s + r * S_ROW, acc + r * width, m_i + r, l_i + r,
                n, min(n + TILE_ROWS, keys), HS, scale, j == 0,
            )  # fmt: skip
        product(
            work, acc, width, work, s, S_ROW, ONE, work, v + here * width,
            rows, HS, keys, A_LOWER if j == i else WHOLE, j > 0,
        )  # fmt: skip


@part
def online_softmax(work, s, acc, m_i, l_i, n, fill, HS, scale, first):
    """s becomes p = exp(scale·s - m_i), after m_i is raised and l_i and acc are rescaled to it."""
    m_block = scale * row_max(work, s, n)
    if first:  # l_i and acc hold nothing yet
        work[m_i] = m_block
        work[l_i] = row_softmax(work, s, n, fill, scale, m_block)
        return
    m_old = work[m_i]
    if m_block > m_old:
        shrink = np.float32(math.exp(m_old - m_block))
        work[m_i] = m_block
        work[l_i] *= shrink
        row_scale(work, acc, work, acc, HS, HS, shrink)
    work[l_i] += row_softmax(work, s, n, fill, scale, work[m_i])


@part
def store_block(y, lse, work, scratch, b, h, i):
    """y = acc / l_i and lse = m_i + log(l_i) for a block of rows."""
    _, T, NH, HS = y.shape
    acc = scratch + BLOCK * S_ROW
    m_i, l_i = acc + BLOCK * panel_width(HS), acc + BLOCK * panel_width(HS) + BLOCK
    for r in range(block_rows(i, T)):
        t, acc_r = i * BLOCK + r, acc + r * panel_width(HS)
        lse[b, h, t] = work[m_i + r] + np.float32(math.log(work[l_i + r]))
        y_t = ((b * T + t) * NH + h) * HS
        row_scale(y, y_t, work, acc_r, HS, HS, np.float32(1) / work[l_i + r])


# ---------------------------------------------------------------- backward


def d_attention_workspace(*, B, T, NH, HS, threads, **_) -> int:
    """Floats of `work` for `d_attention`: 2·T·HS a thread; with few heads ≤ 2·TASKS·T·HS more."""
    return partial_floats(B * NH, T, HS) + threads * d_scratch_floats(T, HS)


@inline
def d_scratch_floats(T, HS):
    """Floats of a thread: q, dy, delta of a head; kᵀ, vᵀ, k of a block; p and dp of a square."""
    of_block = 2 * HS + panel_width(HS) + 2 * S_ROW
    return count_blocks(T) * BLOCK * (2 * panel_width(HS) + 1) + BLOCK * of_block


@inline
def partial_floats(heads, T, HS):
    """Floats of the dq of each head's second, third, … group, in whole lines of the cache."""
    return (heads * (count_groups(heads, T) - 1) * T * HS + 15) // 16 * 16


@inline
def count_groups(heads, T):
    """Groups into which a head's blocks of keys are dealt: a matter of shape, not of threads."""
    return min(count_blocks(T), (TASKS + heads - 1) // heads)


@kernel
def d_attention(dqkv, dy, qkv, y, lse, add, work):
    """dqkv (B, T, 3, NH, HS) from dy and y (B, T, NH, HS), qkv and lse (B, NH, T).

    Reads 5 and writes 3 times B·T·NH·HS floats. A task is a group of blocks of keys of one head and
    owns their dk and dv. A head's first group writes its part of dq in place, the others write
    theirs to `work`; it is added at the end, in the order of the groups.
    """
    B, T, _, NH, HS = qkv.shape
    partials, size = partial_floats(B * NH, T, HS), d_scratch_floats(T, HS)
    threads = (work.size - partials) // size
    groups = count_groups(B * NH, T)
    tasks = B * NH * groups
    for share in prange(threads):
        thread = np.int64(share)
        here = partials + thread * size
        scratch = work[here : here + size]
        for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
            d_attend_group(dqkv, dy, qkv, y, lse, work, scratch, task, groups)
    for task in range(tasks):
        if task % groups > 0:
            add_partial(dqkv, work, task, groups)


@inline
def d_attend_group(dqkv, dy, qkv, y, lse, work, scratch, task, groups):
    """dk and dv of a group's blocks of keys, and their part of dq."""
    _, T, _, NH, HS = qkv.shape
    C, blocks = NH * HS, count_blocks(T)
    b, h, group = task // groups // NH, task // groups % NH, task % groups
    first, last = group_start(group, groups, blocks), group_start(group + 1, groups, blocks)
    q = qkv.ravel()[(b * T * 3 * NH + h) * HS :]  # q[t, c] is q[t·3C + c]; k and v are C and 2C on
    dqkv_h = dqkv.ravel()[(b * T * 3 * NH + h) * HS :]
    dy_h = dy.ravel()[(b * T * NH + h) * HS :]
    dq, dq_row = dqkv_h, 3 * C
    if group > 0:
        dq, dq_row = work[partial_start(task, groups, T, HS) :], HS
    for i in range(first, blocks):
        pack_queries(scratch, q, dy_h, dy, y, b, h, i)
    for j in range(first, last):
        pack_keys(scratch, q, C, j, T, HS)
        for i in range(j, blocks):
            d_scores(scratch, q, dy_h, lse[b, h], C, i, j, HS)
            d_operands(dqkv_h, dq, dq_row, scratch, C, i, j, first, T, HS)


@inline
def group_start(group, groups, blocks):
    """The first block of keys of a group. Block j has blocks - j squares, groups about equal."""
    squares = blocks * (blocks + 1) // 2
    block, before = 0, 0
    while before * groups < group * squares:
        before += blocks - block
        block += 1
    return block


@part
def partial_start(task, groups, T, HS):
    """Where the dq of a group other than its head's first is in `work`."""
    return (task // groups * (groups - 1) + task % groups - 1) * T * HS


@part
def d_layout(T, HS):
    """Where a thread has its panels of q and dy, delta, its panels of kᵀ, vᵀ and k, p and dp."""
    T_blocks, width = count_blocks(T) * BLOCK, panel_width(HS)
    delta = 2 * T_blocks * width
    kT = delta + T_blocks
    k = kT + 2 * BLOCK * HS
    p = k + BLOCK * width
    return 0, T_blocks * width, delta, kT, kT + BLOCK * HS, k, p, p + BLOCK * S_ROW


@part
def pack_queries(work, q, dy_h, dy, y, b, h, i):
    """Panels of a block of rows of q and dy, and delta = Σ_c dy·y of each row."""
    _, T, NH, HS = y.shape
    C, width, here = NH * HS, panel_width(HS), i * BLOCK
    q_panels, dy_panels, delta, _, _, _, _, _ = d_layout(T, HS)
    rows = block_rows(i, T)
    pack_rows(work, q_panels + here * width, q, here * 3 * C, 3 * C, rows, HS)
    pack_rows(work, dy_panels + here * width, dy_h, here * C, C, rows, HS)
    for t in range(here, here + rows):
        y_t = ((b * T + t) * NH + h) * HS
        work[delta + t] = row_dot(dy, y_t, y, y_t, HS)


@part
def pack_keys(work, q, C, j, T, HS):
    """Panels of kᵀ, vᵀ and k of a block of keys."""
    _, _, _, kT, vT, k_panels, _, _ = d_layout(T, HS)
    k, v = j * BLOCK * 3 * C + C, j * BLOCK * 3 * C + 2 * C
    keys = block_rows(j, T)
    pack_transposed(work, kT, q, k, 3 * C, keys, HS)
    pack_transposed(work, vT, q, v, 3 * C, keys, HS)
    pack_rows(work, k_panels, q, k, 3 * C, keys, HS)


@part
def d_scores(work, q, dy, lse, C, i, j, HS):
    """One square of p = exp(q·kᵀ/√HS - lse) and of its scores' gradient p·(dy·vᵀ - delta)/√HS.

    With s = q·kᵀ/√HS and y = p·v:  dp = dy·vᵀ and ds = p·(dp - Σ_j p·dp), where Σ_j p_j·dp_j =
    Σ_j p_j·(v_j·dy) = y·dy = delta.
    """
    T = lse.size
    _, _, delta, kT, vT, _, p, dp = d_layout(T, HS)
    rows, keys = block_rows(i, T), block_rows(j, T)
    shape = OUT_LOWER if i == j else WHOLE
    product(work, p, S_ROW, q, i * BLOCK * 3 * C, 3 * C, ONE, work, kT, rows, keys, HS, shape, NO)
    product(work, dp, S_ROW, dy, i * BLOCK * C, C, ONE, work, vT, rows, keys, HS, shape, NO)
    scale = np.float32(1 / math.sqrt(HS))
    for r in range(rows):
        t = i * BLOCK + r
        n = r + 1 if i == j else keys  # keys that row r sees
        row_d_softmax(
            work, p + r * S_ROW, work, dp + r * S_ROW, n, min(n + TILE_ROWS, keys),
            scale, lse[t], work[delta + t],
        )  # fmt: skip


@part
def d_operands(dqkv, dq, dq_row, work, C, i, j, first, T, HS):
    """dv += pᵀ·dy, dk += dsᵀ·q, dq += ds·k for one square; a row's first square stores instead."""
    q_panels, dy_panels, _, _, _, k_panels, p, ds = d_layout(T, HS)
    rows, keys, width = block_rows(i, T), block_rows(j, T), panel_width(HS)
    dk, dv = j * BLOCK * 3 * C + C, j * BLOCK * 3 * C + 2 * C
    shape = A_UPPER if i == j else WHOLE
    product(
        dqkv, dv, 3 * C, work, p, ONE, S_ROW, work, dy_panels + i * BLOCK * width,
        keys, HS, rows, shape, i > j,
    )  # fmt: skip
    product(
        dqkv, dk, 3 * C, work, ds, ONE, S_ROW, work, q_panels + i * BLOCK * width,
        keys, HS, rows, shape, i > j,
    )  # fmt: skip
    product(
        dq, i * BLOCK * dq_row, dq_row, work, ds, S_ROW, ONE, work, k_panels,
        rows, HS, keys, A_LOWER if i == j else WHOLE, j > first,
    )  # fmt: skip


@inline
def add_partial(dqkv, work, task, groups):
    """Add one group's dq to its head's."""
    _, T, _, NH, HS = dqkv.shape
    b, h, group = task // groups // NH, task // groups % NH, task % groups
    first = group_start(group, groups, count_blocks(T))
    last = group_start(group + 1, groups, count_blocks(T))
    start = partial_start(task, groups, T, HS)
    if first < last:  # a group may be empty
        dq = dqkv.ravel()[(b * T * 3 * NH + h) * HS :]
        for t in range(first * BLOCK, T):
            here, there = t * 3 * NH * HS, start + t * HS
            accumulate(dq[here : here + HS], work[there : there + HS])


# ---------------------------------------------------------------- blocks, panels, products


@inline
def count_blocks(T):
    """Blocks that T rows make."""
    return (T + BLOCK - 1) // BLOCK


@part
def block_rows(i, T):
    """Rows of block i: BLOCK, or what is left."""
    return min(BLOCK, T - i * BLOCK)


@inline
def pack_rows(out, out_at, x, x_at, x_row, rows, cols):
    """x (rows, cols) as panels (⌈cols/PANEL⌉, rows, PANEL), the last one narrower."""
    for c in range(0, cols, PANEL):
        n = min(PANEL, cols - c)
        row = panel_width(n)
        for r in range(rows):
            here, there = out_at + c * rows + r * row, x_at + r * x_row + c
            row_scale(out, here, x, there, n, row, np.float32(1))


@inline
def pack_transposed(out, out_at, x, x_at, x_row, rows, cols):
    """xᵀ (cols, rows) of x (rows, cols) as panels (⌈rows/PANEL⌉, cols, PANEL), likewise."""
    for r0 in range(0, rows, PANEL):
        row = panel_width(min(PANEL, rows - r0))
        for r in range(r0, r0 + row, LANES):
            for c in range(0, cols, LANES):
                here, there = out_at + r0 * cols + c * row + r - r0, x_at + r * x_row + c
                n, m = min(LANES, rows - r), min(LANES, cols - c)
                transpose_edge(out, here, row, x, there, x_row, n, m)


@inline
def product(
    out, out_at, out_row, a, a_at, a_row, a_col, b, b_at, rows, cols, depth, shape, add
):  # fmt: skip
    """out (rows, cols) (+)= a (rows, depth) · b (depth, cols); b is in panels, see pack_rows.

    shape: OUT_LOWER, only out's lower triangle is wanted; A_LOWER, A_UPPER, the rest of a is 0.
    Panels are the outer loop: one (64·32 floats) stays in the L1 cache while the rows of a pass by.
    """
    for c in range(0, cols, PANEL):
        n_cols = min(PANEL, cols - c)
        b_row = panel_width(n_cols)
        for r in range(c // TILE_ROWS * TILE_ROWS if shape == OUT_LOWER else 0, rows, TILE_ROWS):
            n_rows = min(TILE_ROWS, rows - r)
            first = r if shape == A_UPPER else 0
            last = min(r + TILE_ROWS, depth) if shape == A_LOWER else depth
            here = out_at + r * out_row + c
            tile_gemm(
                out, here, out_row, out, here, out_row, add,
                a, a_at + r * a_row + first * a_col, a_row, a_col,
                b, b_at + c * depth + first * b_row, last - first, n_rows, n_cols,
            )  # fmt: skip
