"""Trace: execute programs line by line and tell what each line read and wrote.

A line becomes an *event*, the state of a tensor after a line has written it a *version*: h3.dres2
after `+=` is version 2 of it, version 1 still means what it meant.  A flat buffer (what AdamW and
the gradient norm work on) stands for its members: one version of each parameter.

    for event in Tracer(device, memory, members).run(program):
        event.call, event.outs[0].tensor, event.outs[0].number, memory.read(event.outs[0].view)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from backglass.device import Device
from backglass.execute.memory import Memory
from backglass.program.record import Call, Program
from backglass.program.validate import twins
from backglass.view import View


@dataclass(frozen=True)
class Version:
    """A tensor as line `event` left it; number 0, event None: as it was before the first line."""

    view: View
    number: int
    event: int | None

    @property
    def tensor(self) -> str:
        return self.view.name


@dataclass(frozen=True)
class Operand:
    """What a line was given under one of its op's names: a version, or one of each member."""

    name: str
    version: Version
    adds: bool = False


@dataclass(frozen=True)
class Event:
    """A line that was executed.  run: how many programs had been run before its own; twin: the
    event of the forward line that this backward line undoes, or the first that undoes this one."""

    index: int
    run: int
    call: Call
    ins: tuple[Operand, ...]
    outs: tuple[Operand, ...]
    twin: int | None
    ms: float


class Tracer:
    """Executes on `device`; members: for each flat buffer the views into it."""

    def __init__(self, device: Device, memory: Memory, members: dict[str, list[View]]):
        self.device, self.memory, self.members = device, memory, members
        self.versions: dict[str, Version] = {}
        self.events = self.runs = 0

    def run(self, program: Program, transformed: bool = False) -> Iterator[Event]:
        """An event after each line, while memory still holds what it wrote."""
        self.device.prepare(program, self.memory)
        first = self.events
        partners = kin(program) if transformed else twins(program)
        for call, partner in zip(program, partners, strict=True):
            ins = tuple(self._given(call))
            (line,) = self.device.bind([call], self.memory)
            start = time.perf_counter()
            line()
            self.device.wait()
            ms = (time.perf_counter() - start) * 1e3
            twin = None if partner is None else first + partner
            yield Event(self.events, self.runs, call, ins, tuple(self._made(call)), twin, ms)
            self.events += 1
        self.runs += 1

    def renewed(self, view: View) -> View:
        """The host has written this tensor, an input: a new version, made by no line."""
        if view.name in self.versions:
            number = self.versions[view.name].number + 1
            self.versions[view.name] = Version(view, number, None)
        return view

    def current(self, view: View) -> Version:
        """The version that `view` has now."""
        return self.versions.setdefault(view.name, Version(view, 0, None))

    def _given(self, call: Call) -> Iterator[Operand]:
        """Inputs, and what an output holds before it is added to or updated."""
        sig = call.signature
        for o, v in zip(sig.outs, call.outs, strict=True):
            if v is not None and (v.add or o.name in sig.updated):
                yield from (Operand(o.name, self.current(m)) for m in self._whole(v))
        for o, v in zip(sig.passed_ins, call.ins, strict=True):
            if v is not None:
                yield from (Operand(o.name, self.current(m)) for m in self._whole(v))

    def _made(self, call: Call) -> Iterator[Operand]:
        for o, v in zip(call.signature.outs, call.outs, strict=True):
            for m in self._whole(v) if v is not None else ():
                new = Version(m, self.current(m).number + 1, self.events)
                self.versions[m.name] = new
                yield Operand(o.name, new, v is not None and v.add)

    def _whole(self, view: View) -> list[View]:
        return self.members[view.name] if view.name in self.members else [view]


def kin(program: Program) -> list[int | None]:
    """Twins in a transformed program, whose backward is no mirror any more: the forward line of the
    same op that has a tensor in common with the backward line, gradients apart.  None where there
    is no such line: what was fused into others has none."""
    found: list[int | None] = [None] * len(program)
    forward: dict[tuple[str, str], int] = {}
    for i, c in enumerate(program):
        names = [v.name for v in (*c.written, *c.read) if v.kind != "grad"]
        if c.phase == "forward":
            for name in names:
                forward.setdefault((c.signature.op, name), i)
        elif c.phase == "backward":
            shared = [forward.get((c.signature.op, v.name)) for v in c.ins if v is not None]
            f = next((f for f in shared if f is not None), None)
            if f is not None:
                found[i] = f
                found[f] = i if found[f] is None else found[f]
    return found
