"""A tensor of any size as tiles of at most 256×256 pixels: at level L a pixel stands for 2^L × 2^L
numbers, by the smallest, largest and mean finite one and by how many are not finite.

The mean alone would hide a spike or a NaN among millions.  Levels 1 and 2 are computed from the
numbers of the tile, the others from level 3, which is kept: a thirteenth of the tensor's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backglass.debugger.matrix import Cache, Matrix, Window
from backglass.debugger.problem import Problem

SIDE = 256
BASE = 3  # the level that is kept
BAND_NUMBERS = 1 << 21  # looked at in one go, about
MOST_NUMBERS = 1 << 31  # of a tensor that is looked at as a whole
BYTES_A_PIXEL = 20


@dataclass(frozen=True)
class Planes:
    """Of each pixel: smallest (∞ if none is finite), largest (−∞), sum, how many not finite."""

    low: np.ndarray
    high: np.ndarray
    total: np.ndarray
    bad: np.ndarray


def top(rows: int, columns: int) -> int:
    """The lowest level that is one tile."""
    return max(0, (-(-max(rows, columns) // SIDE) - 1).bit_length())


def tile(m: Matrix, cache: Cache, level: int, i: int, j: int) -> np.ndarray:
    """float32 (1, height, width) at level 0, else (4, height, width): min, max, mean, bad."""
    side = SIDE << level if level <= top(m.rows, m.columns) else 0
    if not side:
        raise Problem(404, f"level {level}: this tensor has levels 0 to {top(m.rows, m.columns)}")
    w = i * side, min(m.rows, (i + 1) * side), j * side, min(m.columns, (j + 1) * side)
    if w[0] >= m.rows or w[2] >= m.columns:
        raise Problem(404, f"block ({i}, {j}) lies outside: the matrix is {m.rows}×{m.columns}")
    if level == 0:
        return m.read(w).astype(np.float32)[None]
    if level < BASE:
        planes = fold(planes_of(m.read(w)), 1 << level)
    else:
        pixels = tuple(-(-n >> BASE) for n in (m.rows, m.columns))
        nbytes = pixels[0] * pixels[1] * BYTES_A_PIXEL
        base = cache.get(("base", m.hash, pixels), nbytes, lambda: base_of(m))
        planes = fold(part(base, tuple(-(-n >> BASE) for n in w)), 1 << level - BASE)
    return finished(planes, w, level)


def base_of(m: Matrix) -> Planes:
    """All of level 3, a band of numbers at a time."""
    if m.rows * m.columns > MOST_NUMBERS:
        raise Problem(413, f"{m.rows}×{m.columns} numbers are too many for an overview; ask for "
                           f"levels below {BASE}, or for cells")  # fmt: skip
    pixels = -(-m.rows >> BASE), -(-m.columns >> BASE)
    base = Planes(*(np.empty(pixels, t) for t in (np.float32, np.float32, np.float64, np.int32)))
    across = min(m.columns, BAND_NUMBERS >> BASE)
    down = max(1, BAND_NUMBERS // across >> BASE) << BASE
    for r in range(0, m.rows, down):
        for c in range(0, m.columns, across):
            w = r, min(m.rows, r + down), c, min(m.columns, c + across)
            into = part(base, tuple(-(-n >> BASE) for n in w))
            for name, x in vars(fold(planes_of(m.read(w)), 1 << BASE)).items():
                getattr(into, name)[...] = x
    return base


def planes_of(x: np.ndarray) -> Planes:
    """Of a window of numbers, a pixel each."""
    x = x.astype(np.float32)
    finite = np.isfinite(x)
    if finite.all():
        return Planes(x, x, x, ~finite)
    low, high = np.where(finite, x, np.float32(np.inf)), np.where(finite, x, np.float32(-np.inf))
    return Planes(low, high, np.where(finite, x, np.float32(0)), ~finite)


def fold(p: Planes, k: int) -> Planes:
    """k×k pixels to one; at the edges fewer."""
    return Planes(
        blocks(p.low, k, np.minimum, p.low.dtype), blocks(p.high, k, np.maximum, p.high.dtype),
        blocks(p.total, k, np.add, np.float64), blocks(p.bad, k, np.add, np.int32),
    )  # fmt: skip


def blocks(x: np.ndarray, k: int, op: np.ufunc, dtype: type | np.dtype) -> np.ndarray:
    for axis, n in enumerate(x.shape):
        x = op.reduceat(x, np.arange(0, n, k), axis=axis, dtype=dtype)
    return x


def part(p: Planes, w: tuple[int, ...]) -> Planes:
    """A view of the pixels of a window."""
    return Planes(*(x[w[0] : w[1], w[2] : w[3]] for x in vars(p).values()))


def finished(p: Planes, w: Window, level: int) -> np.ndarray:
    """The four planes that are sent."""
    counts = [
        np.minimum(1 << level, n - np.arange(0, n, 1 << level)) for n in (w[1] - w[0], w[3] - w[2])
    ]
    finite = np.multiply.outer(*counts) - p.bad
    mean = p.total / np.maximum(1, finite)
    return np.stack([p.low, p.high, mean, p.bad]).astype(np.float32)
