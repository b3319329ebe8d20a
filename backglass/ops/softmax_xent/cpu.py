"""softmax_xent on the CPU: how surprised the model is by the token that came.

    lse = log Σ_j exp(logits[j]),   loss = lse - logits[target],   p = exp(logits - lse)

forward, reads 2NV floats, the second time from the L2 cache; one task a row (200 KB for GPT-2):

    logits[n]  |------------ vocab_size columns ------------|- pad -|
               1. m = the largest                              never
               2. s = Σ exp(logits - m)                        read

backward, reads NV, writes NV:

    dlogits[n] |--- (p - 1[j = target])·dloss --------------|-- 0 --|

The loss is log s + (m - logits[target]), never -log p: p underflows to 0 for logits 104 below the
largest, and its log is then infinite. m is taken off first, since m + log s would round log s
away when the logits are large.

A target of -1 marks a token that does not count: loss 0, gradient exactly 0. Any other target
outside the vocabulary reads nothing and makes the loss NaN, which the trainer stops on.

linear_xent: the head (x·wᵀ, softmax, cross-entropy) and its gradient, without (N, V) logits.

GPT-2's logits at N = 1024 would be 206 MB, written and read several times. Here they exist for at
most CHUNK rows (54 MB), and a slab of them is worked on while it is in the cache:

              SLAB entries    0  a thread per slab: e = exp(x·wᵀ - m),
            +------+------+-        with m and Σe of each of its rows
     CHUNK  |      |      |      then a row's loss, from all its m, Σe
     rows   |      |      |   1  a thread per slab: dlogits from e; dw
     of x   |      |      |   2  a thread per share of dx's columns: dx
            +------+------+-

dlogits = (softmax - onehot)·dloss = e·exp(m - lse)·dloss, less dloss at the target: no exp is taken
twice. The number of threads decides who does what, not in which order it is summed: same bits.

N = 256, C = 768, V = 50304 on 2 cores of a Sapphire Rapids, 2026-11-22: 222 ms (268 GFLOP/s);
torch 2.13, linear and cross_entropy forward and backward: 354 ms.
"""

import math

import numpy as np
from numpy import float32, nan

from backglass.device.host import inline, kernel, part, prange
from backglass.device.rows import as_written, same_memory, zero
from backglass.device.simd import fexp, row_dot, row_max, row_scale, row_softmax
from backglass.device.simd_blocks import TILE_COLS
from backglass.device.vector_ir import panel_width
from backglass.ops.matmul.cpu import gemm_block, matmul_workspace

IGNORED = -1

CHUNK = 256  # rows of x at a time: enough that reading w and dw costs little beside the products
SLAB = 384  # vocabulary entries at a time, a multiple of TILE_COLS: 0.4 MB of logits, fits L2

# NumPy scalars, because Numba would compile `gemm_block` again for each plain constant it is given.
SLAB_ROW = np.int64(SLAB + 16)  # an odd number of cache lines spreads a column over the cache
ONE, ZERO, NO = np.int64(1), np.int64(0), np.bool_(False)
PANEL = matmul_workspace(threads=1)  # floats that gemm_block needs


@kernel
def softmax_xent(loss, lse, logits, targets, vocab_size, add):
    """loss, lse (N,) of logits (N,V), over the first vocab_size columns; targets (N,) int32."""
    for n in prange(logits.shape[0]):
        row = logits[n, :vocab_size]
        m = row_max(row, 0, row.size)
        log_s = float32(math.log(_sum_of_exp(row, m)))
        lse[n] = m + log_s
        target = targets[n]
        if 0 <= target < vocab_size:
            loss[n] = _loss(log_s, m, row[target])
        else:
            loss[n] = float32(0) if target == IGNORED else float32(nan)


@as_written
def _loss(log_s, m, logit):
    return log_s + (m - logit)


@inline
def _sum_of_exp(row, m):
    acc = float32(0)
    for j in range(row.size):
        acc += fexp(row[j] - m)
    return acc


@kernel
def d_softmax_xent(dlogits, dloss, logits, lse, targets, vocab_size, add):
    """forward: loss = lse - logits[target]      so: dlogits = (p - onehot)·dloss.

    dlogits, logits (N,V), may be the same memory; dloss, lse, targets (N,).
    """
    for n in prange(logits.shape[0]):
        if targets[n] == IGNORED:
            zero(dlogits[n])
        else:
            _d_row(dlogits[n], logits[n, :vocab_size], lse[n], dloss[n])
            if 0 <= targets[n] < vocab_size:
                dlogits[n, targets[n]] -= dloss[n]


@inline
def _d_row(drow, row, lse, dloss):
    """drow = exp(row - lse)·dloss, and 0 in the columns that only drow has (the padding).

    Two loops with one body: LLVM vectorises the first only if drow and row do not overlap.
    """
    if not same_memory(drow, row):
        for j in range(row.size):
            drow[j] = fexp(row[j] - lse) * dloss
    else:
        for j in range(row.size):
            drow[j] = fexp(drow[j] - lse) * dloss
    zero(drow[row.size :])


# ---------------------------------------------------------------- linear_xent


def linear_xent_workspace(*, N, C, V, threads, **_) -> int:
    """Floats of `work`: a chunk's logits, what is known of its rows, each thread's panels."""
    return layout(chunk_rows(N), count_slabs(V))[-1] + threads * PANEL


@inline
def chunk_rows(N):
    """Rows of a chunk: at most CHUNK, and the chunks of N rows about equal."""
    chunks = (N + CHUNK - 1) // CHUNK
    return (N + chunks - 1) // chunks


@inline
def count_slabs(V):
    """Slabs that V vocabulary entries make."""
    return (V + SLAB - 1) // SLAB


@inline
def layout(rows, slabs):
    """Where things are in `work`, for a chunk of `rows` rows.

    logits (slabs, rows, SLAB_ROW); m and Σe (rows, whole vectors of slabs); target_logit and weight
    (rows); panels.
    """
    known_row = panel_width(slabs)
    m = slabs * rows * SLAB_ROW
    total, target_logit = m + rows * known_row, m + 2 * rows * known_row
    panels = (target_logit + 2 * rows + 15) // 16 * 16
    return m, total, known_row, target_logit, target_logit + rows, panels


@kernel
def linear_xent(loss, dx, dw, x, w, targets, dloss, vocab_size, add, work):
    """loss (N,), dx (N, C) and dw (V, C) of cross-entropy after logits = x·wᵀ; x (N, C), w (V, C).

    targets (N,): -1 means no loss and no gradient; dloss (N,): the weight of each row's loss.
    Entries of the vocabulary from vocab_size on do not exist: their w is not read, their dw is 0.
    A chunk reads w twice, reads and writes dw: 0.6 GB at V·C = 50304·768; 59 GFLOP at 256 rows.
    """
    N, C = x.shape
    rows = chunk_rows(N)
    panels = work[layout(rows, count_slabs(vocab_size))[-1] :]
    threads = panels.size // PANEL
    all_dx, all_dw, all_x, all_w = dx.ravel(), dw.ravel(), x.ravel(), w.ravel()
    for n in range(0, N, rows):
        dx_n, x_n, targets_n = all_dx[n * C :], all_x[n * C :], targets[n : n + rows]
        add_dw = add[2] or n > 0
        for stage in range(3):  # in one parallel region, because each costs a second to compile
            for share in prange(threads):
                thread = np.int64(share)  # prange counts unsigned: helpers would be compiled twice
                run_stage(
                    stage, thread, threads, dx_n, all_dw, x_n, all_w, targets_n, C, vocab_size,
                    add[1], add_dw, work, panels[thread * PANEL : (thread + 1) * PANEL],
                )  # fmt: skip
            if stage == 0:
                join_slabs(loss[n : n + rows], targets_n, dloss[n : n + rows], vocab_size, work)
    if not add[2]:
        zero(all_dw[vocab_size * C :])


@inline
def run_stage(
    stage, thread, threads, dx, dw, x, w, targets, C, V, add_dx, add_dw, work, panel
):  # fmt: skip
    """One thread's share of a stage."""
    slabs = count_slabs(V)
    if stage == 2:
        share_of_dx(dx, w, thread, threads, targets.size, C, V, add_dx, work, panel)
    else:
        for slab in range(slabs * thread // threads, slabs * (thread + 1) // threads):
            if stage == 0:
                exp_slab(x, w, targets, slab, C, V, work, panel)
            else:
                d_slab(dw, x, targets, slab, C, V, add_dw, work, panel)


@part
def exp_slab(x, w, targets, slab, C, V, work, panel):
    """Stage 0: logits = x·wᵀ, their maximum m in each row, e = exp(logits - m) in place, and Σe."""
    rows, first = targets.size, slab * SLAB
    cols = min(SLAB, V - first)
    m, total, known_row, target_logit, _, _ = layout(rows, count_slabs(V))
    here = slab * rows * SLAB_ROW
    gemm_block(
        work, here, SLAB_ROW, work, here, SLAB_ROW, NO,
        x, ZERO, C, ONE, w, first * C, ONE, C, rows, cols, C, panel, ZERO,
    )  # fmt: skip
    for r in range(rows):
        row, at, target = here + r * SLAB_ROW, r * known_row + slab, targets[r] - first
        if 0 <= target < cols:
            work[target_logit + r] = work[row + target]
        largest = row_max(work, row, cols)
        work[m + at] = largest
        shift = np.float32(0) if largest == -np.inf else largest  # all -inf: e = 0, not NaN
        work[total + at] = row_softmax(work, row, cols, cols, np.float32(1), shift)


@inline
def join_slabs(loss, targets, dloss, V, work):
    """Between stages 0 and 1: the loss, and in place of m what e is to be multiplied by in stage 1.

    With M the largest m of a row, Σ_V exp(logit - M) = Σ_slabs exp(m - M)·Σe =: total. So
    loss = M + log total - target_logit, and dlogits = e·exp(m - M)/total·dloss before the onehot.
    """
    rows, slabs = targets.size, count_slabs(V)
    m, sums, known_row, target_logit, weight, _ = layout(rows, slabs)
    for r in range(rows):
        m_r = m + r * known_row
        largest = row_max(work, m_r, slabs)
        row_softmax(work, m_r, slabs, slabs, np.float32(1), largest)
        total = row_dot(work, m_r, work, sums + r * known_row, slabs)
        counted = targets[r] >= 0
        lse = largest + np.float32(math.log(total))
        loss[r] = lse - work[target_logit + r] if counted else np.float32(0)
        work[weight + r] = dloss[r] if counted else np.float32(0)
        row_scale(work, m_r, work, m_r, slabs, slabs, work[weight + r] / total)


@part
def d_slab(dw, x, targets, slab, C, V, add, work, panel):
    """Stage 1: dlogits = (softmax - onehot)·dloss in place of e, and dw (+)= dlogitsᵀ·x."""
    rows, first = targets.size, slab * SLAB
    cols = min(SLAB, V - first)
    factor, _, known_row, _, weight, _ = layout(rows, count_slabs(V))
    here = slab * rows * SLAB_ROW
    for r in range(rows):
        row, target = here + r * SLAB_ROW, targets[r] - first
        counted = cols if targets[r] >= 0 else 0  # a row without target becomes 0, were it NaN
        row_scale(work, row, work, row, counted, cols, work[factor + r * known_row + slab])
        if 0 <= target < cols:
            work[row + target] -= work[weight + r]
    gemm_block(
        dw, first * C, C, dw, first * C, C, add,
        work, here, ONE, SLAB_ROW, x, ZERO, C, ONE, cols, C, rows, panel, ZERO,
    )  # fmt: skip


@part
def share_of_dx(dx, w, thread, threads, rows, C, V, add, work, panel):
    """Stage 2: dx (+)= dlogits·w for some columns, or, with many threads, some rows and columns."""
    panels = (C + TILE_COLS - 1) // TILE_COLS
    row_parts = (threads + panels - 1) // panels
    col_parts = threads // row_parts
    row_part, col_part = thread // col_parts, thread % col_parts
    first_row, last_row = rows * row_part // row_parts, rows * (row_part + 1) // row_parts
    first_col = panels * col_part // col_parts * TILE_COLS
    last_col = min(panels * (col_part + 1) // col_parts * TILE_COLS, C)
    has_share = row_part < row_parts and first_row < last_row and first_col < last_col
    at = first_row * C + first_col
    for slab in range(count_slabs(V) if has_share else 0):
        first = slab * SLAB
        gemm_block(
            dx, at, C, dx, at, C, add or slab > 0,
            work, (slab * rows + first_row) * SLAB_ROW, SLAB_ROW, ONE,
            w, first * C + first_col, C, ONE,
            last_row - first_row, last_col - first_col, min(SLAB, V - first), panel, ZERO,
        )  # fmt: skip
