"""Rung 2: loop order and blocks. The inner loop runs along memory, and what it reads is in cache.

70 / 48 / 48 GFLOP/s for matmul / d_matmul_x / d_matmul_w (N = 256, O = 2304, C = 768, 2 cores of a
Sapphire Rapids, 2026-11-22).

The products whose sum runs down a column (d_matmul_x, d_matmul_w) become sums of scaled rows, which
vectorise; the forward keeps its dot products. A block of rows of one matrix stays in the cache
while all rows of the other pass by:

        rows of x          BLOCK rows of w (in cache)
        +---------+        +---------+
        | x[n]    |   x    | w[o]    |   ->   y[n, o0 : o0+BLOCK]
        +---------+        |  ...    |
          for all n        +---------+
"""

import numpy as np

from backglass.device.host import inline, kernel, prange

BLOCK = 32  # rows: 32·768·4 bytes = 96 KiB


@inline
def _add_scaled(out, scale, row):
    """out += scale·row, on slices that start at 0 so that the loop vectorises."""
    for i in range(out.size):
        out[i] += scale * row[i]


@inline
def _dot(a, b):
    acc = np.float32(0)
    for i in range(a.size):
        acc += a[i] * b[i]
    return acc


@kernel
def matmul(y, x, w, b, add, work):
    """y = x · wᵀ + b: each task meets BLOCK rows of w with every row of x."""
    N, O = y.shape
    for block in prange((O + BLOCK - 1) // BLOCK):
        for n in range(N):
            for o in range(block * BLOCK, min(O, (block + 1) * BLOCK)):
                acc = _dot(x[n], w[o])
                if b is not None:
                    acc += b[o]
                y[n, o] = acc


@kernel
def d_matmul_x(dx, dy, w, add, work):
    """dx (+)= dy · w: BLOCK rows of dx stay in cache while the rows of w are added to them."""
    N, O = dy.shape
    for block in prange((N + BLOCK - 1) // BLOCK):
        first, last = block * BLOCK, min(N, (block + 1) * BLOCK)
        if not add[0]:
            dx[first:last] = 0
        for o in range(O):
            for n in range(first, last):
                _add_scaled(dx[n], dy[n, o], w[o])


@kernel
def d_matmul_w(dw, db, dy, x, add, work):
    """dw (+)= dyᵀ · x: BLOCK rows of dw stay in cache while the rows of x are added to them."""
    N, O = dy.shape
    for block in prange((O + BLOCK - 1) // BLOCK):
        first, last = block * BLOCK, min(O, (block + 1) * BLOCK)
        if not add[0]:
            dw[first:last] = 0
        if db is not None and not add[1]:
            db[first:last] = 0
        for n in range(N):
            for o in range(first, last):
                _add_scaled(dw[o], dy[n, o], x[n])
            if db is not None:
                _add_scaled(db[first:last], np.float32(1), dy[n, first:last])
