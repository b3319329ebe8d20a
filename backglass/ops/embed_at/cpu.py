"""embed_at on the CPU: a token's vector plus the vector of its own position.

    x[b,t] = wte[ids[b,t]] + wpe[start[b] + t]          reads 2NC floats, writes NC   (N = B·T)

One task a token. A position past the table is padding: its row of x is 0. An id outside the table
reads nothing: its row is NaN, as in embed.
"""

import numpy as np
from numpy import float32, nan

from backglass.device.host import kernel, prange
from backglass.ops.embed.cpu import fill, sum_rows


@kernel
def embed_at(x, ids, start, wte, wpe, add):
    """x (B,T,C) from ids (B,T) and start (B,) int32, wte (V,C), wpe (P,C)."""
    B, T = ids.shape
    for n in prange(B * T):
        b, t = np.int64(n) // T, np.int64(n) % T
        token, s = ids[b, t], start[b] + t
        if s < 0 or s >= wpe.shape[0]:
            fill(x[b, t], float32(0))
        elif 0 <= token < wte.shape[0]:
            sum_rows(x[b, t], wte[token], wpe[s])
        else:
            fill(x[b, t], float32(nan))
