"""llm.c's binary files: what each kind's header says (KINDS), and how to read and write the model
(.bin, version 3 fp32 and 5 bf16) and the debug state (version 2).

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from backglass.errors import UserError
from backglass.layout import Layout, Param, Slot, is_layered, shape_of
from backglass.models import gpt2
from backglass.view import DTYPES

HEADER_BYTES = 1024  # 256 int32: the magic number, the version, then what KINDS says
MODEL_MAGIC, DEBUG_MAGIC, TOKENIZER_MAGIC = 20240326, 20240327, 20240328
SHARD_MAGIC, EVAL_MAGIC, OPTIMIZER_MAGIC = 20240520, 20240522, 20240527
LLAMA3_SHARD_MAGIC, LLAMA3_MAGIC = 20240801, 20240803
MODEL_VERSIONS = {3: "fp32", 5: "bf16"}
DEBUG_VERSION = 2
SHARD_TOKENS = {SHARD_MAGIC: np.dtype(np.uint16), LLAMA3_SHARD_MAGIC: np.dtype(np.uint32)}


@dataclass(frozen=True)
class Kind:
    """A kind of file.  versions: (): any.  fields: the header's numbers after the version; "": not
    named."""

    name: str
    versions: tuple[int, ...]
    fields: tuple[str, ...] = ()


KINDS = {
    MODEL_MAGIC: Kind(
        "model", tuple(MODEL_VERSIONS),
        ("max_seq_len", "vocab_size", "layers", "heads", "channels", "padded_vocab_size"),
    ),
    DEBUG_MAGIC: Kind("debug state", (DEBUG_VERSION,), ("batch_size", "seq_len")),
    TOKENIZER_MAGIC: Kind("tokenizer", (1, 2), ("tokens", "end of text")),
    SHARD_MAGIC: Kind("token shard", (1,), ("tokens",)),
    EVAL_MAGIC: Kind("HellaSwag file", (1,), ("examples", "longest_bytes")),
    OPTIMIZER_MAGIC: Kind(
        "optimizer state", (1,),
        ("processes", "rank", "fp32 master", "shuffled", "", "", "", "", "step"),
    ),
    LLAMA3_SHARD_MAGIC: Kind("token shard (LLaMA 3)", (7,), ("tokens",)),
    LLAMA3_MAGIC: Kind("LLaMA 3 model or state", ()),
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


def fields(h: Sequence[int]) -> dict[str, int]:
    """The named numbers of a header whose magic number is one of KINDS."""
    names = ("version", *KINDS[h[0]].fields)
    return {name: number for name, number in zip(names, h[1:], strict=False) if name}


def model_header(h: Sequence[int]) -> Header:
    """A model's header from its numbers.  Raises ValueError if no GPT-2 is like that."""
    f = fields(h)
    c = gpt2.Config(f["layers"], f["heads"], f["channels"], f["vocab_size"], f["max_seq_len"])
    padded = f["padded_vocab_size"]
    if padded < c.vocab_size:
        raise ValueError(f"{padded} rows of wte for a vocabulary of {c.vocab_size}")
    return Header(c, MODEL_VERSIONS[f["version"]], padded)


def read_header(path: Path) -> Header:
    """The header of a model file, checked against the file's size.  Raises UserError."""
    try:
        header = model_header(_header(path, MODEL_MAGIC))
    except ValueError as error:
        raise UserError(f"{path} is damaged: its header is impossible, {error}") from None
    c = header.config
    size = model_bytes(c, header.dtype, header.padded_vocab_size)
    _must_have(path, size, f"{c.layers} layers, {c.channels} channels")
    return header


def read_model(path: Path, dtype: str = "fp32") -> tuple[gpt2.Config, Layout, np.ndarray]:
    """(config, layout, flat buffer of dtype) of a model file.  Raises UserError if it is not
    one."""
    header = read_header(path)
    c = header.config
    layout = Layout(gpt2.PARAMS, c.sizes(1, 1), dtype)
    flat = np.zeros(layout.size, DTYPES[dtype])
    found = model_tensors(path, header)
    for s in layout.slots:
        piece = found[s.param.name] if s.layer is None else found[s.param.name][s.layer]
        rows = c.vocab_size if s.param.name == "wte" else len(piece)
        tensor_of(flat, s)[:rows] = piece[:rows]
    return c, layout, flat


def model_tensors(path: Path, header: Header) -> dict[str, np.ndarray]:
    """Name -> tensor of a model file whose header was read, pad rows included; mapped."""
    shapes = tensor_shapes(header.config, header.padded_vocab_size)
    return _mapped(path, HEADER_BYTES, shapes, header.dtype)


def write_model(
    path: Path, c: gpt2.Config, layout: Layout, flat: np.ndarray, dtype: str = "fp32"
) -> None:
    """Write a flat buffer as a model file, atomically; bf16 rounds to nearest, ties to even."""
    version = next(v for v, name in MODEL_VERSIONS.items() if name == dtype)
    sizes = (c.max_seq_len, c.vocab_size, c.layers, c.heads, c.channels, c.padded_vocab_size)
    with new_file(path) as f:
        f.write(header_bytes(MODEL_MAGIC, version, *sizes))
        for param, slots in _stacks(layout):
            for s in slots:
                _write(f, _unpadded(param, tensor_of(flat, s), c), dtype)
            f.write(_padding(param, c, dtype))


def read_debug_state(path: Path, model: Header) -> DebugState:
    """A debug state of the model whose header is given: the file itself does not say the sizes of
    the model.  Raises UserError if it is damaged or belongs to another one."""
    _, B, T = fields(_header(path, DEBUG_MAGIC)).values()
    c = model.config
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
        f.write(header_bytes(DEBUG_MAGIC, DEBUG_VERSION, *state.x.shape))
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


def count_parameters(c: gpt2.Config, padded_vocab_size: int = 0) -> int:
    """Numbers in a model, with as many rows of wte; 0: as many as we have."""
    return sum(math.prod(shape) for shape in tensor_shapes(c, padded_vocab_size).values())


def model_bytes(c: gpt2.Config, dtype: str = "fp32", padded_vocab_size: int = 0) -> int:
    """The exact size of a model file."""
    return HEADER_BYTES + count_parameters(c, padded_vocab_size) * DTYPES[dtype].itemsize


def batch_bytes(B: int, T: int, V: int) -> int:
    """What a debug state holds between its header and the gradients: x and y, logits, the loss."""
    return 8 * B * T + 4 * B * T * V + 4


def debug_state_bytes(c: gpt2.Config, B: int, T: int, padded_vocab_size: int = 0) -> int:
    """The exact size of a debug state: a batch, and gradients as many as the model's numbers."""
    return batch_bytes(B, T, c.vocab_size) + model_bytes(c, "fp32", padded_vocab_size)


def tensor_of(flat: np.ndarray, s: Slot) -> np.ndarray:
    """A slot's values in its shape; not a copy."""
    return flat[s.offset : s.offset + s.size].reshape(s.shape)


def header_bytes(magic: int, version: int, *values: int) -> bytes:
    """A header as it is written: the values in the order of KINDS[magic].fields."""
    h = np.zeros(HEADER_BYTES // 4, np.int32)
    h[: 2 + len(values)] = magic, version, *values
    return h.tobytes()


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
    """The 256 integers, of the kind of file that was asked for, in a version we know."""
    wanted = KINDS[magic]
    try:
        h = [int(i) for i in np.fromfile(path, np.int32, HEADER_BYTES // 4)]
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}. Expected a {wanted.name} of llm.c."
        ) from None
    if len(h) < HEADER_BYTES // 4 or h[0] != magic:
        found = f"it starts with {h[0] if h else 'nothing'}"
        if h and h[0] in KINDS:
            name = KINDS[h[0]].name
            found = f"it is {'an' if name[0] in 'aeiou' else 'a'} {name}"
        if h and h[0] == magic:
            found = f"only {path.stat().st_size} bytes long"
        raise UserError(f"{path} is not a {wanted.name} of llm.c ({magic}): {found}")
    if h[1] not in wanted.versions:
        raise UserError(
            f"{path} is a {wanted.name} of llm.c in version {h[1]}; "
            f"{' and '.join(map(str, wanted.versions))} can be read. Write it again with a newer "
            "llm.c."
        )
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


def _write(f: BinaryIO, w: np.ndarray, dtype: str) -> None:
    flat = w.reshape(-1)
    for i in range(0, flat.size, BLOCK):
        f.write(flat[i : i + BLOCK].astype(DTYPES[dtype]).tobytes())
