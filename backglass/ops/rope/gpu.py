"""rope on the GPU: every pair of a head turned by the angle of its position.

A program takes ROWS heads, of whatever positions: their first halves a, their second halves b, and
the row of the tables that belongs to each.  Reads and writes B·T·H·HS numbers; in place the heads
of v are not touched.
"""

import triton
import triton.language as tl

from backglass.device.tiles import ELEMENTS, power_of_2


@triton.jit
def rope_kernel(
    out_p, x_p, start_p, cos_p, sin_p, rows, T, H, turning, P,
    HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr, BACK: tl.constexpr,
    IN_PLACE: tl.constexpr,
):  # fmt: skip
    """ROWS heads turned, or with BACK turned back; start_p: of position 0, or None for 0."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # (b·T + t)·H + h
    cols = tl.arange(0, BLOCK_D)[None, :]
    turns = row % H < turning  # the others are v's
    there = (row < rows) & turns if IN_PLACE else row < rows
    t = row // H % T
    if start_p is not None:
        t = tl.minimum(t + tl.load(start_p + row // H // T, mask=row < rows, other=0), P - 1)
    offs, table = row[:, None] * (2 * HALF) + cols, t[:, None] * HALF + cols
    mask = there[:, None] & (cols < HALF)
    a = tl.load(x_p + offs, mask=mask, other=0).to(tl.float32)
    b = tl.load(x_p + offs + HALF, mask=mask, other=0).to(tl.float32)
    cos = tl.load(cos_p + table, mask=mask, other=0)
    sin = tl.load(sin_p + table, mask=mask, other=0)
    if BACK:
        sin = -sin  # derivation step 8
    a_out = tl.where(turns[:, None], a * cos - b * sin, a)
    b_out = tl.where(turns[:, None], b * cos + a * sin, b)
    tl.store(out_p + offs, a_out.to(out_p.dtype.element_ty), mask=mask)
    tl.store(out_p + offs + HALF, b_out.to(out_p.dtype.element_ty), mask=mask)


def rope(out, qkv, cos, sin, kv_heads, add):
    """out (B, T, H, HS) from qkv, and cos, sin (P, HS/2) in fp32; out may be qkv."""
    turn(out, qkv, None, cos, sin, kv_heads)


def d_rope(dqkv, dout, cos, sin, kv_heads, add):
    """dqkv (B, T, H, HS) is dout turned back; it may be dout."""
    turn(dqkv, dout, None, cos, sin, kv_heads, back=True)


def turn(out, x, start, cos, sin, kv_heads, back=False):
    """out = x, its heads turned but for the last kv_heads; start (B,) or None."""
    (B, T, H, _), (P, half) = x.shape, cos.shape
    block_d = power_of_2(half)
    rows = max(1, ELEMENTS // (2 * block_d))
    rope_kernel[(triton.cdiv(B * T * H, rows),)](
        out, x, start, cos, sin, B * T * H, T, H, H - kv_heads, P,
        HALF=half, ROWS=rows, BLOCK_D=block_d, BACK=back, IN_PLACE=out.address == x.address,
    )  # fmt: skip
