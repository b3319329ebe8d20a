"""scores on the CPU: how much each query asks for each key, preatt[t,s] = q[t]·k[s]/√HS.

                         k, T rows of HS floats inside qkv
                        +---------------------------------+
    BLOCK rows of q     |  BLOCK rows of preatt: one task |
                        +---------------------------------+

Attention spelled out, to be read and to be looked at: every pair is computed, the masked ones
too, for the mask is causal_softmax's. So a head is a plain matrix product, and its backward two:
matmul's `gemm_block` makes them. The attention op is the fast form.

B=4, T=256, NH=12, HS=64 on 2 cores of a Sapphire Rapids, 2026-11-24: scores 1.3 ms, d_scores 3.1;
the same products in NumPy 3.6 and 4.9 ms.
"""

import math

from numpy import bool_, float32, int64

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import add_scaled, zero
from backglass.ops.matmul.cpu import GEMM_WORK, gemm_block

__all__ = ["d_scores", "d_scores_workspace", "scores", "scores_workspace"]

BLOCK = 128  # rows of a task: enough of them for packing the other operand to cost little
Q, K, V = range(3)  # the three parts of qkv's axis 2

# NumPy scalars, because Numba would compile `gemm_block` again for each plain constant it is given.
ZERO, ONE, NO = int64(0), int64(1), bool_(False)


def scores_workspace(*, threads, **_) -> int:
    """Floats of `work`: the packed blocks of each thread."""
    return threads * GEMM_WORK


@kernel
def scores(preatt, qkv, add, work):
    """preatt (B,NH,T,T) = q·kᵀ/√HS for all pairs; qkv (B,T,3,NH,HS)."""
    B, T, _, NH, HS = qkv.shape
    C, scale = NH * HS, float32(1 / math.sqrt(HS))
    blocks, threads = (T + BLOCK - 1) // BLOCK, work.size // GEMM_WORK
    tasks = B * NH * blocks
    for share in prange(threads):
        thread = int64(share)  # prange counts unsigned: helpers would be compiled twice
        for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
            b, h, t = task // blocks // NH, task // blocks % NH, task % blocks * BLOCK
            rows = min(BLOCK, T - t)
            block = preatt[b, h, t : t + rows].ravel()
            q = qkv[b].ravel()[h * HS :]  # q[t, i] is q[t·3C + i], k and v are C and 2C on
            gemm_block(
                block, ZERO, T, block, ZERO, ZERO, NO, q, t * 3 * C, 3 * C, ONE,
                q, C, ONE, 3 * C, rows, T, HS, work, thread * GEMM_WORK,
            )  # fmt: skip
            for n in range(block.size):
                block[n] *= scale


def d_scores_workspace(*, HS, threads, **_) -> int:
    """Floats of `work`: the packed blocks of each thread and a block of dq or dk."""
    return threads * (GEMM_WORK + BLOCK * HS)


@kernel
def d_scores(dqkv, dpreatt, qkv, add, work):
    """forward: preatt = q·kᵀ/√HS      so: dq (+)= dpreatt·k/√HS, dk (+)= dpreattᵀ·q/√HS.

    All of dqkv (B,T,3,NH,HS) is written, the part of v with 0. A task owns BLOCK of its positions.
    """
    B, T, _, NH, HS = qkv.shape
    C, size = NH * HS, GEMM_WORK + BLOCK * HS
    blocks, threads = (T + BLOCK - 1) // BLOCK, work.size // size
    tasks = B * NH * blocks
    for share in prange(threads):
        thread = int64(share)
        scratch = work[thread * size : (thread + 1) * size]
        d = scratch[GEMM_WORK:]
        for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
            b, h, t = task // blocks // NH, task // blocks % NH, task % blocks * BLOCK
            rows = min(BLOCK, T - t)
            q, dpreatt_h = qkv[b].ravel()[h * HS :], dpreatt[b, h].ravel()
            gemm_block(
                d, ZERO, HS, d, ZERO, ZERO, NO, dpreatt_h, t * T, T, ONE,
                q, C, 3 * C, ONE, rows, HS, T, scratch, ZERO,
            )  # fmt: skip
            _store(dqkv[b, t : t + rows, Q, h], d, add[0])
            gemm_block(
                d, ZERO, HS, d, ZERO, ZERO, NO, dpreatt_h, t, ONE, T,
                q, ZERO, 3 * C, ONE, rows, HS, T, scratch, ZERO,
            )  # fmt: skip
            _store(dqkv[b, t : t + rows, K, h], d, add[0])
            if not add[0]:
                for n in range(rows):
                    zero(dqkv[b, t + n, V, h])


@inline
def _store(dx, d, add):
    """dx (+)= d/√HS, both with rows of HS."""
    rows, HS = dx.shape
    scale = float32(1 / math.sqrt(HS))
    for n in range(rows):
        if not add:
            zero(dx[n])
        add_scaled(dx[n], scale, d[n * HS : (n + 1) * HS])
