"""The recorded numbers that the gradient bench computes with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from backglass.debugger.again import values_again
from backglass.debugger.matrix import Cache, matrix_of
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading

MOST_NUMBERS = 1 << 27  # of all tensors of a check together: 1 GiB in float64

Progress = Callable[[int, int], None]
Values = dict[int, np.ndarray]  # by the id of the version


def values_of(
    reading: Reading, versions: list[dict[str, Any]], cache: Cache, progress: Progress
) -> Values:
    """As recorded; where the recording has statistics only, those of the step done again, which
    must have the recorded hashes.  Raises Problem if they are too many."""
    if (count := sum(math.prod(v["shape"]) for v in versions)) > MOST_NUMBERS:
        raise Problem(
            413, f"This needs {count:,} numbers in float64; {MOST_NUMBERS:,} are computed with at "
            "once. Choose a smaller parameter, or record a step with a smaller --batch-size or "
            "--seq-len.",
        )  # fmt: skip
    versions = [*{v["id"]: v for v in versions}.values()]
    found = {v["id"]: whole(reading, v, cache) for v in versions if v["stored"]}
    missing = [v for v in versions if not v["stored"]]
    return found | values_again(reading, missing, cache, progress)


def whole(reading: Reading, v: dict[str, Any], cache: Cache) -> np.ndarray:
    m = matrix_of(reading, v, cache)
    return m.read((0, m.rows, 0, m.columns)).reshape(v["shape"])


def exact(x: np.ndarray) -> np.ndarray:
    """The same numbers in float64; integers stay what they are."""
    return x if x.dtype.kind in "iu" else x.astype(np.float64)


def index_of(shape: list[int], cell: int) -> list[int]:
    """Of a flat index, one number an axis."""
    return [int(i) for i in np.unravel_index(cell, shape)] if shape else []


def cell_of(shape: list[int], row: int, column: int) -> int:
    """The flat index of a cell of the tensor seen as a matrix."""
    columns = shape[-1] if shape else 1
    if row >= math.prod(shape) // columns or column >= columns:
        raise Problem(404, f"({row}, {column}) lies outside of a tensor of shape {shape}")
    return row * columns + column
