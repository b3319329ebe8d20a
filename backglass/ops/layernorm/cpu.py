"""layernorm on the CPU: a row at a time, while it is in the L1 cache.

    xhat = (x - mean)·rstd,   y = xhat·w + b

forward, reads NC floats, writes NC; one task a row:

    row of x  --->  mean          first look: from memory
              --->  rstd          second look: from L1
              --->  row of y      third look: from L1

backward, reads 2NC (3NC to add), writes NC; one task a block of rows:

              columns                         work (blocks, 2, C)
    block 0  |dy, x| --> rows of dx     + --> | Σ dy·xhat | Σ dy |
    block 1  |dy, x| --> rows of dx     + --> | Σ dy·xhat | Σ dy |
    ...                                            |         |     columns shared out
                                                   v         v
                                                  dw        db

dw and db are sums over rows, which belong to different tasks: every block of rows writes partial
sums of its own, and a second loop adds the blocks up in order. The blocks follow from the shape
alone, so the bits do not depend on the number of threads.

How this came to be, with the slower forms it replaced and their speeds: ladder/.
Ba, Kiros and Hinton 2016, "Layer normalization", arXiv 1607.06450.
"""

import math

from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import accumulate, as_written, start_from, zero

MIN_ROWS = 16  # rows of a block at least: fewer would make adding up the partials dear
MAX_BLOCKS = 64  # bounds the workspace; above 64 threads some would have no block
COLUMNS = 128  # columns of dw and db a task adds up


@kernel
def layernorm(y, mean, rstd, x, w, b, eps, add):
    """y (N,C) = xhat·w + b; mean, rstd (N,) are saved for the backward. y is not x's memory."""
    for n in prange(x.shape[0]):
        mean[n], rstd[n] = _moments(x[n], eps)
        _normalise(y[n], x[n], mean[n], rstd[n], w, b)


@inline
def _moments(x, eps):
    """Mean and 1/√(variance + eps) of a row. Two passes: E[x²] - E[x]² would cancel."""
    inverse_C = float32(1) / float32(x.size)
    acc = float32(0)
    for j in range(x.size):
        acc += x[j]
    mean = acc * inverse_C
    acc = float32(0)
    for j in range(x.size):
        deviation = x[j] - mean
        acc += deviation * deviation
    return mean, float32(1) / math.sqrt(acc * inverse_C + float32(eps))


@inline
def _normalise(y, x, mean, rstd, w, b):
    for j in range(y.size):
        y[j] = (x[j] - mean) * rstd * w[j] + b[j]


def _rows_per_block(N):
    return max(MIN_ROWS, (N + MAX_BLOCKS - 1) // MAX_BLOCKS)


def blocks_of(N: int) -> int:
    """Blocks of rows, each with partial sums of its own."""
    return max(1, -(-N // _rows_per_block(N)))


def d_layernorm_workspace(N: int, C: int, threads: int = 1, **_: int) -> int:
    """Floats of workspace: a partial dw and db for every block of rows."""
    return 2 * blocks_of(N) * C


rows_per_block = inline(_rows_per_block)


@kernel
def d_layernorm(dx, dw, db, dy, x, w, mean, rstd, add, work):
    """dx (N,C), dw (C,), db (C,) from dy, x (N,C). dx may be dy's memory."""
    N, C = x.shape
    rows = rows_per_block(N)
    n_blocks = (N + rows - 1) // rows
    for block in prange(n_blocks):
        partial = work[2 * block * C : 2 * (block + 1) * C]  # (2C,) = dw and db of these rows
        lo = block * rows
        hi = min(lo + rows, N)
        _d_rows(dx[lo:hi], partial, dy[lo:hi], x[lo:hi], w, mean[lo:hi], rstd[lo:hi], add[0])
    n_tasks = (C + COLUMNS - 1) // COLUMNS  # for each of dw and db
    for task in prange(2 * n_tasks):
        is_db = task // n_tasks
        lo = (task % n_tasks) * COLUMNS
        hi = min(lo + COLUMNS, C)
        out = db if is_db else dw
        add_up(out[lo:hi], work[is_db * C + lo :], 2 * C, n_blocks, add[1 + is_db])


@inline
def _d_rows(dx, partial, dy, x, w, mean, rstd, add):
    """The block's rows of dx, and the sums over them that are its share of dw and db."""
    C = w.size
    zero(partial)
    for n in range(x.shape[0]):
        mean_dn, mean_dn_xhat = _d_row_sums(
            partial[:C], partial[C:], dy[n], x[n], w, mean[n], rstd[n]
        )
        _d_row(dx[n], dy[n], x[n], w, mean[n], rstd[n], mean_dn, mean_dn_xhat, add)


@inline
def _d_row_sums(dw, db, dy, x, w, mean, rstd):
    """A row's share of dw and db, and the two means over the row that dx needs.

    forward: y = xhat·w + b      so: dn = dy·w is the gradient of xhat
    """
    inverse_C = float32(1) / float32(x.size)
    sum_dn = float32(0)
    sum_dn_xhat = float32(0)
    for j in range(x.size):
        xhat = (x[j] - mean) * rstd
        dn = dy[j] * w[j]
        dw[j] += dy[j] * xhat
        db[j] += dy[j]
        sum_dn += dn
        sum_dn_xhat += dn * xhat
    return sum_dn * inverse_C, sum_dn_xhat * inverse_C


@inline
def _d_row(dx, dy, x, w, mean, rstd, mean_dn, mean_dn_xhat, add):
    """dx (+)= (dn - mean(dn) - xhat·mean(dn·xhat))·rstd, the row's two means being given.

    mean and rstd depend on every x of the row: that is where the two subtracted terms come from.
    dn is rounded before the mean is subtracted: contracted into one FMA it would keep digits that
    mean_dn has lost, and where dx should be 0 (one column, say) leave their noise times rstd.
    """
    if add:
        for j in range(dx.size):
            xhat = (x[j] - mean) * rstd
            dn = _product(dy[j], w[j])
            dx[j] += (dn - mean_dn - xhat * mean_dn_xhat) * rstd
    else:
        start_from(dx, dy)  # from here on dx holds dy, and the loop is in place
        for j in range(dx.size):
            xhat = (x[j] - mean) * rstd
            dn = _product(dx[j], w[j])
            dx[j] = (dn - mean_dn - xhat * mean_dn_xhat) * rstd


@as_written
def _product(a, b):
    return a * b


@inline
def add_up(out, partials, stride, n_blocks, add):
    """out (+)= the n_blocks partial sums, which are `stride` floats apart, in their order."""
    if not add:
        zero(out)
    for block in range(n_blocks):
        accumulate(out, partials[block * stride : block * stride + out.size])


# ---------------------------------------------------------------- fused

d_layernorm_add_workspace = d_layernorm_workspace


@kernel
def d_layernorm_add(dx, dw, db, dres, dy, x, w, mean, rstd, add, work):
    """dx (N,C) = dres + d_layernorm(dy, …); dw, db (C,) written or added to.

    The residual stream's gradient arrives in dres and leaves in dx. Where the planner lays dx over
    dres (the usual case) nothing is copied at all: it is d_layernorm accumulating into dres.
    """
    for n in prange(dx.shape[0]):
        start_from(dx[n], dres[n])
    d_layernorm(dx, dw, db, dy, x, w, mean, rstd, (True, add[1], add[2]), work)
