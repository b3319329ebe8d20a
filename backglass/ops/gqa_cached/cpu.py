"""gqa_cached on the CPU: new rows of queries against the keys they may see, head by head.

    k of one sequence            position  0   1  ...  s-window+1 ...  s   s+1 ... P-1
                                 head 0    |HS |HS |     |HS |HS |HS |new|           |
                                 head 1    |HS |HS |     |HS |HS |HS |new|           |
                                             not read      read            not read

The kernels are those of attention_cached, of which a window takes the end. A task is BLOCK rows of
one query head of one sequence. A thread's tasks follow one another: the query heads that share keys
find them in its L2 cache, so a token reads the cache from memory once, NH/KV times less than
attention would.

A row's sums run over the past in one order: same bits for any number of threads, and for a prompt
in any chunks of more than one row.
"""

import math

import numpy as np
from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import start_from, zero
from backglass.device.simd import row_max, row_scale, row_softmax
from backglass.ops.attention_cached.cpu import (
    BLOCK,
    NO,
    ONE,
    ZERO,
    attend_row,
    score_floats,
    task_floats,
)
from backglass.ops.gqa.maths import count_kv_heads
from backglass.ops.matmul.cpu import BLOCK_DEPTH, GEMM_WORK, gemm_block

__all__ = ["gqa_cached", "gqa_cached_workspace"]


def gqa_cached_workspace(*, T, H, NH, P, threads, **_) -> int:
    """Floats of `work`, as for attention_cached.  Raises ValueError for wrong heads."""
    count_kv_heads(H, NH)
    return threads * task_floats(T, P)


@kernel
def gqa_cached(y, k, v, qkv, start, window, add, work):
    """y (B,T,NH,HS) and the new positions of k, v (B,KV,P,HS), from qkv (B,T,NH+2·KV,HS), start.

    Row t of sequence b is position start[b] + t; from P on it is padding and its y is 0.
    """
    B, T, NH, _ = y.shape
    KV, P = k.shape[1:3]
    append(k, v, qkv, start, NH)
    size, blocks = task_floats(T, P), (T + BLOCK - 1) // BLOCK
    threads, tasks = work.size // size, B * blocks * NH
    for share in prange(threads):
        thread = np.int64(share)
        scratch = work[thread * size : (thread + 1) * size]
        for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
            b, t, h = task // (blocks * NH), task // NH % blocks * BLOCK, task % NH
            s, rows, g = start[b] + t, min(BLOCK, T - t), h // (NH // KV)
            real = max(min(rows, P - s), 0)  # the others are padding
            if real > 0 and T == 1:
                lo = max(s - window + 1, 0) if window else 0
                k_g, v_g = k[b, g, lo:], v[b, g, lo:]
                attend_row(y[b, t, h], scratch, qkv[b, t, h], k_g, v_g, s + 1 - lo)
            elif real > 0:
                attend_block(y[b], scratch, qkv[b], k[b, g], v[b, g], h, t, s, real, window)
            for r in range(real, rows):
                zero(y[b, t + r, h])


@inline
def append(k, v, qkv, start, NH):
    """The new keys and values go to their places."""
    B, T, _, _ = qkv.shape
    KV, P = k.shape[1:3]
    for b in range(B):
        for t in range(min(T, P - start[b])):
            for g in range(KV):
                start_from(k[b, g, start[b] + t], qkv[b, t, NH + g])
                start_from(v[b, g, start[b] + t], qkv[b, t, NH + KV + g])


@inline
def attend_block(y, work, qkv, k, v, h, t, s, rows, window):
    """Rows t … t+rows-1 of one head of y (T,NH,HS), from position s on; k and v (P,HS).

    Keys from `lo` on: before the window's begin, in whole blocks of the product's depth, so that
    sums are split at the same positions whatever the chunk.
    """
    P, HS = k.shape
    C, H, p_row = y.shape[1] * HS, qkv.shape[1], score_floats(P)
    lo = max(s - window + 1, 0) // BLOCK_DEPTH * BLOCK_DEPTH if window else 0
    keys = s + rows - lo
    y_flat, q, k_flat, v_flat = y.ravel(), qkv.ravel(), k[lo:].ravel(), v[lo:].ravel()
    gemm_block(  # q·kᵀ, the future of all but the last row included
        work, GEMM_WORK, p_row, work, ZERO, ZERO, NO, q, (t * H + h) * HS, H * HS, ONE,
        k_flat, ZERO, ONE, HS, rows, keys, HS, work, ZERO,
    )  # fmt: skip
    scale = float32(1 / math.sqrt(HS))
    for r in range(rows):
        hidden = max(s + r - window + 1 - lo, 0) if window else 0
        p, seen = GEMM_WORK + r * p_row + hidden, s + r + 1 - lo - hidden
        top = scale * row_max(work, p, seen)
        total = row_softmax(work, p, seen, keys - hidden, scale, top)
        row_scale(work, p, work, p, seen, seen, float32(1) / total)
        if hidden > 0:
            row_scale(work, p - hidden, work, p - hidden, 0, hidden, float32(1))
    gemm_block(  # p·v
        y_flat, t * C + h * HS, C, y_flat, ZERO, ZERO, NO, work, GEMM_WORK, p_row, ONE,
        v_flat, ZERO, HS, ONE, rows, HS, keys, work, ZERO,
    )  # fmt: skip
