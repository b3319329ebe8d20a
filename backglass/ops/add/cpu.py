"""add on the CPU: the two arms of a residual connection meet.

    add      y = a + b             reads 2N floats, writes N
    d_add    da += dy, db += dy    reads N to 3N, writes 2N

There is nothing to compute here, only memory to move: each task takes one chunk.
"""

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import CHUNK, accumulate, same_memory, write_or_add


@kernel
def add(y, a, b, add):
    """y = a + b, all (N,). y may be a's or b's memory."""
    n = y.size
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        lo = chunk * CHUNK
        hi = min(lo + CHUNK, n)
        _sum(y[lo:hi], a[lo:hi], b[lo:hi])


@inline
def _sum(y, a, b):
    """y = a + b on one chunk; in place it is an accumulation (device/rows.py says why)."""
    if same_memory(y, a):
        accumulate(y, b)
    elif same_memory(y, b):
        accumulate(y, a)
    else:
        for i in range(y.size):
            y[i] = a[i] + b[i]


@kernel
def d_add(da, db, dy, add):
    """forward: y = a + b      so: da += dy, db += dy. All (N,); da may be dy's memory.

    db goes first: where da is dy's memory, dy must still be whole when db reads it.  db is None
    where its reader takes dy itself.
    """
    n = dy.size
    for chunk in prange((n + CHUNK - 1) // CHUNK):
        lo = chunk * CHUNK
        hi = min(lo + CHUNK, n)
        if db is not None:
            write_or_add(db[lo:hi], dy[lo:hi], add[1])
        write_or_add(da[lo:hi], dy[lo:hi], add[0])
