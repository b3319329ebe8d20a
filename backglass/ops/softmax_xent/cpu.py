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
"""

import math

from numpy import float32, nan

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import as_written, same_memory, zero
from backglass.device.simd import fexp, row_max

IGNORED = -1


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
