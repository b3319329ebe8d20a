"""scores on the GPU, and the tile products over heads that mix shares.

    rows_by_rows     w[t,s] = scale·Σ_i a[t,i]·b[s,i]      preatt = q·kᵀ/√HS;   mix: datt = dy·vᵀ
    weighted_rows    y[t,i] = scale·Σ_s w[t,s]·x[s,i]      dq = dpreatt·k/√HS;  mix: y = att·v
       transposed    y[s,i] = scale·Σ_t w[t,s]·x[t,i]      dk = dpreattᵀ·q/√HS; mix: dv = attᵀ·dy

w is (B, NH, T, T); a, b, x, y are heads of a packed (B, T, heads, HS) tensor, read and written
where they lie.  Attention spelled out, to be looked at: all T² pairs are computed and stored, those
of the future too.  rows_by_rows writes B·NH·T² numbers, weighted_rows reads as many; the rest is
small.
"""

import math

import triton
import triton.language as tl

from backglass.device.tiles import power_of_2, store

# (side of a tile of w, warps): tensor cores want 64; fp32 without them keeps a tile's rows of HS
# numbers in registers, which 32 just fit
TILES = {"bf16": (64, 4), "tf32": (64, 4), "fp32": (32, 8)}


@triton.jit
def rows_by_rows_kernel(
    w_p, a_p, b_p, a_head, a_heads, b_head, b_heads, T, NH, scale,
    HS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, h = tl.program_id(0) // NH, tl.program_id(0) % NH
    first_t, first_s = tl.program_id(1) * BLOCK, tl.program_id(2) * BLOCK
    a_rows = load_rows(a_p, b, first_t, T, a_head + h, a_heads, HS, BLOCK, BLOCK_D, False)
    b_rows = load_rows(b_p, b, first_s, T, b_head + h, b_heads, HS, BLOCK, BLOCK_D, False)
    tile = tl.dot(a_rows, b_rows.T, input_precision=PRECISION) * scale  # (BLOCK, BLOCK)
    offs, mask = square(tl.program_id(0), first_t, first_s, T, BLOCK)
    store(w_p + offs, tile, mask, False)


@triton.jit
def weighted_rows_kernel(
    y_p, w_p, x_p, y_head, y_heads, x_head, x_heads, T, NH, scale,
    HS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
    TRANSPOSED: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    b, h, first = tl.program_id(0) // NH, tl.program_id(0) % NH, tl.program_id(1) * BLOCK
    acc = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for s in range(0, T, BLOCK):
        if TRANSPOSED:
            offs, mask = square(tl.program_id(0), s, first, T, BLOCK)
            w = tl.load(w_p + offs, mask=mask, other=0).T
        else:
            offs, mask = square(tl.program_id(0), first, s, T, BLOCK)
            w = tl.load(w_p + offs, mask=mask, other=0)
        x = load_rows(x_p, b, s, T, x_head + h, x_heads, HS, BLOCK, BLOCK_D, False)
        acc = tl.dot(w, x, acc, input_precision=PRECISION)
    store_rows(y_p, acc * scale, b, first, T, y_head + h, y_heads, HS, ADD)


@triton.jit
def square(bh, first_t, first_s, T, BLOCK: tl.constexpr):
    """Offsets into w (B, NH, T, T), and the mask, of the tile with corner (first_t, first_s)."""
    t, s = first_t + tl.arange(0, BLOCK), first_s + tl.arange(0, BLOCK)
    offs = (bh.to(tl.int64) * T + t)[:, None] * T + s[None, :]
    return offs, (t < T)[:, None] & (s < T)[None, :]


@triton.jit
def zero_rows_kernel(
    p, head, heads, T, count, HS: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr
):
    b, h = tl.program_id(0) // count, tl.program_id(0) % count
    zeros = tl.zeros((ROWS, BLOCK_D), tl.float32)
    store_rows(p, zeros, b, tl.program_id(1) * ROWS, T, head + h, heads, HS, False)


@triton.jit
def load_rows(
    x, b, first, T, head, heads, HS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Rows first … of one of the heads of x (B, T, heads, HS), 0 beyond T and HS: (ROWS, BLOCK_D).

    x: a pointer, or with TMA a descriptor.
    """
    if TMA:
        tile = tl.reshape(x.load([b, head, first, 0]), (ROWS, BLOCK_D))
    else:
        rows, cols = first + tl.arange(0, ROWS), tl.arange(0, BLOCK_D)
        mask = (rows < T)[:, None] & (cols < HS)[None, :]
        tile = tl.load(x + offsets(b, rows, cols, T, head, heads, HS), mask=mask, other=0)
    return tile


@triton.jit
def store_rows(p, tile, b, first, T, head, heads, HS: tl.constexpr, ADD: tl.constexpr):
    """The inverse of load_rows: tile (ROWS, BLOCK_D) into, or added to, (B, T, heads, HS)."""
    rows, cols = first + tl.arange(0, tile.shape[0]), tl.arange(0, tile.shape[1])
    mask = (rows < T)[:, None] & (cols < HS)[None, :]
    store(p + offsets(b, rows, cols, T, head, heads, HS), tile, mask, ADD)


@triton.jit
def offsets(b, rows, cols, T, head, heads, HS: tl.constexpr):
    """Of x[b, rows, head, cols] in x (B, T, heads, HS)."""
    return ((b * T + rows).to(tl.int64) * heads + head)[:, None] * HS + cols[None, :]


def dtype_of(x) -> str:
    """As a program names it: tf32 is fp32 that a product may round."""
    return "bf16" if x.dtype.itemsize == 2 else "tf32" if x.precision == "tf32" else "fp32"


def scores(preatt, qkv, add):
    """preatt (B, NH, T, T) from qkv (B, T, 3, NH, HS)."""
    NH, HS = qkv.shape[3:]
    rows_by_rows(preatt, (qkv, 0), (qkv, NH), 1 / math.sqrt(HS))


def d_scores(dqkv, dpreatt, qkv, add):
    """dqkv (B, T, 3, NH, HS) (+)= the gradients of q and k, from dpreatt (B, NH, T, T)."""
    NH, HS = qkv.shape[3:]
    scale = 1 / math.sqrt(HS)
    weighted_rows((dqkv, 0), dpreatt, (qkv, NH), scale, add=add[0])  # derivation step 5
    weighted_rows((dqkv, NH), dpreatt, (qkv, 0), scale, transposed=True, add=add[0])  # 8
    if not add[0]:
        zero_rows(dqkv, 2 * NH, NH)  # 10


def rows_by_rows(w, a, b, scale: float = 1.0):
    """w (B, NH, T, T) = scale·a·bᵀ; a and b: (tensor of heads, the first head)."""
    B, NH, T, _ = w.shape
    HS, (block, warps) = a[0].shape[-1], TILES[dtype_of(w)]
    rows_by_rows_kernel[(B * NH, triton.cdiv(T, block), triton.cdiv(T, block))](
        w, a[0], b[0], a[1], heads_in(a[0]), b[1], heads_in(b[0]), T, NH, scale,
        HS=HS, BLOCK=block, BLOCK_D=power_of_2(HS, 16), PRECISION=w.precision, num_warps=warps,
    )  # fmt: skip


def weighted_rows(y, w, x, scale: float = 1.0, transposed: bool = False, add: bool = False):
    """y (+)= scale·w·x, or wᵀ·x; w (B, NH, T, T), y and x: (tensor of heads, the first head)."""
    B, NH, T, _ = w.shape
    HS, (block, warps) = x[0].shape[-1], TILES[dtype_of(w)]
    weighted_rows_kernel[(B * NH, triton.cdiv(T, block))](
        y[0], w, x[0], y[1], heads_in(y[0]), x[1], heads_in(x[0]), T, NH, scale,
        HS=HS, BLOCK=block, BLOCK_D=power_of_2(HS, 16), PRECISION=w.precision,
        TRANSPOSED=transposed, ADD=add, num_warps=warps,
    )  # fmt: skip


def zero_rows(x, head: int, count: int):
    """count heads of x, from `head` on, become 0."""
    (B, T), HS = x.shape[:2], x.shape[-1]
    zero_rows_kernel[(B * count, triton.cdiv(T, 64))](
        x, head, heads_in(x), T, count, HS=HS, ROWS=64, BLOCK_D=power_of_2(HS)
    )


def heads_in(x) -> int:
    """Of x (B, T, …, HS), however they are grouped."""
    return math.prod(x.shape[2:-1])
