"""rmsnorm on the CPU: a row at a time, while it is in the L1 cache.

    n = x·rstd,   y = n·w

forward, reads NC floats, writes NC; one task a row.
backward, reads 2NC (3NC to add), writes NC; one task a block of rows:

              columns                         work (blocks, C)
    block 0  |dy, x| --> rows of dx     + --> | Σ dy·n |
    block 1  |dy, x| --> rows of dx     + --> | Σ dy·n |
    ...                                            |         columns shared out
                                                   v
                                                  dw

As in layernorm, every block of rows writes a partial sum of its own, and a second loop adds the
blocks up in order; the blocks follow from the shape alone.

Zhang and Sennrich 2019, "Root mean square layer normalization", arXiv 1910.07467.
"""

import math

from numpy import float32

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import as_written, start_from, zero
from backglass.ops.layernorm.cpu import COLUMNS, add_up, blocks_of, rows_per_block


@kernel
def rmsnorm(y, rstd, x, w, eps, add):
    """y (N,C) = n·w; rstd (N,) is saved for the backward. y is not x's memory."""
    for n in prange(x.shape[0]):
        rstd[n] = normalise(y[n], x[n], w, eps)


@inline
def normalise(y, x, w, eps):
    """A row of y; returns its rstd."""
    acc = float32(0)
    for j in range(x.size):
        acc += x[j] * x[j]
    rstd = float32(1) / math.sqrt(acc / float32(x.size) + float32(eps))
    for j in range(y.size):
        y[j] = x[j] * rstd * w[j]
    return rstd


def d_rmsnorm_workspace(N: int, C: int, threads: int = 1, **_: int) -> int:
    """Floats of workspace: a partial dw for every block of rows."""
    return blocks_of(N) * C


@kernel
def d_rmsnorm(dx, dw, dy, x, w, rstd, add, work):
    """dx (N,C), dw (C,) from dy, x (N,C). dx may be dy's memory."""
    N, C = x.shape
    rows = rows_per_block(N)
    n_blocks = (N + rows - 1) // rows
    for block in prange(n_blocks):
        partial = work[block * C : (block + 1) * C]
        lo = block * rows
        hi = min(lo + rows, N)
        zero(partial)
        for n in range(lo, hi):
            mean_dn_n = d_row_sums(partial, dy[n], x[n], w, rstd[n])
            d_row(dx[n], dy[n], x[n], w, rstd[n], mean_dn_n, add[0])
    for task in prange((C + COLUMNS - 1) // COLUMNS):
        lo = task * COLUMNS
        hi = min(lo + COLUMNS, C)
        add_up(dw[lo:hi], work[lo:], C, n_blocks, add[1])


@inline
def d_row_sums(dw, dy, x, w, rstd):
    """A row's share of dw, and the mean over the row that dx needs.

    forward: y = n·w      so: dn = dy·w is the gradient of n
    """
    acc = float32(0)
    for j in range(x.size):
        dy_n = dy[j] * (x[j] * rstd)
        dw[j] += dy_n
        acc += dy_n * w[j]
    return acc / float32(x.size)


@inline
def d_row(dx, dy, x, w, rstd, mean_dn_n, add):
    """dx (+)= (dn - n·mean(dn·n))·rstd, the row's mean being given.

    rstd depends on every x of the row: that is where the subtracted term comes from.
    """
    if add:
        for j in range(dx.size):
            dn = _product(dy[j], w[j])
            dx[j] += (dn - x[j] * rstd * mean_dn_n) * rstd
    else:
        start_from(dx, dy)  # from here on dx holds dy, and the loop is in place
        for j in range(dx.size):
            dn = _product(dx[j], w[j])
            dx[j] = (dn - x[j] * rstd * mean_dn_n) * rstd


@as_written
def _product(a, b):
    """Rounded, not contracted into an FMA: it must cancel against n·mean, which is rounded too."""
    return a * b


# ---------------------------------------------------------------- fused

d_rmsnorm_add_workspace = d_rmsnorm_workspace


@kernel
def d_rmsnorm_add(dx, dw, dres, dy, x, w, rstd, add, work):
    """dx (N,C) = dres + d_rmsnorm(dy, …); dw (C,) written or added to.

    Where the planner lays dx over dres (the usual case) nothing is copied at all: it is d_rmsnorm
    accumulating into dres.
    """
    for n in prange(dx.shape[0]):
        start_from(dx[n], dres[n])
    d_rmsnorm(dx, dw, dy, x, w, rstd, (True, add[1]), work)
