"""attention_cached on the CPU: new rows of queries against the keys they may see, head by head.

    k of one sequence            position  0   1   2  ...  s   s+1 ... P-1
                                 head 0    |HS |HS |HS     |new|           |
                                 head 1    |HS |HS |HS     |new|           |
                                             read: u ≤ s          not read

First every new key and value goes to its place in the cache. Then a task is BLOCK rows of one head
of one sequence, dealt to the threads in turn:

    a prompt          two matrix products (`gemm_block`) use each key and value for all rows; the
                      scores between the two, rows of s+1, stay in the L2 cache
    decoding, T = 1   one row reads each key and value once, which is what the memory has to deliver
                      anyway: packing them for a product would take twice as long

A row's sums run over the past in one order: same bits for any number of threads, and for a prompt
in any chunks of more than one row.

GPT-2's NH=12, HS=64 on 2 cores of a Sapphire Rapids, 2026-11-24: 128 rows at position 896 take 1.8
ms, one row 0.17.
"""

import math

import numpy as np
from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import add_scaled, dot, start_from, zero
from backglass.device.simd import fexp, row_max, row_scale, row_softmax
from backglass.ops.matmul.cpu import GEMM_WORK, gemm_block

__all__ = ["attention_cached", "attention_cached_workspace"]

BLOCK = 128  # rows of a task: 0.5 MB of scores where P is 1024
LINE = 16  # floats in a cache line: threads do not share one

# NumPy scalars, because Numba would compile `gemm_block` again for each plain constant it is given.
ZERO, ONE, NO = np.int64(0), np.int64(1), np.bool_(False)


def attention_cached_workspace(*, T, P, threads, **_) -> int:
    """Floats of `work`: for each thread the scores of its task and, for a prompt, packed blocks."""
    return threads * task_floats(T, P)


@inline
def task_floats(T, P):
    return score_floats(P) if T == 1 else GEMM_WORK + BLOCK * score_floats(P)


@inline
def score_floats(P):
    """From one row of scores to the next: a line more than P, which spreads a column."""
    return (P + LINE - 1) // LINE * LINE + LINE


@kernel
def attention_cached(y, k, v, qkv, start, add, work):
    """y (B,T,NH,HS) and the new positions of k, v (B,NH,P,HS), from qkv (B,T,3,NH,HS), start (B,).

    Row t of sequence b is position start[b] + t; from P on it is padding and its y is 0.
    """
    B, T, _, NH, _ = qkv.shape
    P = k.shape[2]
    for n in prange(B * T):
        b, t = np.int64(n) // T, np.int64(n) % T
        s = start[b] + t
        if s < P:
            for h in range(NH):
                start_from(k[b, h, s], qkv[b, t, 1, h])
                start_from(v[b, h, s], qkv[b, t, 2, h])
    size, blocks = task_floats(T, P), (T + BLOCK - 1) // BLOCK
    threads = work.size // size
    for share in prange(threads):
        thread = np.int64(share)
        scratch = work[thread * size : (thread + 1) * size]
        for task in range(thread, B * blocks * NH, threads):
            b, t, h = task // (blocks * NH), task // NH % blocks * BLOCK, task % NH
            s, rows = start[b] + t, min(BLOCK, T - t)
            real = max(min(rows, P - s), 0)  # the others are padding
            if real > 0 and T == 1:
                attend_row(y[b, t, h], scratch, qkv[b, t, 0, h], k[b, h], v[b, h], s + 1)
            elif real > 0:
                _attend_block(y[b], scratch, qkv[b], k[b, h], v[b, h], h, t, s, real)
            for r in range(real, rows):
                zero(y[b, t + r, h])


@inline
def attend_row(y, work, q, k, v, seen):
    """y (HS,) = Σ_u p[u]·v[u] with p = softmax(q·k[u]/√HS) over the first `seen` positions."""
    HS, scale = q.size, float32(1 / math.sqrt(q.size))
    p, k_flat, v_flat = work[:seen], k.ravel(), v.ravel()
    for u in range(seen):
        p[u] = dot(q, k_flat[u * HS : (u + 1) * HS]) * scale
    top = row_max(p, 0, seen)
    total = float32(0)
    for u in range(seen):
        e = fexp(p[u] - top)
        p[u] = e
        total += e
    zero(y)
    for u in range(seen):
        add_scaled(y, p[u], v_flat[u * HS : (u + 1) * HS])
    inverse = float32(1) / total
    for i in range(HS):
        y[i] *= inverse


@inline
def _attend_block(y, work, qkv, k, v, h, t, s, rows):
    """Rows t … t+rows-1 of one head of y (T,NH,HS), from position s on; k and v (P,HS)."""
    P, HS = k.shape
    C, keys, p_row = y.shape[1] * HS, s + rows, score_floats(P)
    y_flat, q, k_flat, v_flat = y.ravel(), qkv.ravel(), k.ravel(), v.ravel()
    gemm_block(  # q·kᵀ, the future of all but the last row included
        work, GEMM_WORK, p_row, work, ZERO, ZERO, NO, q, t * 3 * C + h * HS, 3 * C, ONE,
        k_flat, ZERO, ONE, HS, rows, keys, HS, work, ZERO,
    )  # fmt: skip
    scale = float32(1 / math.sqrt(HS))
    for r in range(rows):
        p, seen = GEMM_WORK + r * p_row, s + r + 1
        top = scale * row_max(work, p, seen)
        total = row_softmax(work, p, seen, keys, scale, top)
        row_scale(work, p, work, p, seen, seen, float32(1) / total)
    gemm_block(  # p·v
        y_flat, t * C + h * HS, C, y_flat, ZERO, ZERO, NO, work, GEMM_WORK, p_row, ONE,
        v_flat, ZERO, HS, ONE, rows, HS, keys, work, ZERO,
    )  # fmt: skip
