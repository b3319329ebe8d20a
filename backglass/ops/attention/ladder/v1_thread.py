"""attention on the GPU, rung 1: the formulas, with every head's T×T plane in memory.  One thread,
one number.

    attention     scores_kernel    S[t,s] = q[t]·k[s]/√HS, s ≤ t             a thread, a score
                  lse_kernel       lse[t] = log Σ_s exp S[t,s]               a thread, a row
                  mix_kernel       y[t,i] = Σ_s exp(S[t,s] − lse[t])·v[s,i]  a thread, a number of y
    d_attention   row_dots_kernel  D[t]                                      a thread, a row
                  d_scores_kernel  P[t,s] and dS[t,s], s ≤ t                 a thread, one of each
                  d_q_kernel       dq[t,i]                                   a thread, one of dq
                  d_kv_kernel      dk[s,i] and dv[s,i]                       a thread, one of each

Between two kernels everything lies in memory: B·NH·T² numbers forward, twice as many backward, 3.2
and 6.4 GB for a batch of 64 in GPT-2's smallest model.  And every multiplication fetches two.

A grid is (head, column, row), its blocks one head wide: neighbouring threads are neighbours in a
row.  Where they want what lies along it (mix_kernel's v, d_q_kernel's k), they share a fetch; where
each wants a k of its own (scores_kernel), it takes as many fetches as threads.
"""

import math

from numba import cuda
from numpy import float32

from backglass.device.cuda_threads import (
    BLOCK,
    SIDE,
    blocks_for,
    device,
    f32,
    kernel,
    launch,
    like,
)

FLOOR = float32(-math.inf)  # less than any score

# ---------------------------------------------------------------- forward


@kernel
def scores_kernel(S, qkv, scale):
    head, s, t = cuda.grid(3)
    if s <= t and t < qkv.shape[1]:
        b, h = divmod(head, qkv.shape[3])
        q, k = qkv[b, :, 0, h], qkv[b, :, 1, h]  # (T, HS)
        S[head, t, s] = row_dot(q, t, k, s) * scale


@kernel
def lse_kernel(lse, S):
    head, t = cuda.grid(2)
    if t < lse.shape[2]:
        b, h = divmod(head, lse.shape[1])
        top = FLOOR
        for s in range(t + 1):
            top = max(top, S[head, t, s])
        total = float32(0)
        for s in range(t + 1):
            total += math.exp(S[head, t, s] - top)
        lse[b, h, t] = top + math.log(total)


@kernel
def mix_kernel(y, S, lse, qkv):
    head, i, t = cuda.grid(3)
    if t < y.shape[1] and i < y.shape[3]:
        b, h = divmod(head, y.shape[2])
        v, lse_t = qkv[b, :, 2, h], lse[b, h, t]
        acc = float32(0)
        for s in range(t + 1):
            acc += math.exp(S[head, t, s] - lse_t) * f32(v[s, i])  # 5
        y[b, t, h, i] = like(acc, y[b, t, h, i])


# ---------------------------------------------------------------- backward


@kernel
def row_dots_kernel(D, dy, y):
    head, t = cuda.grid(2)
    if t < y.shape[1]:
        b, h = divmod(head, y.shape[2])
        D[head, t] = row_dot(dy[b, :, h], t, y[b, :, h], t)  # 8


@kernel
def d_scores_kernel(P, dS, dy, qkv, lse, D, scale):
    head, s, t = cuda.grid(3)
    if s <= t and t < qkv.shape[1]:
        b, h = divmod(head, qkv.shape[3])
        q, k, v = qkv[b, :, 0, h], qkv[b, :, 1, h], qkv[b, :, 2, h]  # (T, HS)
        p = math.exp(row_dot(q, t, k, s) * scale - lse[b, h, t])  # 5
        dp = row_dot(dy[b, :, h], t, v, s)  # 1
        P[head, t, s] = p
        dS[head, t, s] = p * (dp - D[head, t])  # 2


@kernel
def d_q_kernel(dqkv, dS, qkv, scale):
    head, i, t = cuda.grid(3)
    if t < qkv.shape[1] and i < qkv.shape[4]:
        b, h = divmod(head, qkv.shape[3])
        k, dq = qkv[b, :, 1, h], dqkv[b, :, 0, h]
        acc = float32(0)
        for s in range(t + 1):
            acc += dS[head, t, s] * f32(k[s, i])  # 3
        dq[t, i] = like(acc * scale, dq[t, i])


@kernel
def d_kv_kernel(dqkv, P, dS, dy, qkv, scale):
    head, i, s = cuda.grid(3)
    if s < qkv.shape[1] and i < qkv.shape[4]:
        b, h = divmod(head, qkv.shape[3])
        q, dk, dv = qkv[b, :, 0, h], dqkv[b, :, 1, h], dqkv[b, :, 2, h]
        acc_dk, acc_dv = float32(0), float32(0)
        for t in range(s, qkv.shape[1]):
            acc_dk += dS[head, t, s] * f32(q[t, i])  # 3
            acc_dv += P[head, t, s] * f32(dy[b, t, h, i])  # 1
        dk[s, i] = like(acc_dk * scale, dk[s, i])
        dv[s, i] = like(acc_dv, dv[s, i])


@device
def row_dot(a, n, b, m):
    """a[n]·b[m]."""
    acc = float32(0)
    for i in range(a.shape[1]):
        acc += f32(a[n, i]) * f32(b[m, i])
    return acc


# ---------------------------------------------------------------- launchers


def attention_workspace(*, B: int, T: int, NH: int, **_: object) -> int:
    """S in fp32."""
    return B * NH * T * T * 4


def attention(y, lse, qkv, add, work):
    """y (B, T, NH, HS) and lse (B, NH, T) from qkv (B, T, 3, NH, HS)."""
    B, T, NH, HS = y.shape
    scale = scale_of(HS)
    S = work.part(0, "fp32", B * NH, T, T)
    one_each(scores_kernel, B * NH, T, T, S, qkv, scale)
    one_a_row(lse_kernel, B * NH, T, lse, S)
    one_each(mix_kernel, B * NH, HS, T, y, S, lse, qkv)


def d_attention_workspace(*, B: int, T: int, NH: int, **_: object) -> int:
    """P, dS and D in fp32."""
    return B * NH * T * (2 * T + 1) * 4


def d_attention(dqkv, dy, qkv, y, lse, add, work):
    """dqkv (B, T, 3, NH, HS) from dy (B, T, NH, HS)."""
    B, T, NH, HS = y.shape
    scale = scale_of(HS)
    plane = B * NH * T * T * 4
    P = work.part(0, "fp32", B * NH, T, T)
    dS = work.part(plane, "fp32", B * NH, T, T)
    D = work.part(2 * plane, "fp32", B * NH, T)
    one_a_row(row_dots_kernel, B * NH, T, D, dy, y)
    one_each(d_scores_kernel, B * NH, T, T, P, dS, dy, qkv, lse, D, scale)
    one_each(d_q_kernel, B * NH, HS, T, dqkv, dS, qkv, scale)
    one_each(d_kv_kernel, B * NH, HS, T, dqkv, P, dS, dy, qkv, scale)


def scale_of(HS: int):
    """1/√HS as fp32: a Python float would turn what it multiplies into fp64."""
    return float32(1 / math.sqrt(HS))


def one_each(run, heads, columns, rows, *operands):
    """A thread for each number of every head's (rows, columns)."""
    blocks = heads, blocks_for(columns, SIDE), blocks_for(rows, SIDE)
    launch(run, blocks, (1, SIDE, SIDE), *operands)


def one_a_row(run, heads, rows, *operands):
    """A thread for each row of every head."""
    launch(run, (heads, blocks_for(rows, BLOCK)), (1, BLOCK), *operands)
