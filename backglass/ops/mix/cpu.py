"""mix on the CPU: each position's mixture of the values, y[t] = Σ_s att[t,s]·v[s].

                          T keys                    HS
                       +----------+              +------+
    BLOCK rows of att  |          |   ·   T keys |  v   |   =   BLOCK rows of y: one task
                       +----------+              |      |
                                                 +------+

Attention spelled out, to be read and to be looked at: a head is a plain matrix product, and its
backward two; matmul's `gemm_block` makes them. Nothing here knows that att is causal: the zeros of
the future are multiplied like any other number. The attention op is the fast form.

B=4, T=256, NH=12, HS=64 on 2 cores of a Sapphire Rapids, 2026-11-24: mix 1.2 ms, d_mix 2.8; the
same products in NumPy 1.6 and 5.0 ms.
"""

from numpy import bool_, int64

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import zero
from backglass.ops.matmul.cpu import GEMM_WORK, gemm_block

__all__ = ["d_mix", "d_mix_workspace", "mix", "mix_workspace"]

BLOCK = 128  # rows of a task: enough of them for packing the other operand to cost little
Q, K, V = range(3)  # the three parts of qkv's axis 2

# NumPy scalars, because Numba would compile `gemm_block` again for each plain constant it is given.
ZERO, ONE, NO = int64(0), int64(1), bool_(False)


def mix_workspace(*, threads, **_) -> int:
    """Floats of `work`: the packed blocks of each thread."""
    return threads * GEMM_WORK


d_mix_workspace = mix_workspace


@kernel
def mix(y, att, qkv, add, work):
    """y (B,T,NH,HS) = att·v; att (B,NH,T,T), qkv (B,T,3,NH,HS)."""
    B, T, NH, HS = y.shape
    C = NH * HS
    blocks, threads = (T + BLOCK - 1) // BLOCK, work.size // GEMM_WORK
    tasks = B * NH * blocks
    for share in prange(threads):
        thread = int64(share)  # prange counts unsigned: helpers would be compiled twice
        for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
            b, h, t = task // blocks // NH, task // blocks % NH, task % blocks * BLOCK
            y_b, att_h, v = y[b].ravel(), att[b, h].ravel(), qkv[b].ravel()[2 * C :]
            gemm_block(
                y_b, t * C + h * HS, C, y_b, ZERO, ZERO, NO, att_h, t * T, T, ONE,
                v, h * HS, 3 * C, ONE, min(BLOCK, T - t), HS, T, work, thread * GEMM_WORK,
            )  # fmt: skip


@kernel
def d_mix(datt, dqkv, dy, att, qkv, add, work):
    """forward: y = att·v      so: datt = dy·vᵀ, dv (+)= attᵀ·dy.

    All of dqkv (B,T,3,NH,HS) is written, the parts of q and k with 0. A task owns BLOCK rows of
    datt and BLOCK positions of dqkv.
    """
    B, T, NH, HS = dy.shape
    C = NH * HS
    blocks, threads = (T + BLOCK - 1) // BLOCK, work.size // GEMM_WORK
    tasks = B * NH * blocks
    for share in prange(threads):
        thread = int64(share)
        here = thread * GEMM_WORK
        for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
            b, h, t = task // blocks // NH, task // blocks % NH, task % blocks * BLOCK
            rows = min(BLOCK, T - t)
            datt_h, att_h, dy_b = datt[b, h].ravel(), att[b, h].ravel(), dy[b].ravel()
            v, dv = qkv[b].ravel()[2 * C :], dqkv[b].ravel()[2 * C :]
            gemm_block(
                datt_h, t * T, T, datt_h, ZERO, ZERO, NO, dy_b, t * C + h * HS, C, ONE,
                v, h * HS, ONE, 3 * C, rows, T, HS, work, here,
            )  # fmt: skip
            at = t * 3 * C + h * HS
            gemm_block(
                dv, at, 3 * C, dv, at, 3 * C, add[1], att_h, t, ONE, T,
                dy_b, h * HS, C, ONE, rows, HS, T, work, here,
            )  # fmt: skip
            if not add[1]:
                _clear(dqkv[b, t : t + rows], h)


@inline
def _clear(dqkv, h):
    """dq = dk = 0 for one head: q and k play no part here."""
    for t in range(dqkv.shape[0]):
        zero(dqkv[t, Q, h])
        zero(dqkv[t, K, h])
