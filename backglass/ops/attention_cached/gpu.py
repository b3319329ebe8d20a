"""attention_cached on the GPU: the new keys and values go into the cache, then queries read it.

    append_kernel              copies 2·B·T·NH·HS numbers
    attention_cached_kernel    reads for each block of queries the cache up to where they stand

The second is attention's forward with the cache in place of k and v: scores exist one tile at a
time, and the softmax is summed as it goes (m_i, l_i; see ops/attention).  A sequence parked at
start = P has y = 0 and leaves its cache alone.
"""

import math

import triton
import triton.language as tl

from backglass.device.tiles import power_of_2

BLOCK_M = 16  # queries of a tile: tl.dot wants 16, also for one new token
BLOCK_N = {2: 64, 4: 32}  # keys, by bytes of a number: 64 of fp32 spill at HS = 128
LOG2E = 1.4426950408889634


@triton.jit
def append_kernel(
    k_p, v_p, qkv_p, start_p, T, NH, P,
    HS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0) // NH, tl.program_id(0) % NH
    t = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    cols = tl.arange(0, BLOCK_D)
    s = tl.load(start_p + b) + t
    mask = ((t < T) & (s < P))[:, None] & (cols < HS)[None, :]
    source = qkv_p + ((b * T + t).to(tl.int64) * 3 * NH + h)[:, None] * HS + cols[None, :]
    target = (tl.program_id(0).to(tl.int64) * P + s)[:, None] * HS + cols[None, :]
    tl.store(k_p + target, tl.load(source + NH * HS, mask=mask, other=0), mask=mask)
    tl.store(v_p + target, tl.load(source + 2 * NH * HS, mask=mask, other=0), mask=mask)


@triton.jit
def attention_cached_kernel(
    y_p, k_p, v_p, qkv_p, start_p, T, NH, P, scale,
    HS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0) // NH, tl.program_id(0) % NH
    t = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = tl.arange(0, BLOCK_D)
    s = tl.load(start_p + b) + t
    live = (t < T) & (s < P)
    mask = live[:, None] & (cols < HS)[None, :]
    rows = (b * T + t).to(tl.int64)[:, None]
    q = tl.load(qkv_p + (rows * 3 * NH + h) * HS + cols[None, :], mask=mask, other=0)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    cache = tl.program_id(0).to(tl.int64) * P * HS
    end = tl.max(tl.where(live, s, -1), 0) + 1  # beyond it the cache may hold anything, NaN too
    for first in range(0, end, BLOCK_N):
        u = first + tl.arange(0, BLOCK_N)
        there = (u < end)[:, None] & (cols < HS)[None, :]
        offs = cache + u[:, None] * HS + cols[None, :]
        k = tl.load(k_p + offs, mask=there, other=0)
        v = tl.load(v_p + offs, mask=there, other=0)
        scores = tl.dot(q, k.T, input_precision=PRECISION) * scale  # (BLOCK_M, BLOCK_N)
        scores = tl.where(u[None, :] <= s[:, None], scores, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(scores, 1))
        p = tl.exp2(scores - m_new[:, None])
        shrink = tl.exp2(m_i - m_new)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        m_i, l_i = m_new, l_i * shrink + tl.sum(p, 1)
    y = tl.where(live[:, None], acc / tl.where(live, l_i, 1)[:, None], 0)
    inside = (t < T)[:, None] & (cols < HS)[None, :]
    offs = (rows * NH + h) * HS + cols[None, :]
    tl.store(y_p + offs, y.to(y_p.dtype.element_ty), mask=inside)


def attention_cached(y, k, v, qkv, start, add):
    """y (B, T, NH, HS), k and v (B, NH, P, HS) in place, from qkv (B, T, 3, NH, HS), start (B,)."""
    (B, T, NH, HS), P = y.shape, k.shape[2]
    sizes = dict(HS=HS, BLOCK_D=power_of_2(HS, 16))
    append_kernel[(B * NH, triton.cdiv(T, BLOCK_M))](
        k, v, qkv, start, T, NH, P, BLOCK_T=BLOCK_M, **sizes
    )
    attention_cached_kernel[(B * NH, triton.cdiv(T, BLOCK_M))](
        y, k, v, qkv, start, T, NH, P, LOG2E / math.sqrt(HS),
        BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N[k.dtype.itemsize], PRECISION=k.precision, **sizes,
    )  # fmt: skip
