"""textual: safetensors, tokenizer.json and other JSON, log.jsonl and plain text."""

from __future__ import annotations

import codecs
import math
import struct
from pathlib import Path
from typing import Any, TypeGuard

from backglass.tools import runlog
from backglass.tools.found import Found, parse_json, printable, read_json

LARGEST_HEADER_BYTES = 16 << 20
MOST_NAMED = 3
WIDTHS = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2,
    "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip


def safetensors(path: Path, size: int) -> Found:
    """Names, shapes and places of every tensor, from the header alone."""
    found = Found(str(path), "safetensors file", {"bytes": size})
    with path.open("rb") as f:
        start = f.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= max(0, size - 8):
            found.problems.append(f"cut off or damaged: a header of {length:,} bytes is announced, "
                                  f"the file has {size:,}")  # fmt: skip
            return found
        if length > LARGEST_HEADER_BYTES:
            found.problems.append(f"a header of {length:,} bytes is too large to be real")
            return found
        data = f.read(length)
    try:
        header = parse_json(data)
    except ValueError as error:
        found.problems.append(f"the header is damaged: {printable(str(error))}")
        return found
    if not isinstance(header, dict):
        found.problems.append("the header is not a JSON object")
        return found
    metadata = header.pop("__metadata__", None)
    if isinstance(metadata, dict) and metadata:
        found.facts["metadata"] = {str(k): str(v)[:80] for k, v in list(metadata.items())[:8]}
    _tensors(found, header, size - 8 - length)
    return found


def _tensors(found: Found, header: dict[str, Any], room: int) -> None:
    """Check each entry, and that together they fill the file without gap or overlap."""
    spans, bad = [], []
    for name, entry in header.items():
        why = _entry_problem(entry, room)
        if why:
            bad.append(f"tensor {printable(name, 60)}: {why}")
            continue
        found.tensors[name] = (entry["dtype"], tuple(entry["shape"]))
        spans.append((*entry["data_offsets"], name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            verb = "overlaps the one before" if begin < at else "leaves a gap before it"
            bad.append(f"tensor {printable(name, 60)} {verb}")
        at = max(at, end)
    found.problems += bad[:MOST_NAMED]
    if len(bad) > MOST_NAMED:
        found.problems.append(f"and {len(bad) - MOST_NAMED} more damaged tensors")
    if not bad and at < room:
        found.problems.append(f"{room - at:,} bytes after the last tensor")
    dtypes: dict[str, int] = {}
    for dtype, shape in found.tensors.values():
        dtypes[dtype] = dtypes.get(dtype, 0) + math.prod(shape)
    found.facts |= {"tensors": len(found.tensors), "numbers": dtypes}
    largest = sorted(found.tensors.items(), key=lambda t: -math.prod(t[1][1]))[:MOST_NAMED]
    found.facts["largest"] = [f"{printable(n, 60)} {list(s)}" for n, (_, s) in largest]


def _entry_problem(entry: Any, room: int) -> str:
    """What is wrong with one tensor of a header, or nothing."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return "not an entry with dtype, shape and data_offsets"
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not _naturals(shape, 64) or not _naturals(offsets, 2) or len(offsets) != 2:
        return "its shape or data_offsets are not lists of numbers"
    begin, end = offsets
    if not begin <= end <= room:
        return f"cut off: it ends at byte {end:,} of {room:,}"
    width = WIDTHS.get(entry["dtype"])
    if width and end - begin != math.prod(shape) * width:
        wanted = math.prod(shape) * width
        return f"{entry['dtype']} {shape} needs {wanted:,} bytes, it has {end - begin:,}"
    return ""


def _naturals(values: Any, most: int) -> TypeGuard[list[int]]:
    return (
        isinstance(values, list)
        and len(values) <= most
        and all(type(v) is int and 0 <= v < 1 << 62 for v in values)
    )


def json_file(path: Path) -> Found:
    """tokenizer.json, or another JSON file by its keys."""
    try:
        j = read_json(path)
    except ValueError as error:
        return Found(str(path), "JSON file", problems=[f"damaged: {printable(str(error))}"])
    if isinstance(j, dict) and isinstance(j.get("model"), dict) and "vocab" in j["model"]:
        return _tokenizer(path, j)
    found = Found(str(path), "JSON file")
    if isinstance(j, dict):
        found.facts = {"keys": [printable(str(k), 40) for k in list(j)[:12]]}
        if isinstance(j.get("model_type"), str):
            found.kind = f"Hugging Face config of a {printable(j['model_type'], 40)} model"
        elif isinstance(j.get("settings"), dict):
            found.kind = "settings of a backglass run"
            found.facts["settings"] = dict(list(j["settings"].items())[:8])
    if path.name == "tokenizer.json":
        found.problems.append("not a tokenizer: it has no model with a vocab")
    return found


def _tokenizer(path: Path, j: dict[str, Any]) -> Found:
    model, added = j["model"], j.get("added_tokens") or []
    found = Found(str(path), "tokenizer.json", {"type": str(model.get("type", "unknown"))[:40]})
    vocab, merges = model["vocab"], model.get("merges", [])
    if isinstance(vocab, list):  # Unigram: [[token, score], …]
        vocab = {str(v[0]): i for i, v in enumerate(vocab) if isinstance(v, list) and v}
    if not isinstance(vocab, dict) or not isinstance(merges, list) or not isinstance(added, list):
        found.problems.append("damaged: vocab, merges or added_tokens have the wrong type")
        return found
    special = {str(t.get("content")): t.get("id") for t in added if isinstance(t, dict)}
    ids = {i for i in [*vocab.values(), *special.values()] if type(i) is int and i >= 0}
    found.facts |= {"tokens": len(ids), "merges": len(merges)}
    found.facts["special"] = [printable(s, 40) for s in list(special)[:8]]
    if len(set(vocab) | set(special)) != len(ids):
        found.problems.append("damaged: two tokens share an id, or an id is not a number")
    elif ids and max(ids) != len(ids) - 1:
        found.problems.append(f"damaged: {len(ids):,} tokens, but the largest id is {max(ids):,}")
    return found


def jsonl(path: Path) -> Found:
    """log.jsonl of a run: steps, and the range of the losses."""
    log = runlog.read(path)
    found = Found(str(path), "log of a run", {"lines": log.lines, "events": log.events})
    found.problems += log.problems
    if not log.events:
        found.kind = "not a log of a run"
        found.problems = found.problems or ["no line of it is an event"]
    losses = [x for x in log.step["loss"] if math.isfinite(x)]
    if log.steps:
        found.facts["steps"] = f"{log.step['step'][0]:g} to {log.step['step'][-1]:g}"
        if bad := log.steps - len(losses):
            found.problems.append(f"{bad} steps have a loss that is not finite")
    if losses:
        found.facts["loss"] = f"{losses[0]:.4f} to {losses[-1]:.4f}, lowest {min(losses):.4f}"
    if len(log.val["loss"]):
        best = min(range(len(log.val["loss"])), key=lambda i: log.val["loss"][i])
        found.facts["validation loss"] = (
            f"{log.val['loss'][0]:.4f} to {log.val['loss'][-1]:.4f}, lowest "
            f"{log.val['loss'][best]:.4f} at step {log.val['step'][best]:g}"
        )
    if log.unfinished:
        found.notes.append("the last line is not finished: the run is writing, or was cut off")
    return found


def text(path: Path, size: int) -> Found | None:
    """UTF-8 text, read a block at a time; None if it is not."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = characters = 0
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            try:
                part = decoder.decode(block)
            except UnicodeDecodeError:
                return None
            if "\0" in part:
                return None
            characters += len(part)
            lines += part.count("\n")
    try:
        decoder.decode(b"", True)
    except UnicodeDecodeError:
        return None
    facts = {"bytes": size, "characters": characters, "lines": lines}
    return Found(str(path), "UTF-8 text", facts)
