"""gqa_cached on the GPU: the new keys and values go into the cache, then queries read it.

    append_kernel        copies 2·B·T·KV·HS numbers
    gqa_cached_kernel    reads, for each block of queries, the cache from the window's begin up to
                         where they stand

The query heads that share keys are rows of one tile, beside those of other positions: it has 16
rows whatever T is, and the cache is read once for all of them.

    row of the tile      0          1          …   NH/KV - 1     NH/KV      …
    position, head       t, g·G     t, g·G+1   …   t, g·G+G-1    t+1, g·G   …        G = NH/KV

Scores exist one tile at a time, and the softmax is summed as it goes, as in ops/attention.  A
sequence parked at start = P has y = 0 and leaves its cache alone.
"""

import math

import triton
import triton.language as tl

from backglass.device.tiles import power_of_2
from backglass.ops.attention.gpu import LOG2E, online_softmax
from backglass.ops.attention_cached.gpu import BLOCK_M, BLOCK_N
from backglass.ops.gqa.gpu import LOWEST
from backglass.ops.gqa.maths import count_kv_heads


@triton.jit
def append_kernel(
    k_p, v_p, qkv_p, start_p, T, NH, KV, P,
    HS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, g = tl.program_id(0) // KV, tl.program_id(0) % KV
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    cols = tl.arange(0, BLOCK_D)
    s = tl.load(start_p + b) + t
    mask = ((t < T) & (s < P))[:, None] & (cols < HS)[None, :]
    rows = (b * T + t).to(tl.int64) * (NH + 2 * KV)
    source = qkv_p + (rows + NH + g)[:, None] * HS + cols[None, :]
    target = (tl.program_id(0).to(tl.int64) * P + s)[:, None] * HS + cols[None, :]
    tl.store(k_p + target, tl.load(source, mask=mask, other=0), mask=mask)
    tl.store(v_p + target, tl.load(source + KV * HS, mask=mask, other=0), mask=mask)


@triton.jit
def gqa_cached_kernel(
    y_p, k_p, v_p, qkv_p, start_p, T, NH, KV, P, window, scale,
    HS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, g, G = tl.program_id(0) // KV, tl.program_id(0) % KV, NH // KV
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    t, h = row // G, g * G + row % G
    cols = tl.arange(0, BLOCK_D)
    s = tl.load(start_p + b) + t
    live = (t < T) & (s < P)
    mask = live[:, None] & (cols < HS)[None, :]
    token = (b * T + t).to(tl.int64)
    q_offs = (token * (NH + 2 * KV) + h)[:, None] * HS + cols[None, :]
    q = tl.load(qkv_p + q_offs, mask=mask, other=0)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m_i = tl.full((BLOCK_M,), LOWEST, tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    cache = tl.program_id(0).to(tl.int64) * P * HS
    end = tl.max(tl.where(live, s, -1), 0) + 1  # beyond it the cache may hold anything, NaN too
    oldest = tl.maximum(tl.min(tl.where(live, s, P), 0) - window + 1, 0)
    for first in range(oldest // BLOCK_N * BLOCK_N, end, BLOCK_N):
        u = first + tl.arange(0, BLOCK_N)
        there = (u < end)[:, None] & (cols < HS)[None, :]
        offs = cache + u[:, None] * HS + cols[None, :]
        k = tl.load(k_p + offs, mask=there, other=0)
        v = tl.load(v_p + offs, mask=there, other=0)
        scores = tl.dot(q, k.T, input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        seen = (u[None, :] <= s[:, None]) & (u[None, :] > s[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        acc, m_i, l_i = online_softmax(acc, m_i, l_i, scores, v, scale, PRECISION)
    y = tl.where(live[:, None], acc / tl.where(live, l_i, 1)[:, None], 0)
    inside = (t < T)[:, None] & (cols < HS)[None, :]
    y_offs = (token * NH + h)[:, None] * HS + cols[None, :]
    tl.store(y_p + y_offs, y.to(y_p.dtype.element_ty), mask=inside)


def gqa_cached(y, k, v, qkv, start, window, add):
    """y (B, T, NH, HS), k and v (B, KV, P, HS) in place, from qkv (B, T, NH + 2·KV, HS), start."""
    (B, T, NH, HS), P = y.shape, k.shape[2]
    KV = count_kv_heads(qkv.shape[2], NH)
    sizes = dict(HS=HS, BLOCK_D=power_of_2(HS, 16))
    append_kernel[(B * KV, triton.cdiv(T, BLOCK_M))](
        k, v, qkv, start, T, NH, KV, P, BLOCK_T=BLOCK_M, **sizes
    )
    gqa_cached_kernel[(B * KV, triton.cdiv(T * NH // KV, BLOCK_M))](
        y, k, v, qkv, start, T, NH, KV, P, window or P, LOG2E.value / math.sqrt(HS),
        BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N[k.dtype.itemsize], PRECISION=k.precision, **sizes,
    )  # fmt: skip
