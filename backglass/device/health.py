"""A tensor at a glance, in one pass over its memory: statistics, a histogram, a small picture.

    planes     the tensor as a matrix (rows, last axis), cut into at most 32×32 blocks; of each
               block the smallest, largest and mean finite number, and how many are not finite
    histogram  by powers of two: bin 32 + i holds numbers from 2^(i−24) up to twice that, bin 31 − i
               their negatives; what is smaller or larger lies in the first or last
    bands      sums for each band of blocks, in float64, added up in order

The picture alone would hide a single NaN or spike in 38 million numbers; the planes do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import float64, int32

from backglass.device.host import inline, kernel, prange

SIDE = 32  # blocks of a picture, down and across, at most
BINS = 64
LOWEST = 127 - 24  # the biased exponent of a float32 that the first positive bin begins with
SAMPLE = 1 << 20  # numbers of a tensor in its histogram, about: of a larger one every n-th row
INFINITY = 0x7F800000  # its bits; ~INFINITY is below every key
COUNTS = 5  # a band's columns: Σx, Σx², zeros, NaNs, infinities


@dataclass(frozen=True)
class Health:
    """What one pass finds.  min, max: of finite numbers, 0 where there are none."""

    min: float
    max: float
    mean: float
    std: float
    norm: float  # √Σx² over finite numbers
    zeros: int
    nans: int
    infs: int
    planes: np.ndarray  # (4, down, across) float32: min, max, mean, count not finite
    histogram: np.ndarray  # (BINS,) int64


def health(x: np.ndarray) -> Health:
    """Of a tensor of any shape and dtype, at least one element; what is not fp32 is looked at as
    fp32."""
    with np.errstate(over="ignore"):  # beyond fp32 is infinite
        x = np.ascontiguousarray(x, np.float32)
    matrix = x.reshape(-1, x.shape[-1] if x.ndim else 1)
    rows, columns = matrix.shape
    down, across = min(rows, SIDE), min(columns, SIDE)
    planes = np.empty((4, down, across), np.float32)
    bands, bins = np.zeros((down, COUNTS)), np.zeros((down, BINS), np.int64)
    look(planes, bands, bins, matrix, matrix.view(np.int32), -(-x.size // SAMPLE))
    total, squares, zeros, nans, infs = bands.sum(0)
    finite = x.size - int(nans + infs)
    mean = total / max(1, finite)
    return Health(
        float(planes[0].min()) if finite else 0.0, float(planes[1].max()) if finite else 0.0,
        mean, float(np.sqrt(max(0.0, squares / max(1, finite) - mean * mean))),
        float(np.sqrt(squares)), int(zeros), int(nans), int(infs), planes, bins.sum(0),
    )  # fmt: skip


@kernel
def look(planes, bands, bins, x, bits, sample):
    """Fill planes (4, down, across), bands (down, COUNTS), bins (down, BINS) from x (rows, columns)
    float32 and its bits; every `sample`-th row goes into the histogram.  Of a block without a
    finite number the smallest is ∞, the largest −∞, the mean 0."""
    rows, columns = x.shape
    _, down, across = planes.shape
    for i in prange(down):
        first, last = i * rows // down, (i + 1) * rows // down
        for j in range(across):
            left, right = j * columns // across, (j + 1) * columns // across
            low, high, total, bad = INFINITY, ~INFINITY, 0.0, 0
            for r in range(first, last):
                lo, hi, sum_, squares, zeros, odd = block_row(x[r, left:right], bits[r, left:right])
                low, high, total, bad = min(low, lo), max(high, hi), total + sum_, bad + odd
                bands[i, 1] += squares
                bands[i, 2] += zeros
            planes[0, i, j], planes[1, i, j] = from_key(low), from_key(high)
            planes[2, i, j] = total / max(1, (last - first) * (right - left) - bad)
            planes[3, i, j] = bad
            bands[i, 0] += total
            if bad:
                for r in range(first, last):
                    for c in range(left, right):
                        if (bits[r, c] & INFINITY) == INFINITY:
                            bands[i, 3 if bits[r, c] & 0x7FFFFF else 4] += 1
        for r in range(first, last):
            if r % sample == 0:
                count_row(bins[i], bits[r])


@inline
def block_row(x, bits):
    """(smallest and largest key, Σx, Σx², zeros, not finite) of a row of a block.  A key is a
    float's bits as an integer of the same order: integers' minima vectorise, floats' do not."""
    low, high = int32(INFINITY), int32(~INFINITY)
    total, squares = 0.0, 0.0
    zeros, bad = int32(0), int32(0)
    for c in range(x.size):
        b = bits[c]
        key = b ^ ((b >> int32(31)) & int32(0x7FFFFFFF))
        finite = (b & int32(INFINITY)) != int32(INFINITY)
        low = min(low, key if finite else int32(INFINITY))
        high = max(high, key if finite else int32(~INFINITY))
        value = float64(x[c]) if finite else 0.0
        total += value
        squares += value * value
        zeros += int32((b & int32(0x7FFFFFFF)) == int32(0))
        bad += int32(not finite)
    return low, high, total, squares, zeros, bad


@inline
def count_row(bins, bits):
    for c in range(bits.size):
        exponent = (bits[c] >> 23) & 255
        if exponent != 255 and bits[c] & 0x7FFFFFFF:
            at = min(max(exponent - LOWEST, 0), BINS // 2 - 1)
            bins[BINS // 2 - 1 - at if bits[c] < 0 else BINS // 2 + at] += 1


@inline
def from_key(key):
    """The float32 that a key stands for."""
    bits = np.empty(1, np.int32)
    bits[0] = key ^ ((key >> 31) & 0x7FFFFFFF)
    return bits.view(np.float32)[0]
