"""View: a named tensor.  The name is its identity; the memory, if there is any, belongs to an
executor."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Protocol

import ml_dtypes
import numpy as np

DTYPES: dict[str, np.dtype] = {
    "fp64": np.dtype(np.float64),
    "fp32": np.dtype(np.float32),
    "tf32": np.dtype(np.float32),  # held as fp32; a matmul may round its operands to 10 bits
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
}


class HasMemory(Protocol):
    """What a view needs from an executor's memory to show its values."""

    def read(self, view: View) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class View:
    """A tensor by name: h3.qkv; its gradient is h3.dqkv.

    Two views with one name are the same tensor, perhaps in two shapes.  `group` and `offset` (in
    elements) place it in a layout's flat buffer, which is itself the view called like the group.
    `+view` in an output position means: accumulate.

    kind: act lives between its first write and its last read, and the planner gives it a place in
    the arena; param, grad and state live for whole runs; input and output are how the host talks to
    a program.  values: those of a constant, which whatever memory holds it begins with.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    group: str = ""
    offset: int = 0
    add: bool = False
    memory: HasMemory | None = field(default=None, repr=False)
    values: np.ndarray | None = field(default=None, repr=False)

    def __pos__(self) -> View:
        return replace(self, add=True)

    def reshape(self, *shape: int) -> View:
        if math.prod(shape) != self.size:
            raise ValueError(f"{self.name} has shape {self.shape}, it cannot become {shape}")
        return replace(self, shape=shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].itemsize

    def numpy(self) -> np.ndarray:
        """A copy of the values.  Raises ValueError on a symbolic view, which has none."""
        if self.memory is None:
            raise ValueError(f"{self.name} is symbolic: a name in a program, without values")
        return self.memory.read(self)

    def __repr__(self) -> str:
        head = f"{self.name} {self.shape} {self.dtype}"
        if self.memory is None:
            return f"<{head}>"
        x = self.numpy()
        values = np.array2string(x, threshold=24, edgeitems=2, precision=4, suppress_small=True)
        if x.dtype.kind in "iu" or not x.size:
            return f"<{head}>\n{values}"
        x = x.astype(np.float64)
        bad = int(np.size(x) - np.isfinite(x).sum())
        if bad:
            return f"<{head}  {bad} of {x.size} values are not finite>\n{values}"
        stats = f"mean {x.mean():.4g}  std {x.std():.4g}  min {x.min():.4g}  max {x.max():.4g}"
        return f"<{head}  {stats}>\n{values}"


def wide(dtype: str) -> str:
    """The dtype of what is not rounded beside tensors of dtype: statistics, losses, moments."""
    return "fp32" if dtype in ("bf16", "tf32") else dtype


def gradient_name(name: str) -> str:
    """h3.ln1w -> h3.dln1w"""
    head, _, last = name.rpartition(".")
    return f"{head}.d{last}" if head else f"d{last}"
