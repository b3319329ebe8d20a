"""block: one block of a model, each forward line with the backward lines that undo it.

Lines, shapes, saved tensors and FLOPs come from the recorded program, so they are what runs; the
text of a line is the model file's own.
"""

from __future__ import annotations

import json
import linecache
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from backglass.ops import table
from backglass.program.cost import line_cost
from backglass.program.record import Call, Program
from backglass.program.table import LAYER
from backglass.view import View


@dataclass
class Line:
    """A line of the forward and the lines of the backward that mirror it."""

    call: Call
    backward: list[Call]
    kept: list[View]  # read by the backward lines: made here or before
    made: set[str]  # names that this line writes

    @property
    def calls(self) -> list[Call]:
        return [self.call, *self.backward]


@dataclass
class Walk:
    """A model at one size: the lines of block `layer`, and what is outside the blocks."""

    name: str
    model: ModuleType
    sizes: dict[str, int]
    layer: int
    block: list[Line]
    outside: list[Line]
    total_flops: float

    def flops(self, calls: Iterable[Call]) -> float:
        return sum(line_cost(c, 1, 1).flops for c in calls)

    def share(self, calls: Iterable[Call]) -> float:
        """Of the FLOPs of a micro-batch."""
        return self.flops(calls) / self.total_flops

    def block_calls(self) -> list[Call]:
        return [c for line in self.block for c in line.calls]

    def source(self, c: Call) -> tuple[int, str]:
        """(line number, text) in the model file."""
        number = int(c.where.rpartition(":")[2])
        return number, linecache.getline(self.model.__file__ or "", number).strip()

    def kept_bytes(self) -> int:
        """Activations a block keeps for its backward, each once."""
        made = {name for line in self.block for name in line.made}
        kept = {v.name: v.nbytes for line in self.block for v in line.kept if v.name in made}
        return sum(kept.values())


def walk(name: str) -> Walk:
    """Block 1 (block 0 if there is no other) of a model at its default size, or of a preset."""
    from backglass import models, presets
    from backglass.program.step import record_micro

    if name in models.NAMES:
        model = models.get(name)
        c = model.Config()
        B, T = 4, c.max_seq_len
    else:
        s = presets.get(name)
        model = models.get(s.model)
        c, B, T = s.model_config(s.vocab_size or 256), s.batch_size, s.seq_len
    program = record_micro(model, c, B, T)
    lines = pair(program)
    layer = min(1, c.layers - 1)
    block = [line for line in lines if layer_of(line.call) == layer]
    outside = [line for line in lines if layer_of(line.call) is None]
    walked = Walk(name, model, c.sizes(B, T), layer, block, outside, 1)
    walked.total_flops = walked.flops(program)
    return walked


def pair(program: Program) -> list[Line]:
    """Each forward line with its mirror, as validate.mirror reads the program."""
    forward = [c for c in program if c.phase == "forward"]
    backward = [c for c in program if c.phase == "backward"]
    lines, at = [], 0
    made_before = {v.name for c in forward for v in c.written}
    for f in reversed(forward):
        count = len(table()[f.signature.op].spec.backward)
        mirror = backward[at : at + count]
        at += count
        kept = {v.name: v for b in mirror for v in b.ins if v and v.name in made_before}
        lines.append(Line(f, mirror, list(kept.values()), {v.name for v in f.written}))
    return lines[::-1]


def layer_of(c: Call) -> int | None:
    """The layer whose tensors a forward line writes."""
    match = LAYER.match(c.written[0].name)
    return int(match[1]) if match else None


def page(w: Walk) -> str:
    """The walk as plain text."""
    L, s = w.sizes["L"], w.sizes
    head = f"{w.name}: one block, of {L}"
    shown = ", ".join(f"{k}={s[k]}" for k in ("B", "T", "C", "NH", "HS", "F") if k in s)
    rows = [head, "=" * len(head), f"block {w.layer}; {shown}",
            f"Numbers are lines of {Path(w.model.__file__ or '').name}; the indented lines are the "
            "backward of the line above them.", ""]  # fmt: skip
    for line in w.block:
        rows += described(w, line, w.share(w.block_calls()), "the block") + [""]
    block = w.share(w.block_calls())
    rows.append(f"A block: {w.flops(w.block_calls()) / 1e9:,.2f} GFLOP a micro-batch, {block:.1%} "
                f"of all; {L} blocks {block * L:.1%}.")  # fmt: skip
    rows.append(f"A block keeps {mib(w.kept_bytes())} of its own tensors for its backward; "
                f"{L} blocks {mib(w.kept_bytes() * L)}.")  # fmt: skip
    rows += ["", "Outside the blocks", "------------------"]
    for line in w.outside:
        rows += described(w, line, 1, "a micro-batch") + [""]
    rows.append("More about an op: backglass explain " + " | ".join(
        dict.fromkeys(line.call.signature.op for line in w.block)))  # fmt: skip
    return "\n".join(rows) + "\n"


def described(w: Walk, line: Line, whole: float, of: str) -> list[str]:
    """The forward line, its backward lines, shapes, what is saved, FLOPs as a share of `whole`."""
    number, text = w.source(line.call)
    rows = [f"{number:4d}  {text}"]
    for b in line.backward:
        number, text = w.source(b)
        rows.append(f"{number:4d}      {text}")
    ins = ", ".join(f"{short(v, w.layer)} {dims(v)}" for v in line.call.ins if v)
    outs = ", ".join(f"{short(v, w.layer)} {dims(v)}" for v in line.call.written)
    rows.append(f"{'':6}shapes  {ins}")
    rows.append(f"{'':6}     ->  {outs}")
    own = [v for v in line.kept if v.name in line.made]
    other = [v for v in line.kept if v.name not in line.made]
    saved = [f"{short(v, w.layer)} ({mib(v.nbytes)})" for v in own]
    saved += [f"{short(v, w.layer)} (an earlier line's)" for v in other]
    rows.append(f"{'':6}saved   {', '.join(saved) or 'nothing'}")
    forward, back = w.share([line.call]) / whole, w.share(line.backward) / whole
    rows.append(f"{'':6}FLOPs   forward {forward:.1%}, backward {back:.1%} of {of}")
    return rows


def short(v: View, layer: int) -> str:
    """h1.ln1 -> ln1 in block 1."""
    return v.name.removeprefix(f"h{layer}.")


def dims(v: View) -> str:
    return "(" + ",".join(map(str, v.shape)) + ")"


def mib(nbytes: float) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes >= size:
            return f"{nbytes / size:,.1f} {unit}"
    return f"{nbytes:.0f} B"


def as_json(w: Walk) -> str:
    def rows(lines: list[Line]) -> list[dict[str, Any]]:
        return [
            {
                "forward": str(x.call),
                "backward": [str(b) for b in x.backward],
                "where": [c.where for c in x.calls],
                "shapes": {v.name: list(v.shape) for v in (*x.call.read, *x.call.written)},
                "saved": {v.name: v.nbytes for v in x.kept},
                "share_forward": w.share([x.call]),
                "share_backward": w.share(x.backward),
            }
            for x in lines
        ]

    found = {"model": w.name, "sizes": w.sizes, "layer": w.layer, "block_bytes": w.kept_bytes()}
    return json.dumps(found | {"block": rows(w.block), "outside": rows(w.outside)}) + "\n"
