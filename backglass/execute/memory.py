"""Memory: names to arrays on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from backglass.view import DTYPES, View

ALIGN_BYTES = 64  # a cache line, and the widest vector register


class Memory:
    """Arrays by tensor name, allocated when first asked for.

    Members of a group are windows into the group's flat buffer.  Activations start as NaN: reading
    one before it is written cannot go unnoticed.
    """

    def __init__(self) -> None:
        self.flat: dict[str, Any] = {}

    def array(self, view: View) -> np.ndarray:
        """The values of `view` in its shape; not a copy."""
        if not view.group:
            if view.name not in self.flat:
                self.flat[view.name] = self._fresh(view)
            return self.flat[view.name].reshape(view.shape)
        if view.group not in self.flat:
            raise KeyError(f"{view.name} is part of {view.group}, which has not been allocated")
        flat = self.flat[view.group]
        if flat.dtype == np.uint8:  # the arena: offsets are in elements of the view's dtype
            start = view.offset * DTYPES[view.dtype].itemsize
            flat = flat[start : start + view.nbytes].view(self.storage(view.dtype))
            return flat.reshape(view.shape)
        return flat[view.offset : view.offset + view.size].reshape(view.shape)

    def address(self, view: View) -> int:
        """Where the view's first element lies."""
        return self.array(view).ctypes.data

    def read(self, view: View) -> np.ndarray:
        """A copy of the values, on the host."""
        return self.array(view).copy()

    def peek(self, view: View) -> np.ndarray:
        """The values on the host; not a copy where that is where they are."""
        return self.array(view)

    def write(self, view: View, values: Any) -> None:
        """Put values, a number or an array, rounded to the view's dtype, into the tensor."""
        self.array(view)[...] = values

    def allocate(self, flat: View, values: np.ndarray | None = None) -> np.ndarray:
        """Make the buffer of a group, from values or zero."""
        self.flat[flat.group] = self.zeros(flat.size, flat.dtype)
        if values is not None:
            self.write(flat, values)
        return self.flat[flat.group]

    def adopt(self, flat: View, values: np.ndarray) -> Any:
        """Use values, of the view's dtype, as the buffer of a group; not copied."""
        self.flat[flat.group] = values
        return values

    def arena(self, nbytes: int) -> np.ndarray:
        """The arena, at least nbytes long; programs that do not run at the same time share it."""
        if nbytes > self.flat.get("arena", np.empty(0)).nbytes:
            self.flat["arena"] = self.zeros(nbytes, "u8")
        return self.flat["arena"]

    def sharing(self, *groups: str) -> Memory:
        """A new memory with the same buffers for these groups and nothing else."""
        other = type(self)()
        other.flat = {g: self.flat[g] for g in groups}
        return other

    def zeros(self, size: int, dtype: str) -> Any:
        return aligned_zeros(size, DTYPES[dtype])

    def storage(self, dtype: str) -> np.dtype:
        """What the arrays in here hold for a dtype."""
        return DTYPES[dtype]

    def _fresh(self, view: View) -> Any:
        array = self.zeros(view.size, view.dtype)
        if view.kind == "act" and DTYPES[view.dtype].kind not in "iu":
            array[...] = np.nan
        if view.values is not None:
            array[...] = view.values.reshape(-1)
        return array


def aligned_zeros(size: int, dtype: np.dtype) -> np.ndarray:
    raw = np.zeros(size * dtype.itemsize + ALIGN_BYTES, np.uint8)
    start = -raw.ctypes.data % ALIGN_BYTES
    return raw[start : start + size * dtype.itemsize].view(dtype)
