"""layernorm, rung 2: a row at a time, rows shared out; each row comes from memory once.

    row of x (3 KB for C = 768)  -->  mean  -->  rstd  -->  row of y
         from memory                   ^ the second and third look find it in the L1 cache

The row is a slice, x[n], so every loop starts at 0 and LLVM vectorises it. The sums over rows, dw
and db, are now walked along the rows too: C running sums, in order, contiguous. But all rows add
to the same C sums, so that loop cannot be shared out, and runs on one thread: that, and reading x
and dy a second time for it, is what rung 3 removes.
"""

import math

from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import zero


@kernel
def layernorm(y, mean, rstd, x, w, b, eps, add):
    """y (N,C), mean, rstd (N,) from x (N,C), w, b (C,)."""
    for n in prange(x.shape[0]):
        mean[n], rstd[n] = _row(y[n], x[n], w, b, float32(eps))


@inline
def _row(y, x, w, b, eps):
    C = float32(x.size)
    acc = float32(0)
    for c in range(x.size):
        acc += x[c]
    mean = acc / C
    acc = float32(0)
    for c in range(x.size):
        acc += (x[c] - mean) ** 2
    rstd = float32(1) / math.sqrt(acc / C + eps)
    for c in range(x.size):
        y[c] = (x[c] - mean) * rstd * w[c] + b[c]
    return mean, rstd


@kernel
def d_layernorm(dx, dw, db, dy, x, w, mean, rstd, add, work):
    """dx (N,C), dw, db (C,) from dy, x (N,C). work is not used: one thread does all sums."""
    if not add[1]:
        zero(dw)
    if not add[2]:
        zero(db)
    for n in range(x.shape[0]):  # before dx, which may be dy's memory
        _add_row(dw, db, dy[n], x[n], mean[n], rstd[n])
    for n in prange(x.shape[0]):
        _d_row(dx[n], dy[n], x[n], w, mean[n], rstd[n], add[0])


@inline
def _add_row(dw, db, dy, x, mean, rstd):
    for c in range(x.size):
        dw[c] += dy[c] * (x[c] - mean) * rstd
        db[c] += dy[c]


@inline
def _d_row(dx, dy, x, w, mean, rstd, add):
    mean_dn = float32(0)
    mean_dn_xhat = float32(0)
    for c in range(x.size):
        dn = dy[c] * w[c]
        mean_dn += dn
        mean_dn_xhat += dn * (x[c] - mean) * rstd
    mean_dn /= float32(x.size)
    mean_dn_xhat /= float32(x.size)
    for c in range(x.size):
        xhat = (x[c] - mean) * rstd
        value = (dy[c] * w[c] - mean_dn - xhat * mean_dn_xhat) * rstd
        dx[c] = dx[c] + value if add else value
