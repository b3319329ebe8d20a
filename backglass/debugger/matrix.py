"""The numbers of a version as a matrix, a window at a time: rows are all axes but the last.

They lie in a safetensors file of the recording, from which only the window is read; or in the run's
checkpoint, from which the tensor is loaded; or they are all equal.  Memory is bounded by the cache.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backglass.debugger.problem import Problem, damaged
from backglass.debugger.reading import Reading, plain
from backglass.view import DTYPES

CACHE_BYTES = 1 << 30
LARGEST_HEADER_BYTES = 16 << 20
MOST_CELLS = 4096

Window = tuple[int, int, int, int]  # first row, row after the last, the same of columns


class Cache:
    """The least recently used goes when all together are more than `cap` bytes."""

    def __init__(self, cap: int = CACHE_BYTES):
        self.cap, self.bytes = cap, 0
        self.kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.lock, self.building = threading.Lock(), threading.Lock()

    def get(self, key: Hashable, nbytes: int, build: Callable[[], Any]) -> Any:
        """What is kept under `key`, or built now: one thing at a time, so that memory is bounded.

        nbytes: its size.  Raises Problem if it alone is more than half of what may be kept.
        """
        if (found := self.peek(key)) is not None:
            return found
        if nbytes > self.cap // 2:
            raise Problem(413, f"this takes {nbytes:,} bytes of memory; {self.cap // 2:,} are used")
        with self.building:
            if (found := self.peek(key)) is not None:
                return found
            self._make_room(nbytes)
            built = build()
            with self.lock:
                self.kept[key] = built, nbytes
                self.bytes += nbytes
            return built

    def peek(self, key: Hashable) -> Any:
        """What is kept under `key`, or None."""
        with self.lock:
            if key not in self.kept:
                return None
            self.kept.move_to_end(key)
            return self.kept[key][0]

    def _make_room(self, nbytes: int) -> None:
        with self.lock:
            while self.kept and self.bytes + nbytes > self.cap:
                _, (_, size) = self.kept.popitem(last=False)
                self.bytes -= size


@dataclass(frozen=True)
class Matrix:
    """read(window) gives those numbers, (rows, columns) of dtype.  key: what it is kept under;
    constant: what every number is, if they are equal."""

    key: tuple[Path, str]
    rows: int
    columns: int
    dtype: np.dtype
    read: Callable[[Window], np.ndarray]
    constant: float | None = None


def matrix_of(reading: Reading, v: dict[str, Any], cache: Cache) -> Matrix:
    """Raises Problem if the recording has statistics of it only, or is damaged."""
    dtype, key = DTYPES[v["dtype"]], (reading.folder, v["hash"])
    columns = v["shape"][-1] if v["shape"] else 1
    rows = math.prod(v["shape"]) // columns
    nbytes = rows * columns * dtype.itemsize

    def made(read: Callable[[Window], np.ndarray], constant: float | None = None) -> Matrix:
        return Matrix(key, rows, columns, dtype, read, constant)

    if v["constant"]:
        with np.errstate(all="ignore"):
            value = np.array(v["statistics"]["min"]).astype(dtype)
        return made(lambda w: np.full((w[1] - w[0], w[3] - w[2]), value, dtype), float(value))
    if path := reading.shard(v["hash"]):
        start = place(path, v["hash"], nbytes)
        return made(lambda w: read_window(path, start, columns, dtype, w))
    if reading.in_checkpoint(v):
        x = cache.get(("whole", *key), nbytes, lambda: from_checkpoint(reading, v, dtype))
        x = x.reshape(rows, columns)
        return made(lambda w: x[w[0] : w[1], w[2] : w[3]])
    raise Problem(404, f"{v['tensor']} (version {v['number']}) {why_not_stored(reading, v)}")


def why_not_stored(reading: Reading, v: dict[str, Any]) -> str:
    m = reading.manifest
    if v["event"] is None and v["kind"] in ("param", "state") and "checkpoint" in m["before"]:
        return (
            "is what the step began with. It is read from the checkpoint of the run around the "
            "recording, which is not there, or not any more."
        )
    if m.get("left_out"):
        return f"was not stored: --max-disk was reached, and {m['left_out']} tensors were left out."
    return (
        f"was not stored: the step was recorded at level {m['level']}, which keeps statistics. "
        f"Record it with `backglass trace RUN --step {m['step']} --level 3`."
    )


def place(path: Path, key: str, nbytes: int) -> int:
    """Where in a safetensors file the tensor `key` begins.  Raises Problem unless it has exactly
    nbytes there."""
    size = path.stat().st_size
    with path.open("rb") as f:
        head = f.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 2 <= length <= min(size - 8, LARGEST_HEADER_BYTES):
            raise damaged(path, "it does not begin as a safetensors file does")
        text = f.read(length)
    try:
        begin, end = json.loads(text)[key]["data_offsets"]
        if not (type(begin) is type(end) is int and 0 <= begin <= end <= size - 8 - length):
            raise ValueError("data_offsets outside the file")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise damaged(path, f"its header is none with this tensor ({error})") from None
    if end - begin != nbytes:
        raise damaged(path, f"the tensor has {end - begin:,} bytes, the index promises {nbytes:,}")
    return 8 + length + begin


def read_window(path: Path, start: int, columns: int, dtype: np.dtype, w: Window) -> np.ndarray:
    """A window of a row-major matrix that begins at byte `start`."""
    first, last, left, right = w
    width, wanted = dtype.itemsize, (right - left) * dtype.itemsize
    found = bytearray()
    with path.open("rb", buffering=0) as f:
        whole = right - left == columns
        for row in (first,) if whole else range(first, last):
            f.seek(start + (row * columns + left) * width)
            found += f.read(wanted * (last - first if whole else 1))
    if len(found) != (last - first) * wanted:
        raise damaged(path, "it ends too early")
    return np.frombuffer(found, dtype).reshape(last - first, right - left)


def from_checkpoint(reading: Reading, v: dict[str, Any], dtype: np.dtype) -> np.ndarray:
    """A parameter or moment before the step, as the checkpoint has it that the step began from."""
    from safetensors import SafetensorError, safe_open

    from backglass.debugger.store import digest_of

    file, names = checkpoint_names(v, reading.model)
    assert reading.checkpoint is not None
    path = plain(reading.checkpoint, file)
    try:
        with safe_open(path, "np") as f:
            slices = [f.get_slice(name) for name, _ in names]
            if sum(math.prod(x.get_shape()) for x in slices) > math.prod(v["shape"]):
                raise ValueError(f"{names[0][0]} is larger than what was recorded")
            pieces = [x[:] for x in slices]
        x = np.concatenate([x.T if t else x for x, (_, t) in zip(pieces, names, strict=True)])
        whole = np.zeros(v["shape"], dtype)  # rows that pad the vocabulary are not in the file
        whole[: len(x)] = x
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise damaged(path, error) from None
    if digest_of(whole) != v["hash"]:
        raise damaged(path, f"{v['tensor']} is not what it was when the step was recorded")
    return whole


def checkpoint_names(v: dict[str, Any], model: str) -> tuple[str, list[tuple[str, bool]]]:
    """(file, [(name in it, whether transposed)]) of a parameter or of a moment such as h0.qkvw/m;
    several names if it is stored in parts."""
    from backglass import models
    from backglass.formats import hf

    name, _, group = v["tensor"].partition("/")
    head, _, last = name.rpartition(".")
    layer = int(head[1:]) if head[1:].isdecimal() and len(head) < 9 else None
    params = {p.name: p for p in models.get(model).PARAMS}
    if last not in params or group not in ("", "m", "v", "master"):
        raise Problem(404, f"a checkpoint has no tensor called {v['tensor']}")
    if group in ("m", "v"):
        return "state.safetensors", [(f"{group}/{name}", False)]
    return "model.safetensors", hf.names(params[last], layer)


def cells(m: Matrix, row: int, column: int, height: int, width: int) -> list[list[str]]:
    """Exact numbers, as texts that read back as the same bits."""
    if not 0 < height * width <= MOST_CELLS:
        raise Problem(400, f"height·width is {height * width}; from 1 to {MOST_CELLS} can be had")
    if row >= m.rows or column >= m.columns:
        raise Problem(404, f"({row}, {column}) lies outside: the matrix is {m.rows}×{m.columns}")
    w = row, min(m.rows, row + height), column, min(m.columns, column + width)
    return [[text_of(x) for x in line] for line in m.read(w)]


def text_of(x: Any) -> str:
    """The shortest text that is this number in its dtype; a bf16 is exact as an fp32."""
    return str(x if x.dtype.kind in "iu" or x.dtype == np.float64 else np.float32(x))
