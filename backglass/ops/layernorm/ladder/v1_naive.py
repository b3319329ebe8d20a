"""layernorm, rung 1: the formulas, one loop nest for each quantity, as they are written.

Every quantity is a pass of its own over x, and the sums over rows go down the columns:

    dw[c] = Σ_n dy[n,c]·xhat[n,c]        c outside, n inside

      x, dy   | . . . c . . . |
              | . . . c . . . |    the loop steps C floats, 4C bytes, at a time: of each cache
              | . . . c . . . |    line of 16 floats it fetches, it uses one

Slow for two reasons, which rung 2 cures: x and dy are read from memory (or the L2 cache) once for
each quantity, and the column walk wastes cache lines and can use no vector loads.
"""

import math

from numpy import float32

from backglass.device.host import kernel, prange


@kernel
def layernorm(y, mean, rstd, x, w, b, eps, add):
    """y (N,C), mean, rstd (N,) from x (N,C), w, b (C,)."""
    N, C = x.shape
    for n in prange(N):
        acc = float32(0)
        for c in range(C):
            acc += x[n, c]
        mean[n] = acc / float32(C)
    for n in prange(N):
        acc = float32(0)
        for c in range(C):
            acc += (x[n, c] - mean[n]) ** 2
        rstd[n] = float32(1) / math.sqrt(acc / float32(C) + float32(eps))
    for n in prange(N):
        for c in range(C):
            y[n, c] = (x[n, c] - mean[n]) * rstd[n] * w[c] + b[c]


@kernel
def d_layernorm(dx, dw, db, dy, x, w, mean, rstd, add, work):
    """dx (N,C), dw, db (C,) from dy, x (N,C). work is not used: nothing is shared out."""
    N, C = x.shape
    for c in prange(C):
        acc = float32(0)
        for n in range(N):
            acc += dy[n, c] * (x[n, c] - mean[n]) * rstd[n]
        dw[c] = dw[c] + acc if add[1] else acc
    for c in prange(C):
        acc = float32(0)
        for n in range(N):
            acc += dy[n, c]
        db[c] = db[c] + acc if add[2] else acc
    for n in prange(N):  # after dw and db: dx may be dy's memory
        mean_dn = float32(0)
        mean_dn_xhat = float32(0)
        for c in range(C):
            mean_dn += dy[n, c] * w[c] / float32(C)
        for c in range(C):
            mean_dn_xhat += dy[n, c] * w[c] * (x[n, c] - mean[n]) * rstd[n] / float32(C)
        for c in range(C):
            xhat = (x[n, c] - mean[n]) * rstd[n]
            value = (dy[n, c] * w[c] - mean_dn - xhat * mean_dn_xhat) * rstd[n]
            dx[n, c] = dx[n, c] + value if add[0] else value
