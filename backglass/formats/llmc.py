"""llm.c's binary files: the model (.bin, version 3 fp32 and 5 bf16) and the debug state (version
2).

    model         | 256 int32 | 16 tensors, back to back                              |
    debug state   | 256 int32 | x, y int32 | logits (B,T,V) | loss | 16 gradients     |  fp32

A tensor of the blocks is stored for all layers at once, (L, …), in the order of the model's PARAMS.
wte is padded to Vp rows; pad rows are written as zeros and read as zeros.  Everything is little
endian.  Sizes follow from the header, and a file of any other size is refused.  Files are mapped,
not read: a conversion holds one model in memory, whatever the file's dtype.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from backglass.errors import UserError
from backglass.layout import Layout, Param, Slot, is_layered, shape_of
from backglass.models import gpt2
from backglass.view import DTYPES

HEADER_BYTES = 1024
MODEL_MAGIC, DEBUG_MAGIC = 20240326, 20240327
MODEL_VERSIONS = {3: "fp32", 5: "bf16"}
DEBUG_VERSION = 2
KINDS = {
    MODEL_MAGIC: "a model", DEBUG_MAGIC: "a debug state", 20240328: "a tokenizer",
    20240520: "a token shard", 20240522: "an evaluation file", 20240527: "an optimizer state",
    20240801: "a token shard for LLaMA 3", 20240803: "a LLaMA 3 model",
}  # fmt: skip
BLOCK = 1 << 20  # elements converted at a time when writing


@dataclass(frozen=True)
class Header:
    """What a model file says about itself."""

    config: gpt2.Config
    dtype: str  # fp32 or bf16
    padded_vocab_size: int


@dataclass(frozen=True)
class DebugState:
    """One batch through a model, as another program computed it.

    x, y: token ids and targets (B, T); logits (B, T, V); loss: the mean over all B·T tokens; grads:
    name -> gradient, (L, …) for tensors of the blocks.  Read from a file they are mapped, not
    loaded.
    """

    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    loss: float
    grads: dict[str, np.ndarray]


def read_header(path: Path) -> Header:
    """The header of a model file, checked against the file's size.  Raises UserError."""
    h = _header(path, MODEL_MAGIC)
    if h[1] not in MODEL_VERSIONS:
        raise UserError(
            f"{path} is a model of llm.c in version {h[1]}; 3 (fp32) and 5 (bf16) can be read. "
            "Write it again with a newer llm.c."
        )
    max_seq_len, vocab_size, layers, heads, channels, padded = h[2:8]
    try:
        c = gpt2.Config(layers, heads, channels, vocab_size, max_seq_len)
        if padded < vocab_size:
            raise ValueError(f"{padded} rows of wte for a vocabulary of {vocab_size}")
    except ValueError as error:
        raise UserError(f"{path} is damaged: its header is impossible, {error}") from None
    header = Header(c, MODEL_VERSIONS[h[1]], padded)
    _must_have(path, model_bytes(c, header.dtype, padded), f"{layers} layers, {channels} channels")
    return header


def read_model(path: Path, dtype: str = "fp32") -> tuple[gpt2.Config, Layout, np.ndarray]:
    """(config, layout, flat buffer of dtype) of a model file.  Raises UserError if it is not
    one."""
    header = read_header(path)
    c = header.config
    layout = Layout(gpt2.PARAMS, c.sizes(1, 1), dtype)
    flat = np.zeros(layout.size, DTYPES[dtype])
    shapes = tensor_shapes(c, header.padded_vocab_size)
    found = _mapped(path, HEADER_BYTES, shapes, header.dtype)
    for s in layout.slots:
        piece = found[s.param.name] if s.layer is None else found[s.param.name][s.layer]
        rows = c.vocab_size if s.param.name == "wte" else len(piece)
        tensor_of(flat, s)[:rows] = piece[:rows]
    return c, layout, flat


def write_model(
    path: Path, c: gpt2.Config, layout: Layout, flat: np.ndarray, dtype: str = "fp32"
) -> None:
    """Write a flat buffer as a model file, atomically; bf16 rounds to nearest, ties to even."""
    version = next(v for v, name in MODEL_VERSIONS.items() if name == dtype)
    sizes = (c.max_seq_len, c.vocab_size, c.layers, c.heads, c.channels, c.padded_vocab_size)
    with new_file(path) as f:
        f.write(_header_bytes(MODEL_MAGIC, version, *sizes))
        for param, slots in _stacks(layout):
            for s in slots:
                _write(f, _unpadded(param, tensor_of(flat, s), c), dtype)
            f.write(_padding(param, c, dtype))


def read_debug_state(path: Path, model: Header) -> DebugState:
    """A debug state of the model whose header is given: the file itself does not say the sizes of
    the model.  Raises UserError if it is damaged or belongs to another one."""
    h = _header(path, DEBUG_MAGIC)
    if h[1] != DEBUG_VERSION:
        raise UserError(
            f"{path} is a debug state in version {h[1]}; only version 2 can be read. Write it "
            "again with a newer llm.c."
        )
    c, B, T = model.config, h[2], h[3]
    if min(B, T) < 1 or T > c.max_seq_len:
        raise UserError(
            f"{path} is damaged: {B} sequences of {T} tokens for a model of {c.max_seq_len} "
            "positions"
        )
    size = debug_state_bytes(c, B, T, model.padded_vocab_size)
    _must_have(path, size, f"{B} x {T} tokens and the model beside it")
    N, V, at = B * T, c.vocab_size, HEADER_BYTES
    tokens = np.fromfile(path, np.int32, 2 * N, offset=at).reshape(2, B, T)
    if tokens.min() < 0 or tokens.max() >= V:
        raise UserError(
            f"{path} holds token {tokens.max() if tokens.max() >= V else tokens.min()}, but the "
            f"model knows only 0 to {V - 1}: damaged, or of another model"
        )
    logits = np.memmap(path, np.float32, "r", at + 8 * N, (B, T, V))
    at += 8 * N + 4 * N * V
    loss = float(np.fromfile(path, np.float32, 1, offset=at)[0])
    grads = _mapped(path, at + 4, tensor_shapes(c, model.padded_vocab_size), "fp32")
    return DebugState(tokens[0], tokens[1], logits, loss, grads)


def write_debug_state(path: Path, c: gpt2.Config, state: DebugState) -> None:
    """Write a debug state, atomically; everything becomes fp32."""
    with new_file(path) as f:
        f.write(_header_bytes(DEBUG_MAGIC, DEBUG_VERSION, *state.x.shape))
        for ids in (state.x, state.y):
            f.write(np.ascontiguousarray(ids, np.int32).tobytes())
        _write(f, state.logits, "fp32")
        _write(f, np.array([state.loss]), "fp32")
        for param in gpt2.PARAMS:
            _write(f, _unpadded(param, state.grads[param.name], c), "fp32")
            f.write(_padding(param, c, "fp32"))


def tensor_shapes(c: gpt2.Config, padded_vocab_size: int = 0) -> dict[str, tuple[int, ...]]:
    """Name -> shape in the files' order; 0: as many rows of wte as we have."""
    sizes = c.sizes(1, 1) | {"Vp": padded_vocab_size or c.padded_vocab_size}
    return {
        p.name: (sizes["L"],) * is_layered(p.dims) + shape_of(p.dims, sizes) for p in gpt2.PARAMS
    }


def model_bytes(c: gpt2.Config, dtype: str = "fp32", padded_vocab_size: int = 0) -> int:
    """The exact size of a model file."""
    count = sum(math.prod(shape) for shape in tensor_shapes(c, padded_vocab_size).values())
    return HEADER_BYTES + count * DTYPES[dtype].itemsize


def debug_state_bytes(c: gpt2.Config, B: int, T: int, padded_vocab_size: int = 0) -> int:
    """The exact size of a debug state: x and y, logits, the loss, then as many fp32 as the
    model."""
    return 8 * B * T + 4 * B * T * c.vocab_size + 4 + model_bytes(c, "fp32", padded_vocab_size)


def tensor_of(flat: np.ndarray, s: Slot) -> np.ndarray:
    """A slot's values in its shape; not a copy."""
    return flat[s.offset : s.offset + s.size].reshape(s.shape)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file to fill; it appears under its name when the block ends without an error, and not at
    all otherwise."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _header(path: Path, magic: int) -> list[int]:
    """The 256 integers, of the kind of file that was asked for."""
    try:
        h = [int(i) for i in np.fromfile(path, np.int32, HEADER_BYTES // 4)]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}. Expected {KINDS[magic]} of llm.c."
        ) from None
    if len(h) < HEADER_BYTES // 4 or h[0] != magic:
        start = h[0] if h else "nothing"
        found = f"it is {KINDS[start]}" if start in KINDS else f"it starts with {start}"
        cut = f"only {path.stat().st_size} bytes long" if start == magic else found
        raise UserError(f"{path} is not {KINDS[magic]} of llm.c ({magic}): {cut}")
    return h


def _must_have(path: Path, size: int, because: str) -> None:
    found = path.stat().st_size
    if found != size:
        raise UserError(
            f"{path} has {found} bytes; {because} promise {size}. It is damaged or belongs to "
            f"another model{': a partial download?' if found < size else '.'}"
        )


def _mapped(
    path: Path, at: int, shapes: dict[str, tuple[int, ...]], dtype: str
) -> dict[str, np.ndarray]:
    """Tensors that stand back to back in a file from byte `at` on, mapped."""
    count = sum(math.prod(shape) for shape in shapes.values())
    raw = np.memmap(path, DTYPES[dtype], "r", at, (count,))
    found, start = {}, 0
    for name, shape in shapes.items():
        found[name] = raw[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return found


def _stacks(layout: Layout) -> Iterator[tuple[Param, list[Slot]]]:
    """Parameters in the files' order, each with its slots, layer after layer."""
    for param in layout.params:
        yield param, [s for s in layout.slots if s.param == param]


def _unpadded(param: Param, w: np.ndarray, c: gpt2.Config) -> np.ndarray:
    return w[: c.vocab_size] if param.name == "wte" else w


def _padding(param: Param, c: gpt2.Config, dtype: str) -> bytes:
    rows = c.padded_vocab_size - c.vocab_size if param.name == "wte" else 0
    return bytes(rows * c.channels * DTYPES[dtype].itemsize)


def _header_bytes(*values: int) -> bytes:
    h = np.zeros(HEADER_BYTES // 4, np.int32)
    h[: len(values)] = values
    return h.tobytes()


def _write(f: BinaryIO, w: np.ndarray, dtype: str) -> None:
    flat = w.reshape(-1)
    for i in range(0, flat.size, BLOCK):
        f.write(flat[i : i + BLOCK].astype(DTYPES[dtype]).tobytes())
