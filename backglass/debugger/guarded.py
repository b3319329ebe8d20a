"""A recording from anybody, as compare.py reads it: values by the careful way of matrix.py."""

from __future__ import annotations

import numpy as np

from backglass.debugger.matrix import Cache, matrix_of
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.debugger.trace import NotStored, Trace, Version

LARGEST_BYTES = 1 << 30  # of one tensor


class GuardedTrace(Trace):
    """reading: the same recording, whose checks of the index have been passed."""

    def __init__(self, reading: Reading, cache: Cache):
        super().__init__(reading.folder)
        self.reading, self.cache = reading, cache

    def values(self, v: Version) -> np.ndarray:
        try:
            m = matrix_of(self.reading, self.reading.version(v.id), self.cache)
        except Problem as problem:
            raise NotStored(str(problem)) from None
        if m.rows * m.columns * m.dtype.itemsize > LARGEST_BYTES:
            raise NotStored(f"{v.tensor} is larger than what is compared here")
        return m.read((0, m.rows, 0, m.columns)).reshape(v.shape)
