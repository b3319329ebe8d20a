"""embed on the CPU: a token's vector plus its position's vector.

    embed      x[b,t] = wte[ids[b,t]] + wpe[t]      reads 2NC floats, writes NC   (N = B·T)
    d_embed    dwte[ids[b,t]] += dx[b,t]            reads 3NC, writes 2NC
               dwpe[t]        += Σ_b dx[b,t]

The backward scatters: a token that occurs twice adds twice to the same row of dwte. Tasks
therefore share out the columns, not the tokens: each owns its columns of dwte and dwpe, goes
through all tokens in order, and needs neither atomics nor a sort.

                 task 0     task 1     task 2
    dx[0]      |  64 cols |  64 cols |  64 cols | ...   -> dwte[ids[0]]
    dx[1]      |    |     |    |     |    |     |       -> dwte[ids[1]]
    ...             v          v          v

The order of additions is fixed by the tokens alone: same bits for any number of threads.

An id outside the table reads nothing: its row of x is NaN, which the trainer stops on.
"""

from numpy import float32, nan

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import accumulate, start_from, zero

COLUMNS = 64  # a task's columns: 4 cache lines of a row, 12 tasks for the C of GPT-2 small


@kernel
def embed(x, ids, wte, wpe, add):
    """x (B,T,C) = wte[ids] + wpe[:T]; ids (B,T) int32, wte (V,C), wpe (P,C) with P ≥ T, or None."""
    B, T = ids.shape
    for n in prange(B * T):
        b = n // T
        t = n % T
        token = ids[b, t]
        if not 0 <= token < wte.shape[0]:
            fill(x[b, t], float32(nan))
        elif wpe is not None:
            sum_rows(x[b, t], wte[token], wpe[t])
        else:
            start_from(x[b, t], wte[token])


@inline
def sum_rows(y, a, b):
    """y = a + b, one row."""
    for j in range(y.size):
        y[j] = a[j] + b[j]


@inline
def fill(y, value):
    """y = value, one row."""
    for j in range(y.size):
        y[j] = value


@kernel
def d_embed(dwte, dwpe, dx, ids, add):
    """dwte (V,C) += rows of dx (B,T,C) by token; dwpe (P,C), or None, += rows of dx by position."""
    B, T, C = dx.shape
    for task in prange((C + COLUMNS - 1) // COLUMNS):
        lo = task * COLUMNS
        hi = min(lo + COLUMNS, C)
        if not add[0]:
            _zero_columns(dwte, lo, hi)
        if dwpe is not None and not add[1]:
            _zero_columns(dwpe, lo, hi)
        for b in range(B):
            for t in range(T):
                token = ids[b, t]
                if 0 <= token < dwte.shape[0]:
                    accumulate(dwte[token, lo:hi], dx[b, t, lo:hi])
                if dwpe is not None:
                    accumulate(dwpe[t, lo:hi], dx[b, t, lo:hi])


@inline
def _zero_columns(table, lo, hi):
    for row in range(table.shape[0]):
        zero(table[row, lo:hi])
