"""rope_at on the CPU: rope's turn, at each sequence's own positions.

Reads and writes B·T·H·HS floats; in place v is not touched. One task a token.
"""

import numpy as np

from backglass.device.host import kernel, prange
from backglass.device.rows import start_from
from backglass.ops.rope.cpu import turn


@kernel
def rope_at(out, qkv, start, cos, sin, kv_heads, add):
    """out (B,T,H,HS) from qkv, start (B,) int32, cos and sin (P,HS/2); out may be qkv's memory."""
    B, T, H, _ = qkv.shape
    for n in prange(B * T):
        b, t = np.int64(n) // T, np.int64(n) % T
        s = min(start[b] + t, cos.shape[0] - 1)
        start_from(out[b, t].ravel(), qkv[b, t].ravel())
        for h in range(H - kv_heads):
            turn(out[b, t, h], cos[s], sin[s])
