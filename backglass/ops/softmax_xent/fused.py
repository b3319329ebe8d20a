"""linear_xent: the head (x·wᵀ, softmax, cross-entropy) and its whole gradient, without the (N, V)
logits.

    equals    logits = matmul(x, w);  loss, lse = softmax_xent(logits, targets)
              dlogits = d_softmax_xent(dloss, logits, lse, targets)
              dx (+)= d_matmul_x(dlogits, w);  dw (+)= d_matmul_w(dlogits, x)

GPT-2's logits at N = 1024 would be 206 MB, written and read several times. Here they exist for at
most CHUNK rows (51 MB), and a slab of them is worked on while it is in the cache:

                 SLAB vocabulary entries
               +------+------+------+ - -     stage 0, a thread per slab:  e = exp(x·wᵀ - m), m and Σe
     CHUNK     |      |      |      |                                      of each row of the slab
     rows      |      |      |      |         between: lse of a row from its slabs' m and Σe; loss
     of x      |      |      |      |         stage 1, a thread per slab:  e becomes dlogits; dw
               +------+------+------+ - -     stage 2, a thread per share of the columns:  dx

dlogits = (softmax - onehot)·dloss = e·exp(m - lse)·dloss, less dloss at the target: no exp is taken
twice. Nothing depends on the number of threads but who does what: same bits on any.
"""

import math

import numpy as np
from numba import njit

from backglass.device.host import FASTMATH, inline, kernel, prange
from backglass.device.rows import zero
from backglass.device.simd import TILE_COLS, row_max, row_scale, row_softmax
from backglass.ops.matmul.cpu import gemm_block, matmul_workspace

__all__ = ["linear_xent", "linear_xent_workspace"]

CHUNK = 256  # rows of x at a time: enough that reading w and dw costs little beside the products
SLAB = (
    384  # vocabulary entries at a time, a multiple of TILE_COLS: a slab of a chunk fits an L2 cache
)

# NumPy scalars, because Numba would compile `gemm_block` once more for each plain constant it is
# given.
SLAB_ROW = np.int64(SLAB + 16)  # an odd number of cache lines spreads a column over the cache
ONE, ZERO, NO = np.int64(1), np.int64(0), np.bool_(False)
PANEL = matmul_workspace(threads=1)  # floats that gemm_block needs
# Helpers with one caller become part of it: LLVM would optimise each again with every function
# around it.
part = njit(inline="always", error_model="numpy", fastmath=FASTMATH)


def linear_xent_workspace(*, N, C, V, threads, **_) -> int:
    """Floats of `work`: the chunk's logits, what is known of its rows, and a panel for each
    thread."""
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

    logits (slabs, rows, SLAB_ROW); m and Σe (slabs, rows); target_logit, lse, weight (rows);
    panels.
    """
    m = slabs * rows * SLAB_ROW
    target_logit = m + 2 * slabs * rows
    panels = (target_logit + 3 * rows + 15) // 16 * 16
    return (
        0,
        m,
        m + slabs * rows,
        target_logit,
        target_logit + rows,
        target_logit + 2 * rows,
        panels,
    )


@kernel
def linear_xent(loss, dx, dw, x, w, targets, dloss, vocab_size, add, work):
    """loss (N,), dx (N, C) and dw (V, C) of cross-entropy after logits = x·wᵀ; x (N, C), w (V, C).

    targets (N,): -1 means no loss and no gradient; dloss (N,): the weight of each row's loss.
    Entries of the vocabulary from vocab_size on do not exist: their w is not read, their dw is 0.
    A chunk reads w twice and dw once, and writes dw: 0.6 GB at V·C = 50304·768, 59 GFLOP at 256
    rows.
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
                thread = np.int64(
                    share
                )  # prange counts unsigned: run_stage would be compiled twice
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
    logits, m, total, target_logit, _, _, _ = layout(rows, count_slabs(V))
    here = logits + slab * rows * SLAB_ROW
    gemm_block(
        work, here, SLAB_ROW, work, here, SLAB_ROW, NO,
        x, ZERO, C, ONE, w, first * C, ONE, C, rows, cols, C, panel, ZERO,
    )  # fmt: skip
    for r in range(rows):
        row, at, target = here + r * SLAB_ROW, slab * rows + r, targets[r] - first
        if 0 <= target < cols:
            work[target_logit + r] = work[row + target]
        largest = row_max(work, row, cols)
        work[m + at] = largest
        shift = np.float32(0) if largest == -np.inf else largest  # all -inf: e = 0, not NaN
        work[total + at] = row_softmax(work, row, cols, cols, np.float32(1), shift)


@inline
def join_slabs(loss, targets, dloss, V, work):
    """lse = M + log Σ_slabs Σe·exp(m - M) with M the largest m; loss = lse - the target's logit."""
    rows, slabs = targets.size, count_slabs(V)
    _, m, total, target_logit, lse, weight, _ = layout(rows, slabs)
    for r in range(rows):
        largest, row_total = work[m + r], np.float32(0)
        for slab in range(1, slabs):
            largest = max(largest, work[m + slab * rows + r])
        for slab in range(slabs):
            at = slab * rows + r
            row_total += work[total + at] * np.float32(math.exp(work[m + at] - largest))
        work[lse + r] = largest + np.float32(math.log(row_total))
        counted = targets[r] >= 0
        loss[r] = work[lse + r] - work[target_logit + r] if counted else np.float32(0)
        work[weight + r] = dloss[r] if counted else np.float32(0)


@part
def d_slab(dw, x, targets, slab, C, V, add, work, panel):
    """Stage 1: dlogits = (softmax - onehot)·dloss in place of e, and dw (+)= dlogitsᵀ·x."""
    rows, first = targets.size, slab * SLAB
    cols = min(SLAB, V - first)
    logits, m, _, _, lse, weight, _ = layout(rows, count_slabs(V))
    here = logits + slab * rows * SLAB_ROW
    for r in range(rows):
        row, target = here + r * SLAB_ROW, targets[r] - first
        factor = np.float32(math.exp(work[m + slab * rows + r] - work[lse + r])) * work[weight + r]
        counted = cols if targets[r] >= 0 else 0
        row_scale(work, row, work, row, counted, cols, factor)
        if 0 <= target < cols and counted > 0:
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
            work, (slab * rows + first_row) * SLAB_ROW, SLAB_ROW, ONE, w, first * C + first_col, C, ONE,
            last_row - first_row, last_col - first_col, min(SLAB, V - first), panel, ZERO,
        )  # fmt: skip
