"""swiglu on the GPU: a program takes a tile of the gate half and the same tile of the up half.

Forward: reads 2·N·F numbers, writes N·F.  Backward: reads 3·N·F, writes 2·N·F.

As in gelu, σ(g) = 1/(1 + e^−g) is one power of 2 and the square of one reciprocal square root.
"""

import math

import triton
import triton.language as tl

from backglass.device.tiles import ELEMENTS, power_of_2, store

COLUMNS = 256  # of a tile, at most; F is a multiple of it in every model of a good size
PER_NEPER = tl.constexpr(-1 / math.log(2))  # e^−g = 2^(g·PER_NEPER)


@triton.jit
def sigmoid(x):
    """σ(x), fp32; kept where the power of 2 does not overflow."""
    root = tl.rsqrt(1 + tl.exp2(tl.minimum(x * PER_NEPER, 126)))
    return root * root


@triton.jit
def silu_of(g):
    """silu(g), fp32."""
    return g * sigmoid(g)


@triton.jit
def d_silu_of(g):
    """d silu/dg at g, fp32: derivation step 7."""
    s = sigmoid(g)
    return s * (1 + g * (1 - s))


@triton.jit
def tile_of(N, F, ROWS: tl.constexpr, BLOCK_F: tl.constexpr):
    """(offsets into y (N, F), offsets of the gates in h (N, 2, F), mask) of this program's tile."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    cols = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)[None, :]
    return rows * F + cols, rows * (2 * F) + cols, (rows < N) & (cols < F)


@triton.jit
def swiglu_kernel(y_p, h_p, N, F, ROWS: tl.constexpr, BLOCK_F: tl.constexpr):
    offs, gates, mask = tile_of(N, F, ROWS, BLOCK_F)
    g = tl.load(h_p + gates, mask=mask, other=0).to(tl.float32)  # (ROWS, BLOCK_F)
    u = tl.load(h_p + gates + F, mask=mask, other=0).to(tl.float32)
    store(y_p + offs, silu_of(g) * u, mask, False)


@triton.jit
def d_swiglu_kernel(dh_p, dy_p, h_p, N, F, ROWS: tl.constexpr, BLOCK_F: tl.constexpr):
    offs, gates, mask = tile_of(N, F, ROWS, BLOCK_F)
    dy = tl.load(dy_p + offs, mask=mask, other=0).to(tl.float32)  # (ROWS, BLOCK_F)
    g = tl.load(h_p + gates, mask=mask, other=0).to(tl.float32)
    u = tl.load(h_p + gates + F, mask=mask, other=0).to(tl.float32)
    store(dh_p + gates, dy * u * d_silu_of(g), mask, False)  # 8
    store(dh_p + gates + F, dy * silu_of(g), mask, False)  # 1


def swiglu(y, h, add):
    """y (N, F) from h (N, 2, F)."""
    N, F = y.shape
    grid, rows, block = tiling(N, F)
    swiglu_kernel[grid](y, h, N, F, ROWS=rows, BLOCK_F=block)


def d_swiglu(dh, dy, h, add):
    """dh (N, 2, F) from dy (N, F) and h; dh may be h."""
    N, F = dy.shape
    grid, rows, block = tiling(N, F)
    d_swiglu_kernel[grid](dh, dy, h, N, F, ROWS=rows, BLOCK_F=block)


def tiling(N: int, F: int) -> tuple[tuple[int, int], int, int]:
    """(grid, rows, columns): tiles of ELEMENTS numbers."""
    block = min(COLUMNS, power_of_2(F))
    rows = ELEMENTS // block
    return (triton.cdiv(N, rows), triton.cdiv(F, block)), rows, block
