"""RoPE for a piece of a sequence: token t of sequence b stands at position start[b] + t.

Forward, with s = min(start[b] + t, P − 1):

    out[b,t] = qkv[b,t], the pairs of its heads of q and k turned by the angles of position s

Why it is an op of its own
     1  rope gives token t position t, which is right for a whole sequence only.
     2  in generation the first new token comes after start[b] others, and sequences of one batch
        differ in that: start is a tensor, so one recorded program serves every step.
     3  a key is turned once, by its own position, and kept so in the cache: by step 2 of rope's
        derivation later queries need nothing else.
     4  past the last position there is only padding, which nobody reads: it is turned like the last
        one, and stays finite.

Nothing is differentiated here.   P: rows of the tables.
Source: Su et al. 2021, "RoFormer", arXiv 2104.09864, eq. 34.
"""

import numpy as np

from backglass.ops.rope.maths import halves
from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="qkv[B,T,H,HS] start[B] cos[P,HS2] sin[P,HS2] -> out[B,T,H,HS]",
    integers="start:0:P",
    attrs="kv_heads=0",
    constant="cos sin",
    wide="cos sin",
    inplace="out:qkv",
    flops={"rope_at": "3*B*T*(H - kv_heads)*HS"},
    bytes={"rope_at": "2*B*T*H*HS + B + 2*B*T*HS2"},
    cases=(
        dict(B=1, T=1, H=1, HS=2, HS2=1, P=1),
        dict(B=2, T=7, H=9, HS=16, HS2=8, P=9, kv_heads=1),
        dict(B=5, T=3, H=6, HS=6, HS2=3, P=40, kv_heads=2),
        dict(B=3, T=1, H=12, HS=64, HS2=32, P=128, kv_heads=4),
    ),
    example=dict(B=2, T=2, H=3, HS=2, HS2=1, P=4, kv_heads=1),
)


def rope_at(qkv, start, cos, sin, *, kv_heads, T, P):
    out = qkv.copy()  # (B, T, H, HS)
    a, b = halves(qkv, kv_heads)
    a_out, b_out = halves(out, kv_heads)
    s = np.minimum(start[:, None] + np.arange(T), P - 1)  # 4; (B, T)
    c, s = cos[s][:, :, None], sin[s][:, :, None]  # (B, T, 1, HS/2)
    a_out[...] = a * c - b * s
    b_out[...] = b * c + a * s
    return (out,)
