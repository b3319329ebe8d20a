"""RoPE turns each query and key by an angle that grows with its position, so that their dot product
knows how far apart the two stand.

Forward, for each head of q and k at position t, its first half a and its second half b, with the
tables cos[t,i] = cos(t·θ_i) and sin[t,i] = sin(t·θ_i), i < HS/2:

    a'_i = a_i·cos[t,i] − b_i·sin[t,i]        b'_i = b_i·cos[t,i] + a_i·sin[t,i]

The heads of v, the last kv_heads, are carried over as they are.

Backward, from da' and db':

    da_i = da'_i·cos[t,i] + db'_i·sin[t,i]    db_i = db'_i·cos[t,i] − da'_i·sin[t,i]    dv = dv'

Derivation
     1  (a_i, b_i) is a point in a plane. Turned by the angle t·θ_i it becomes
                                              a' = a·cos − b·sin,   b' = b·cos + a·sin
     2  what this is for: turn q by t·θ and k by s·θ. A turn of both by −s·θ changes no dot product,
        so q'·k' is q turned by (t − s)·θ times k as it was: only the distance counts.
     3  the frequencies are a geometric series, θ_i = base^(−2i/HS): fast pairs tell neighbours
        apart, slow ones far places.
     4  a' and b' are linear in a and b; each of these enters both:
                                              ∂a'/∂a = cos,   ∂b'/∂a = sin
     5  the chain rule over 4:                da = da'·cos + db'·sin
     6  the same for b:                       ∂a'/∂b = −sin,   ∂b'/∂b = cos
     7  the chain rule over 6:                db = db'·cos − da'·sin
     8  5 and 7 are 1 with −sin for sin: the gradient is turned back by the same angle.
     9  v passes unchanged:                   dv = dv'
    10  the tables hold numbers known beforehand. The model makes them, in whatever way it scales
        its frequencies; nothing is differentiated with respect to them.
    11  which numbers make a pair is a convention of the weights: here i and i + HS/2, as in Hugging
        Face; in Meta's and llama2.c's files 2i and 2i + 1.

Saved: nothing; a rotation needs only its angle to be undone.
Source: Su et al. 2021, "RoFormer", arXiv 2104.09864, eq. 15 and 34.
"""

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="qkv[B,T,H,HS] cos[P,HS2] sin[P,HS2] -> out[B,T,H,HS]",
    backward={"d_rope": "dout[B,T,H,HS] cos sin -> dqkv[B,T,H,HS]"},
    attrs="kv_heads=0",
    constant="cos sin",
    wide="cos sin",
    inplace="out:qkv dqkv:dout",
    flops={
        "rope": "3*B*T*(H - kv_heads)*HS",
        "d_rope": "3*B*T*(H - kv_heads)*HS",
    },
    cases=(
        dict(B=1, T=1, H=1, HS=2, HS2=1, P=1),
        dict(B=2, T=7, H=9, HS=16, HS2=8, P=7, kv_heads=1),
        dict(B=2, T=37, H=6, HS=6, HS2=3, P=40, kv_heads=2),
        dict(B=1, T=65, H=4, HS=24, HS2=12, P=65),
        dict(B=3, T=33, H=12, HS=64, HS2=32, P=128, kv_heads=4),
    ),
    example=dict(B=1, T=3, H=3, HS=2, HS2=1, P=4, kv_heads=1),
)


def halves(x, kv_heads):
    """The halves of the heads that turn: views of (B,T,H-kv_heads,HS/2)."""
    H, HS = x.shape[2:]
    return x[:, :, : H - kv_heads, : HS // 2], x[:, :, : H - kv_heads, HS // 2 :]


def rope(qkv, cos, sin, *, kv_heads, T):
    out = qkv.copy()  # (B, T, H, HS)
    a, b = halves(qkv, kv_heads)
    a_out, b_out = halves(out, kv_heads)
    c, s = cos[:T, None], sin[:T, None]  # (T, 1, HS/2)
    a_out[...] = a * c - b * s
    b_out[...] = b * c + a * s
    return (out,)


def d_rope(dout, cos, sin, *, kv_heads, T):
    dqkv = dout.copy()  # 9
    da_out, db_out = halves(dout, kv_heads)
    da, db = halves(dqkv, kv_heads)
    c, s = cos[:T, None], sin[:T, None]
    da[...] = da_out * c + db_out * s  # 5
    db[...] = db_out * c - da_out * s  # 7
    return (dqkv,)
