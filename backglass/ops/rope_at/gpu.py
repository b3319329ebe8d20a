"""rope_at on the GPU: rope's kernel, with each sequence's own first position."""

from backglass.ops.rope.gpu import turn


def rope_at(out, qkv, start, cos, sin, kv_heads, add):
    """out (B, T, H, HS) from qkv, start (B,), cos and sin (P, HS/2) in fp32; out may be qkv."""
    turn(out, qkv, start, cos, sin, kv_heads)
