"""global_norm on the CPU: the length of the whole gradient, √(Σ dp²).

    dp    |---- BLOCK ----|---- BLOCK ----|---- BLOCK ----|-- rest --|
                 |               |               |             |
    work    [ Σ dp² ,         Σ dp² ,         Σ dp² ,       Σ dp² ]
                 \\______________\\___ in this order ___/___________/
                                        |
    norm                              √ Σ

Squares are added in float64: a billion float32 additions would lose the small gradients, and a
gradient of 1e20 would overflow. Reads 4 bytes an element and computes next to nothing: it runs at
the speed of memory.

The blocks are of fixed size and their sums are added in order, so the result has the same bits
for any number of threads.
"""

import math

import numpy as np
from numpy import float32, float64

from backglass.device.host import inline, kernel, prange

BLOCK = 65536  # floats, 256 KiB: long enough to stream, short enough to share out


def global_norm_workspace(N: int, threads: int = 1, **_: int) -> int:
    """Floats of workspace: one float64, the room of two floats, for each block."""
    return 2 * max(1, -(-N // BLOCK))


@kernel
def global_norm(norm, dp, add, work):
    """norm (1,) = √(Σ dp²), dp (N,); N may exceed 2³¹, indices are int64."""
    n = dp.size
    n_blocks = (n + BLOCK - 1) // BLOCK
    sums = work[: 2 * n_blocks].view(np.float64)  # (n_blocks,)
    for block in prange(n_blocks):
        lo = block * BLOCK
        hi = min(lo + BLOCK, n)
        sums[block] = _sum_of_squares(dp[lo:hi])
    total = float64(0)
    for block in range(n_blocks):
        total += sums[block]
    norm[0] = float32(math.sqrt(total))


@inline
def _sum_of_squares(x):
    acc = float64(0)
    for i in range(x.size):
        value = float64(x[i])
        acc += value * value
    return acc
