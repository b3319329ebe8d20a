"""A tensor of any size as tiles of at most 128×128 pixels: at level L a pixel stands for 2^L × 2^L
numbers, by the smallest, largest and mean finite one and by how many are not finite.

The mean alone would hide a spike or a NaN among millions.  Levels 1 and 2 are computed from the
numbers of the tile, the others from level 3, which is kept: a thirteenth of the tensor's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backglass.debugger.matrix import Cache, Matrix, Window
from backglass.debugger.problem import Problem

SIDE = 128
PLANES = ("min", "max", "mean")
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
    with np.errstate(all="ignore"):  # fp64 beyond fp32's range is shown as infinite
        if level == 0:
            return m.read(w).astype(np.float32)[None]
        return finished(pixels_of(m, cache, level, w), w, level)


def shades(found: np.ndarray, plane: str, largest: float) -> np.ndarray:
    """What is painted of a tile, in a byte a pixel: 127·√(|x|/largest) with x's sign, rounded, and
    −128 where something is not finite."""
    if len(found) == 1:
        x, bad = found[0], ~np.isfinite(found[0])
    else:
        x, bad = found[PLANES.index(plane)], found[-1] > 0
    x = np.where(bad, np.float32(0), x) / largest
    shade = np.rint(127 * np.sign(x) * np.sqrt(np.minimum(1, np.abs(x))))
    return np.where(bad, -128, shade).astype(np.int8)


def pixels_of(m: Matrix, cache: Cache, level: int, w: Window) -> Planes:
    """Of a window that begins at a pixel of this level."""
    if m.constant is not None:
        shape = tuple(-(-(n - first) >> level) for first, n in (w[:2], w[2:]))
        value = np.full(shape, m.constant, np.float32)
        area = np.multiply.outer(*sides(w, level))
        return Planes(value, value, value.astype(np.float64) * area, np.zeros(shape, np.int32))
    if level < BASE:
        return fold(planes_of(m.read(w)), 1 << level)
    down, across = (-(-n >> BASE) for n in (m.rows, m.columns))
    key = ("base", *m.key, down, across)
    base = cache.get(key, down * across * BYTES_A_PIXEL, lambda: base_of(m))
    return fold(part(base, w), 1 << level - BASE)


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
            into = part(base, w)
            for name, x in vars(fold(planes_of(m.read(w)), 1 << BASE)).items():
                getattr(into, name)[...] = x
    return base


def planes_of(x: np.ndarray) -> Planes:
    """Of a window of numbers, a pixel each."""
    x = x.astype(np.float32, copy=False)
    finite = np.isfinite(x)
    if finite.all():
        return Planes(x, x, x, ~finite)
    low, high = np.where(finite, x, np.float32(np.inf)), np.where(finite, x, np.float32(-np.inf))
    return Planes(low, high, np.where(finite, x, np.float32(0)), ~finite)


def fold(p: Planes, k: int) -> Planes:
    """k×k pixels to one, k a power of two; at the edges fewer."""
    return Planes(
        blocks(p.low, k, np.minimum, p.low.dtype), blocks(p.high, k, np.maximum, p.high.dtype),
        blocks(p.total, k, np.add, np.float64), blocks(p.bad, k, np.add, np.int32),
    )  # fmt: skip


def blocks(x: np.ndarray, k: int, op: np.ufunc, dtype: type | np.dtype) -> np.ndarray:
    """By halves: an eighth of the time of NumPy's reductions over axes this short."""
    for _ in range(k.bit_length() - 1):
        x = halved(x, op, dtype)
    for _ in range(k.bit_length() - 1):
        x = halved(x.T, op, dtype).T
    return x


def halved(x: np.ndarray, op: np.ufunc, dtype: type | np.dtype) -> np.ndarray:
    """Each two rows to one; the last one of an odd number stays as it is."""
    n = len(x) // 2 * 2
    pairs = op(x[0:n:2], x[1:n:2], dtype=dtype)
    return np.concatenate([pairs, x[n:]]) if n < len(x) else pairs


def part(base: Planes, w: Window) -> Planes:
    """A view of the pixels of level 3 that a window of numbers has."""
    first, last, left, right = (-(-n >> BASE) for n in w)
    return Planes(*(x[first:last, left:right] for x in vars(base).values()))


def finished(p: Planes, w: Window, level: int) -> np.ndarray:
    """The four planes that are sent."""
    finite = np.multiply.outer(*sides(w, level)) - p.bad
    mean = p.total / np.maximum(1, finite)
    return np.stack([p.low, p.high, mean, p.bad]).astype(np.float32)


def sides(w: Window, level: int) -> list[np.ndarray]:
    """How many rows each row of pixels stands for, and columns: at the edges fewer."""
    return [
        np.minimum(1 << level, n - np.arange(0, n, 1 << level)) for n in (w[1] - w[0], w[3] - w[2])
    ]
