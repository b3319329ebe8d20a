"""Rung 1: the formula. One output at a time, its sum in a scalar.

40 GFLOP/s (N = 256, O = 2304, C = 768, 2 cores of a Sapphire Rapids, 2026-11-22). The forward
reads both rows in order and vectorises. d_matmul_x and d_matmul_w step down a column of w, dy or x,
fetch a cache line for each float, and reach 2.
"""

import numpy as np

from backglass.device.host import kernel, prange


@kernel
def matmul(y, x, w, b, add, work):
    """y[n, o] = Σ_c x[n, c]·w[o, c] + b[o]."""
    N, C = x.shape
    for n in prange(N):
        for o in range(w.shape[0]):
            acc = np.float32(0)
            for c in range(C):
                acc += x[n, c] * w[o, c]
            if b is not None:
                acc += b[o]
            y[n, o] = acc


@kernel
def d_matmul_x(dx, dy, w, add, work):
    """dx[n, c] (+)= Σ_o dy[n, o]·w[o, c]."""
    N, C = dx.shape
    for n in prange(N):
        for c in range(C):
            acc = np.float32(0)
            for o in range(w.shape[0]):
                acc += dy[n, o] * w[o, c]
            dx[n, c] = dx[n, c] + acc if add[0] else acc


@kernel
def d_matmul_w(dw, db, dy, x, add, work):
    """dw[o, c] (+)= Σ_n dy[n, o]·x[n, c] and db[o] (+)= Σ_n dy[n, o]."""
    O, C = dw.shape
    for o in prange(O):
        for c in range(C):
            acc = np.float32(0)
            for n in range(x.shape[0]):
                acc += dy[n, o] * x[n, c]
            dw[o, c] = dw[o, c] + acc if add[0] else acc
        if db is not None:
            total = np.float32(0)
            for n in range(x.shape[0]):
                total += dy[n, o]
            db[o] = db[o] + total if add[1] else total
