"""rope on the CPU: every pair of a head turned by the angle of its position.

    a'_i = a_i·cos[t,i] − b_i·sin[t,i]     b'_i = b_i·cos[t,i] + a_i·sin[t,i]

         out[b,t,h]   | a_0 a_1 … a_HS/2-1 | b_0 b_1 … b_HS/2-1 |     a head's two halves
         cos[t]       | c_0 c_1 … c_HS/2-1 |                          the same for all heads of t

Reads and writes B·T·H·HS floats; in place v is not touched. The tables of a position stay in the
L1 cache while its heads pass by. One task a position: no sum crosses it.
"""

import numpy as np

from backglass.device.host import inline, kernel, prange
from backglass.device.rows import start_from

__all__ = ["d_rope", "rope"]


@kernel
def rope(out, qkv, cos, sin, kv_heads, add):
    """out (B,T,H,HS) from qkv, and cos, sin (P,HS/2); out may be qkv's memory."""
    B, T, H, _ = qkv.shape
    for n in prange(B * T):
        b, t = np.int64(n) // T, np.int64(n) % T
        start_from(out[b, t].ravel(), qkv[b, t].ravel())
        for h in range(H - kv_heads):
            turn(out[b, t, h], cos[t], sin[t])


@kernel
def d_rope(dqkv, dout, cos, sin, kv_heads, add):
    """forward: a turn by an angle      so: dqkv is dout turned back. May be in place."""
    B, T, H, _ = dout.shape
    for n in prange(B * T):
        b, t = np.int64(n) // T, np.int64(n) % T
        start_from(dqkv[b, t].ravel(), dout[b, t].ravel())
        for h in range(H - kv_heads):
            turn_back(dqkv[b, t, h], cos[t], sin[t])


@inline
def turn(x, cos, sin):
    """The pairs (x[i], x[i + HS/2]) of one head, turned where they are."""
    half = cos.size
    first, second = x[:half], x[half:]
    for i in range(half):
        a, b = first[i], second[i]
        first[i] = a * cos[i] - b * sin[i]
        second[i] = b * cos[i] + a * sin[i]


@inline
def turn_back(x, cos, sin):
    """The inverse of turn: steps 5 and 7 of the derivation."""
    half = cos.size
    first, second = x[:half], x[half:]
    for i in range(half):
        a, b = first[i], second[i]
        first[i] = a * cos[i] + b * sin[i]
        second[i] = b * cos[i] - a * sin[i]
