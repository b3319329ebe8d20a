"""Hugging Face folders: config.json, model.safetensors (one file or shards),
generation_config.json.

Names and layouts come from the model's PARAMS: `^T` marks a weight that Hugging Face stores (in,
out); a weight of several names is stored in as many parts.  Rows that pad the vocabulary are
dropped on the way out and come back as zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backglass.errors import UserError
from backglass.formats import hf_config
from backglass.layout import Layout, Param, Slot, shape_of
from backglass.view import DTYPES, wide

PREFIXES = ("transformer.", "model.")  # files of a bare GPT2Model or LlamaModel have none
# Masks and tables; the output layer where it is tied to the embedding
IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq", "lm_head.weight")


@dataclass(frozen=True)
class Part:
    """A tensor of Hugging Face's files: `rows` rows of one of ours, from row `first` on."""

    name: str
    transposed: bool
    first: int
    rows: int

    def rows_of(self, w: np.ndarray) -> np.ndarray:
        return w[self.first : self.first + self.rows]


def read_config(folder: Path) -> Any:
    """The model's Config from config.json.  Raises UserError for anything but a model we can
    run."""
    path = folder / "config.json"
    try:
        j = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no config.json; expected a Hugging Face model folder"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return hf_config.read(j, path)


def parts(layout: Layout, s: Slot) -> list[Part]:
    """What a tensor is called in Hugging Face's files; several names if it is stored in parts."""
    found, first = [], 0
    dims = [text.partition(" ")[2] for text in s.param.hf.split(", ")]
    for (name, transposed), size in zip(names(s.param, s.layer), dims, strict=True):
        rows = shape_of(size, layout.sizes)[0] if size else layout.rows(s)
        found.append(Part(name, transposed, first, rows))
        first += rows
    return found


def names(param: Param, layer: int | None) -> list[tuple[str, bool]]:
    """(name in Hugging Face's files, whether it is transposed there) of each part, in order."""
    texts = [text.partition(" ")[0] for text in param.hf.format(l=layer).split(", ")]
    return [(text.removesuffix("^T"), text.endswith("^T")) for text in texts]


def tensors_out(layout: Layout, flat: np.ndarray) -> dict[str, np.ndarray]:
    """Our flat buffer as named Hugging Face tensors, float32, pad rows dropped."""
    found = {}
    for s in layout.slots:
        whole = flat[s.offset : s.offset + s.size].reshape(s.shape)
        for part in parts(layout, s):
            w = part.rows_of(whole).astype(np.float32)
            found[part.name] = np.ascontiguousarray(w.T if part.transposed else w)
    return found


def tensors_in(layout: Layout, folder: Path) -> np.ndarray:
    """The flat buffer from a folder's safetensors.  Raises UserError on missing or misshapen
    tensors."""
    flat = np.zeros(layout.size, DTYPES[wide(layout.dtype)])
    wanted = {short_name(p.name): (s, p) for s in layout.slots for p in parts(layout, s)}
    shapes = tensor_shapes(layout)
    for name, w in read_tensors(folder):
        short = short_name(name)
        if is_no_parameter(short, shapes):
            continue
        if short not in wanted:
            raise UserError(f"{folder} has a tensor {name} that this model does not have")
        slot, part = wanted.pop(short)
        if w.shape != shapes[short]:
            raise UserError(
                f"{folder}: {name} has shape {w.shape}, config.json promises {shapes[short]}"
            )
        target = flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
        part.rows_of(target)[...] = w.T if part.transposed else w
    if wanted:
        missing = ", ".join(list(wanted)[:3])
        raise UserError(f"{folder} lacks {len(wanted)} tensors, among them {missing}")
    return flat


def read_tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a folder, from model.safetensors or the shards of its index."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).exists() and index.exists():
        names = shard_names(index)
    for name in names:
        path = folder / name
        if not path.exists():
            raise UserError(f"{folder} has no {name}; expected a Hugging Face model folder")
        try:
            yield from load_file(path).items()
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path} is damaged: {error}") from None


def shard_names(index: Path) -> list[str]:
    """The files that a model.safetensors.index.json names.  Raises UserError if it is damaged."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("it names no files, or files elsewhere")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{index} is damaged: {error!r}") from None
    return names


def short_name(name: str) -> str:
    """A tensor's name without the prefix."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def is_no_parameter(short: str, known: Iterable[str]) -> bool:
    """Whether a tensor of a file is none of the model's: a mask, a table, a tied output layer."""
    return short not in known and f".{short}".endswith(IGNORED)


def tensor_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Short name -> shape of every tensor in Hugging Face's files."""
    found = {}
    for s in layout.slots:
        for part in parts(layout, s):
            shape = (part.rows, *s.shape[1:])
            found[short_name(part.name)] = shape[::-1] if part.transposed else shape
    return found
