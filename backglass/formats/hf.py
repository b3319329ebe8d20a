"""Hugging Face folders: config.json, model.safetensors (one file or shards),
generation_config.json.

Names and layouts come from the model's PARAMS: `^T` marks a weight that Hugging Face stores (in,
out).  Pad rows of wte are dropped on the way out and come back as zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from backglass.errors import UserError
from backglass.layout import Layout, Slot
from backglass.models import gpt2
from backglass.view import DTYPES, wide

PREFIX = "transformer."  # GPT2LMHeadModel's; files of the bare GPT2Model have none
IGNORED = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # masks, and the tied output layer


def gpt2_config_json(c: gpt2.Config, end_of_text: int | None) -> dict[str, Any]:
    """config.json as transformers' GPT2Config reads it."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.max_seq_len,
        "n_ctx": c.max_seq_len,
        "n_embd": c.channels,
        "n_layer": c.layers,
        "n_head": c.heads,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
    }


def read_config(folder: Path) -> gpt2.Config:
    """The model's shape from config.json.  Raises UserError for anything but a GPT-2 we can run."""
    path = folder / "config.json"
    try:
        j = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no config.json; expected a Hugging Face model folder"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(j, dict) or j.get("model_type") != "gpt2":
        kind = j.get("model_type") if isinstance(j, dict) else type(j).__name__
        raise UserError(f"{path} describes a {kind!r} model; only gpt2 can be read")
    wants = {
        "activation_function": (
            j.get("activation_function", "gelu_new"),
            ("gelu_new", "gelu_pytorch_tanh"),
        ),
        "layer_norm_epsilon": (j.get("layer_norm_epsilon", 1e-5), (1e-5,)),
        "tie_word_embeddings": (j.get("tie_word_embeddings", True), (True,)),
        "n_inner": (j.get("n_inner"), (None, 4 * _number(j.get("n_embd")))),
        "scale_attn_by_inverse_layer_idx": (
            j.get("scale_attn_by_inverse_layer_idx", False),
            (False,),
        ),
    }
    for key, (found, allowed) in wants.items():
        if found not in allowed:
            raise UserError(f"{path}: {key} is {found!r}; this GPT-2 has {allowed[0]!r}")
    try:
        return gpt2.Config(
            layers=int(j["n_layer"]),
            heads=int(j["n_head"]),
            channels=int(j["n_embd"]),
            vocab_size=int(j["vocab_size"]),
            max_seq_len=int(j["n_positions"]),
        )
    except KeyError as error:
        raise UserError(f"{path} is damaged: it lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def tensors_out(layout: Layout, flat: np.ndarray, vocab_size: int) -> dict[str, np.ndarray]:
    """Our flat buffer as named Hugging Face tensors, float32, pad rows dropped."""
    found = {}
    for s in layout.slots:
        name, transposed = hf_name(s)
        w = flat[s.offset : s.offset + s.size].reshape(s.shape).astype(np.float32)
        if s.param.name == "wte":
            w = w[:vocab_size]
        found[PREFIX + name] = np.ascontiguousarray(w.T if transposed else w)
    return found


def tensors_in(layout: Layout, folder: Path, vocab_size: int) -> np.ndarray:
    """The flat buffer from a folder's safetensors.  Raises UserError on missing or misshapen
    tensors."""
    flat = np.zeros(layout.size, DTYPES[wide(layout.dtype)])
    wanted = {hf_name(s)[0]: s for s in layout.slots}
    shapes = tensor_shapes(layout, vocab_size)
    for name, w in read_tensors(folder):
        short = short_name(name)
        if short is None:
            continue
        slot = wanted.pop(short, None)
        if slot is None:
            raise UserError(f"{folder} has a tensor {name} that GPT-2 does not have")
        if w.shape != shapes[short]:
            raise UserError(
                f"{folder}: {name} has shape {w.shape}, config.json promises {shapes[short]}"
            )
        target = flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
        w = w.T if hf_name(slot)[1] else w
        target[: len(w)] = w
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


def _number(value: Any) -> int:
    """The value if it is a whole number; what else it is, is told where the config is made."""
    return value if isinstance(value, int) else 0


def hf_name(s: Slot) -> tuple[str, bool]:
    """(name, transposed) of a tensor in Hugging Face's files."""
    name, _, mark = s.param.hf.format(l=s.layer).partition("^")
    return name, mark == "T"


def short_name(name: str) -> str | None:
    """A tensor's name without the prefix; None for one that is not a parameter of its own."""
    short = name.removeprefix(PREFIX)
    return None if short.endswith(IGNORED) else short


def tensor_shapes(layout: Layout, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Short name -> shape of every tensor in Hugging Face's files."""
    found = {}
    for s in layout.slots:
        name, transposed = hf_name(s)
        shape = (vocab_size, *s.shape[1:]) if s.param.name == "wte" else s.shape
        found[name] = shape[::-1] if transposed else shape
    return found
