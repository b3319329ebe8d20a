"""binary: llm.c's, llama2.c's and nanoGPT's files by their headers, sizes held against what the
header promises.

Every number of a header is checked before it is used; nothing is allocated by a file's word.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from backglass.layout import is_layered, shape_of
from backglass.models import gpt2
from backglass.tools.found import Found, blocks, token_facts

HEADER_BYTES = 1024  # llm.c: 256 int32
LARGEST_DIM = 1 << 24
LARGEST_TOKENIZER_BYTES = 16 << 20
GPT2_SIZES = ((12, 768), (24, 1024), (36, 1280), (48, 1600))  # layers, channels
MT19937_BYTES = 2520  # llm.c's random generator as it is dumped into a state file


def parameters(vocab: int, positions: int, layers: int, channels: int) -> int:
    """Numbers in a GPT-2, from the model's own declaration."""
    sizes = dict(Vp=vocab, P=positions, L=layers, C=channels, F=4 * channels)
    return sum(
        math.prod(shape_of(p.dims, sizes)) * (layers if is_layered(p.dims) else 1)
        for p in gpt2.PARAMS
    )


def llmc(path: Path, size: int, head: bytes) -> Found | None:
    """A file of llm.c, or None if the magic number is none of its."""
    magic = struct.unpack("<i", head[:4])[0] if len(head) >= 4 else 0
    if magic not in MAGICS:
        return None
    kind, read = MAGICS[magic]
    found = Found(str(path), kind)
    if len(head) < HEADER_BYTES:
        found.expect_size(size, HEADER_BYTES, "its header alone")
        return found
    read(found, path, size, struct.unpack("<256i", head))
    return found


def _model(found: Found, path: Path, size: int, h: tuple[int, ...]) -> None:
    version, P, V, L, NH, C, Vp = h[1:8]
    width = {3: 4, 5: 2}.get(version)
    found.facts = {
        "version": version, "dtype": {3: "fp32", 5: "bf16"}.get(version, "?"), "layers": L,
        "heads": NH, "channels": C, "vocab_size": V, "padded_vocab_size": Vp, "max_seq_len": P,
    }  # fmt: skip
    if width is None:
        found.problems.append(f"version {version}; llm.c's are 3 (fp32) and 5 (bf16)")
    if not all(1 <= n <= LARGEST_DIM for n in (P, V, L, NH, C, Vp)) or C % NH or Vp < V:
        found.problems.append("the header's sizes cannot belong to a GPT-2")
    if found.problems:
        return
    count = parameters(Vp, P, L, C)
    found.facts["parameters"] = count - (Vp - V) * C
    found.expect_size(size, HEADER_BYTES + count * (width or 0), "this shape")
    pad = (Vp - V) * C
    if not found.problems and pad:
        start = HEADER_BYTES + V * C * (width or 0)
        dtype = {2: np.uint16, 4: np.uint32}[width or 4]
        if any((b << b.dtype.type(1)).any() for b in blocks(path, dtype, start, pad)):
            found.problems.append("the pad rows of wte are not zero, as llm.c needs them to be")


def _shard(found: Found, path: Path, size: int, h: tuple[int, ...]) -> None:
    version, count = {20240520: 1, 20240801: 7}[h[0]], h[2]
    dtype = np.dtype(np.uint16 if h[0] == 20240520 else np.uint32)
    found.facts = {"version": h[1], "dtype": dtype.name, "tokens": count}
    if h[1] != version:
        found.problems.append(f"version {h[1]}; this kind of shard has version {version}")
    if count < 0:
        found.problems.append(f"the header promises {count:,} tokens")
        return
    found.expect_size(size, HEADER_BYTES + count * dtype.itemsize, f"a header of {count:,} tokens")
    held = min(count, max(0, size - HEADER_BYTES) // dtype.itemsize)
    found.facts |= token_facts(path, dtype, HEADER_BYTES, held) | {"tokens": count}


def _debug_state(found: Found, path: Path, size: int, h: tuple[int, ...]) -> None:
    version, B, T = h[1:4]
    found.facts = {"version": version, "batch_size": B, "seq_len": T}
    if version != 2 or not (1 <= B <= LARGEST_DIM and 1 <= T <= LARGEST_DIM):
        found.problems.append(f"version {version}, B={B}, T={T}; expected version 2 and sizes")
        return
    fixed = HEADER_BYTES + 8 * B * T + 4
    V, Vp = 50257, 50304
    for L, C in GPT2_SIZES:
        if size == fixed + 4 * B * T * V + 4 * parameters(Vp, 1024, L, C):
            found.facts["model"] = f"GPT-2, {L} layers, {C} channels: the size fits exactly"
            found.facts |= token_facts(path, np.int32, HEADER_BYTES, B * T) | {"tokens": B * T}
            return
    if size < fixed or size % 4:
        found.expect_size(size, fixed, "its tokens and loss alone")
    elif size >= fixed + 4 * B * T * V:
        found.problems.append(
            "cut off: its logits are a GPT-2's, but no GPT-2 has a state this size"
        )
    else:
        found.notes.append("the header does not say the model's shape: the size is not verified")


def _optimizer(found: Found, path: Path, size: int, h: tuple[int, ...]) -> None:
    version, processes, rank, master, shuffled = h[1:6]
    found.facts = {"version": version, "processes": processes, "rank": rank, "step": h[10],
                   "fp32 master": bool(master), "shuffled": bool(shuffled)}  # fmt: skip
    good = version == 1 and 0 <= rank < processes and master in (0, 1) and shuffled in (0, 1)
    if not good or h[10] < 0:
        found.problems.append("the header's numbers contradict each other: it is damaged")
        return
    arrays, body = 2 + master, size - HEADER_BYTES
    if body <= 0 or body % 4 or (not shuffled and body % (4 * arrays)):
        found.problems.append(f"cut off: {size:,} bytes do not divide into {arrays} fp32 arrays")
        return
    count = _parameters_beside(path)
    if not count:
        if not shuffled:
            found.facts["numbers per array"] = body // (4 * arrays)
        found.notes.append("no model of the same step beside it to hold its size against")
        return
    ends = [HEADER_BYTES + 4 * arrays * n for n in (count, count // processes)]
    if shuffled:
        ends = [_after_shuffle(path, end, size) for end in ends]
    if size not in ends:
        found.expect_size(size, min(ends), f"a model of {count:,} parameters")


def _parameters_beside(path: Path) -> int:
    """Parameters of model_STEP.bin, for state_STEP_RANK.bin; 0 if it is not there or damaged."""
    parts = path.stem.split("_")
    beside = path.with_name(f"model_{parts[1]}.bin") if len(parts) == 3 else path
    if beside == path or not beside.is_file():
        return 0
    with beside.open("rb") as f:
        model = llmc(beside, beside.stat().st_size, f.read(HEADER_BYTES))
    if not model or not model.sound or "parameters" not in model.facts:
        return 0
    m = model.facts
    return parameters(m["padded_vocab_size"], m["max_seq_len"], m["layers"], m["channels"])


def _after_shuffle(path: Path, at: int, size: int) -> int:
    """Where a state ends whose order of shards and samples begins at `at`."""
    with path.open("rb") as f:
        for _ in ("shards", "samples"):
            f.seek(min(at, size))
            data = f.read(8)
            at += 8 + 4 * (struct.unpack("<Q", data)[0] if len(data) == 8 else 0)
    return at + MT19937_BYTES


def _tokenizer(found: Found, path: Path, size: int, h: tuple[int, ...]) -> None:
    version, count, end = h[1:4]
    found.facts = {"version": version, "tokens": count, "end of text": end}
    if version not in (1, 2) or not 0 < count <= LARGEST_DIM or size > LARGEST_TOKENIZER_BYTES:
        found.problems.append(f"version {version} with {count:,} tokens; expected 1 or 2")
        return
    data, at = path.read_bytes(), HEADER_BYTES
    for token in range(count):
        if at >= size or data[at] == 0 or at + 1 + data[at] > size:
            found.problems.append(f"cut off or damaged at token {token:,} of {count:,}")
            return
        at += 1 + data[at]
    found.expect_size(size, at, f"a table of {count:,} tokens")


def _named_only(found: Found, path: Path, size: int, h: tuple[int, ...]) -> None:
    found.facts = {"version": h[1], "bytes": size}
    found.notes.append("recognised by its magic number; backglass does not read it")


def _eval(found: Found, path: Path, size: int, h: tuple[int, ...]) -> None:
    found.facts = {"version": h[1], "examples": h[2], "longest_bytes": h[3], "bytes": size}
    least = HEADER_BYTES + 2 * 7 * max(h[2], 0)
    if h[1] != 1 or h[2] < 0 or size % 2 or size < least:
        found.problems.append("cut off or damaged: the header does not fit the file's size")


MAGICS: dict[int, tuple[str, Callable[[Found, Path, int, tuple[int, ...]], None]]] = {
    20240326: ("llm.c model", _model),
    20240327: ("llm.c debug state", _debug_state),
    20240328: ("llm.c tokenizer", _tokenizer),
    20240520: ("llm.c token shard", _shard),
    20240522: ("llm.c HellaSwag file", _eval),
    20240527: ("llm.c optimizer state", _optimizer),
    20240801: ("llm.c token shard (LLaMA 3)", _shard),
    20240803: ("llm.c LLaMA 3 model or state", _named_only),
}


def nanogpt(path: Path, size: int) -> Found:
    """A headerless file of uint16 can only be guessed: GPT-2 has no token above 50256."""
    facts = token_facts(path, np.uint16, 0, size // 2)
    found = Found(str(path), "nanoGPT token shard, by guess", facts)
    found.notes.append("a guess: it has no header, an even size, and no number above 50256")
    if size % 2 or facts["largest"] is None or facts["largest"] > 50256:
        found.kind, found.facts, found.notes = "unknown", {"bytes": size}, []
        found.problems.append(
            "no magic number that backglass knows, not text, and as uint16 tokens "
            + ("an odd size" if size % 2 else f"token {facts['largest']}, which GPT-2 has not")
        )
    return found
