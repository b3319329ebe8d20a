"""attention_cached on the CPU: a row of queries against the keys it may see, head by head.

    k of one sequence            position  0   1   2  ...  s   s+1 ... P-1
                                 head 0    |HS |HS |HS     |new|           |
                                 head 1    |HS |HS |HS     |new|           |
                                             read: u ≤ s          not read

First every new key and value goes to its place in the cache; then the rows (b, h, t) are dealt to
the threads in turn, so that early rows, which are cheap, and late ones mix, and a head's keys and
values stay in the L2 cache while its rows pass. A row reads (s+1)·2·HS floats of the cache; its
weights live in s+1 floats of `work`. For one new token that is what the memory has to deliver
anyway. For a prompt attention's tiles would use a key for many rows at once; here a row spends 16
ns a key at HS=64 (one core of a Sapphire Rapids with other work on it, 2026-11-22).

A row's sums run over the past in one order: same bits for any number of threads, and for a prompt
in one chunk or in many.
"""

import math

import numpy as np
from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import add_scaled, dot, start_from, zero
from backglass.device.simd import fexp, row_max

__all__ = ["attention_cached", "attention_cached_workspace"]

LINE = 16  # floats in a cache line: threads do not share one


def attention_cached_workspace(*, P, threads, **_) -> int:
    """Floats of `work`: the weights of one row for each thread."""
    return threads * row_floats(P)


@inline
def row_floats(P):
    return (P + LINE - 1) // LINE * LINE


@kernel
def attention_cached(y, k, v, qkv, start, add, work):
    """y (B,T,NH,HS) and the new positions of k, v (B,NH,P,HS), from qkv (B,T,3,NH,HS), start (B,).

    Row t of sequence b is position start[b] + t; outside 0 … P-1 it is padding and its y is 0.
    """
    B, T, _, NH, _ = qkv.shape
    P = k.shape[2]
    for n in prange(B * T):
        b, t = np.int64(n) // T, np.int64(n) % T
        s = start[b] + t
        if 0 <= s < P:
            for h in range(NH):
                start_from(k[b, h, s], qkv[b, t, 1, h])
                start_from(v[b, h, s], qkv[b, t, 2, h])
    size = row_floats(P)
    threads = work.size // size
    for share in prange(threads):
        thread = np.int64(share)
        for row in range(thread, B * T * NH, threads):
            b, h, t = row // (NH * T), row // T % NH, row % T
            s = start[b] + t
            if 0 <= s < P:
                p = work[thread * size : thread * size + s + 1]
                _attend(y[b, t, h], p, qkv[b, t, 0, h], k[b, h].ravel(), v[b, h].ravel())
            else:
                zero(y[b, t, h])


@inline
def _attend(y, p, q, k, v):
    """y (HS,) = Σ_u p[u]·v[u] with p = softmax(q·k[u]/√HS) over the first p.size of P positions."""
    HS, scale = q.size, float32(1 / math.sqrt(q.size))
    for u in range(p.size):
        p[u] = dot(q, k[u * HS : (u + 1) * HS]) * scale
    top = row_max(p, 0, p.size)
    total = float32(0)
    for u in range(p.size):
        e = fexp(p[u] - top)
        p[u] = e
        total += e
    zero(y)
    for u in range(p.size):
        add_scaled(y, p[u], v[u * HS : (u + 1) * HS])
    inverse = float32(1) / total
    for i in range(y.size):
        y[i] *= inverse
