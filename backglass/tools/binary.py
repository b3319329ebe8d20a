"""binary: llm.c's and nanoGPT's files by their headers, sizes held against what these promise.

What the headers mean is formats/llmc's to know. Every number of one is checked before it is used;
nothing is allocated by a file's word.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from backglass import presets
from backglass.errors import UserError
from backglass.formats import llmc
from backglass.models import gpt2
from backglass.tools.found import END_OF_TEXT, LARGEST_TOKENIZER_BYTES, Found, token_facts

MT19937_BYTES = 2520  # llm.c's random generator as it is dumped into a state file

Header = tuple[int, ...]
Reader = Callable[[Found, Path, int, Header], None]


def recognise(path: Path, size: int, head: bytes) -> Found | None:
    """A file of llm.c, or None if the magic number is none of its."""
    magic = struct.unpack("<i", head[:4])[0] if len(head) >= 4 else 0
    if magic not in llmc.KINDS:
        return None
    kind = llmc.KINDS[magic]
    found = Found(str(path), f"llm.c {kind.name}")
    if len(head) < llmc.HEADER_BYTES:
        found.expect_size(size, llmc.HEADER_BYTES, "its header alone")
        return found
    h = struct.unpack("<256i", head)
    found.facts = llmc.fields(h)
    if kind.versions and h[1] not in kind.versions:
        known = " and ".join(map(str, kind.versions))
        found.problems.append(f"version {h[1]}; llm.c's {kind.name} has version {known}")
        return found
    READERS[magic](found, path, size, h)
    return found


def _model(found: Found, path: Path, size: int, h: Header) -> None:
    try:
        header = llmc.model_header(h)
    except ValueError as error:
        found.problems.append(f"the header's sizes cannot belong to a GPT-2: {error}")
        return
    c, padded = header.config, header.padded_vocab_size
    parameters = llmc.count_parameters(c, c.vocab_size)
    found.facts |= {"dtype": header.dtype, "parameters": parameters}
    found.expect_size(size, llmc.model_bytes(c, header.dtype, padded), "this shape")
    if found.sound and llmc.model_tensors(path, header)["wte"][c.vocab_size :].any():
        found.problems.append("the pad rows of wte are not zero, as llm.c needs them to be")


def _shard(found: Found, path: Path, size: int, h: Header) -> None:
    count, dtype = found.facts["tokens"], llmc.SHARD_TOKENS[h[0]]
    found.facts["dtype"] = dtype.name
    if count < 0:
        found.problems.append(f"the header promises {count:,} tokens")
        return
    room = llmc.HEADER_BYTES + count * dtype.itemsize
    found.expect_size(size, room, f"a header of {count:,} tokens")
    held = min(count, max(0, size - llmc.HEADER_BYTES) // dtype.itemsize)
    found.facts |= token_facts(path, dtype, llmc.HEADER_BYTES, held) | {"tokens": count}


def _debug_state(found: Found, path: Path, size: int, h: Header) -> None:
    B, T = found.facts["batch_size"], found.facts["seq_len"]
    if B < 1 or T < 1:
        found.problems.append(f"it has {B} sequences of {T} tokens; damaged")
        return
    gpt2s = [s for name, s in presets.ALL.items() if name.startswith("gpt2-")]
    for c in [gpt2.Config(s.layers, s.heads, s.channels) for s in gpt2s]:
        if size == llmc.debug_state_bytes(c, B, T):
            found.facts["model"] = f"GPT-2, {c.layers} layers, {c.channels} channels: by its size"
            facts = token_facts(path, np.int32, llmc.HEADER_BYTES, B * T)
            found.facts |= facts | {"tokens": B * T}
            return
    least = llmc.HEADER_BYTES + llmc.batch_bytes(B, T, 0)
    if size < least or size % 4:
        found.expect_size(size, least, "its tokens and loss alone")
    elif size >= llmc.HEADER_BYTES + llmc.batch_bytes(B, T, gpt2.Config().vocab_size):
        found.problems.append(
            "cut off: its logits are a GPT-2's, but no GPT-2 has a state this size"
        )
    else:
        found.notes.append("the header does not say the model's shape: the size is not verified")


def _optimizer(found: Found, path: Path, size: int, h: Header) -> None:
    f = found.facts
    processes, rank, master, shuffled = (
        f[name] for name in ("processes", "rank", "fp32 master", "shuffled")
    )
    f |= {"fp32 master": bool(master), "shuffled": bool(shuffled)}
    good = 0 <= rank < processes and master in (0, 1) and shuffled in (0, 1)
    if not good or f["step"] < 0:
        found.problems.append("the header's numbers contradict each other: it is damaged")
        return
    arrays, body = 2 + master, size - llmc.HEADER_BYTES
    if body <= 0 or body % 4 or (not shuffled and body % (4 * arrays)):
        found.problems.append(f"cut off: {size:,} bytes do not divide into {arrays} fp32 arrays")
        return
    count = _parameters_beside(path)
    if not count:
        if not shuffled:
            f["numbers per array"] = body // (4 * arrays)
        found.notes.append("no model of the same step beside it to hold its size against")
        return
    ends = [llmc.HEADER_BYTES + 4 * arrays * n for n in (count, count // processes)]
    if shuffled:
        ends = [_after_shuffle(path, end, size) for end in ends]
    if size not in ends:
        found.expect_size(size, min(ends), f"a model of {count:,} parameters")


def _parameters_beside(path: Path) -> int:
    """Parameters of model_STEP.bin, for state_STEP_RANK.bin, pad rows included; 0 if it is not
    there or damaged."""
    parts = path.stem.split("_")
    if len(parts) != 3:
        return 0
    try:
        header = llmc.read_header(path.with_name(f"model_{parts[1]}.bin"))
    except UserError:
        return 0
    return llmc.count_parameters(header.config, header.padded_vocab_size)


def _after_shuffle(path: Path, at: int, size: int) -> int:
    """Where a state ends whose order of shards and samples begins at `at`."""
    with path.open("rb") as f:
        for _ in ("shards", "samples"):
            f.seek(min(at, size))
            data = f.read(8)
            at += 8 + 4 * (struct.unpack("<Q", data)[0] if len(data) == 8 else 0)
    return at + MT19937_BYTES


def _tokenizer(found: Found, path: Path, size: int, h: Header) -> None:
    count = found.facts["tokens"]
    if count < 1 or size > LARGEST_TOKENIZER_BYTES:
        found.problems.append(f"{count:,} tokens in {size:,} bytes cannot be a tokenizer")
        return
    data, at = path.read_bytes(), llmc.HEADER_BYTES
    for token in range(count):
        if at >= size or data[at] == 0 or at + 1 + data[at] > size:
            found.problems.append(f"cut off or damaged at token {token:,} of {count:,}")
            return
        at += 1 + data[at]
    found.expect_size(size, at, f"a table of {count:,} tokens")


def _eval(found: Found, path: Path, size: int, h: Header) -> None:
    examples = found.facts["examples"]
    found.facts["bytes"] = size
    if examples < 0 or size % 2 or size < llmc.HEADER_BYTES + 2 * 7 * examples:
        found.problems.append("cut off or damaged: the header does not fit the file's size")


def _named_only(found: Found, path: Path, size: int, h: Header) -> None:
    found.facts["bytes"] = size
    found.notes.append("recognised by its magic number; backglass does not read it")


READERS: dict[int, Reader] = {
    llmc.MODEL_MAGIC: _model,
    llmc.DEBUG_MAGIC: _debug_state,
    llmc.TOKENIZER_MAGIC: _tokenizer,
    llmc.SHARD_MAGIC: _shard,
    llmc.EVAL_MAGIC: _eval,
    llmc.OPTIMIZER_MAGIC: _optimizer,
    llmc.LLAMA3_SHARD_MAGIC: _shard,
    llmc.LLAMA3_MAGIC: _named_only,
}


def nanogpt(path: Path, size: int) -> Found:
    """A headerless file of uint16 can only be guessed: GPT-2 has no token above its end of text."""
    facts = token_facts(path, np.uint16, 0, size // 2)
    found = Found(str(path), "nanoGPT token shard, by guess", facts)
    found.notes.append(f"a guess: no header, an even size, and no number above {END_OF_TEXT}")
    if size % 2 or facts["largest"] is None or facts["largest"] > END_OF_TEXT:
        found.kind, found.facts, found.notes = "unknown", {"bytes": size}, []
        found.problems.append(
            "no magic number that backglass knows, not text, and as uint16 tokens "
            + ("an odd size" if size % 2 else f"token {facts['largest']}, which GPT-2 has not")
        )
    return found
