"""Call, Program, Record: how the model's straight-line code becomes a list.

`Record` is an `ops` object that computes nothing: ops.layernorm(y, mean, rstd, x, w, b) appends a
Call.  Shapes are checked at once, so an error points to the line of the model that made it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backglass.ops import signature
from backglass.spec import Signature
from backglass.view import View, wide

if TYPE_CHECKING:
    from backglass.program.plan import Plan


@dataclass(frozen=True, eq=False)
class Call:
    """One line of a program: an op applied to views.  An absent optional operand is None."""

    op: str
    outs: tuple[View | None, ...]
    ins: tuple[View | None, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    phase: str = "forward"
    where: str = ""

    @property
    def signature(self) -> Signature:
        return signature(self.op)

    @property
    def add(self) -> tuple[bool, ...]:
        return tuple(v is not None and v.add for v in self.outs)

    @property
    def written(self) -> tuple[View, ...]:
        return tuple(v for v in self.outs if v is not None)

    @property
    def read(self) -> tuple[View, ...]:
        """Inputs, outputs that accumulate and outputs updated in place."""
        pairs = zip(self.signature.outs, self.outs, strict=True)
        updated = self.signature.updated
        also = (v for o, v in pairs if v is not None and (v.add or o.name in updated))
        return (*(v for v in self.ins if v is not None), *also)

    @property
    def dtype(self) -> str:
        """What the call computes in: the dtype of its operands, but for ids and statistics."""
        pairs = zip(self.signature.passed, (*self.outs, *self.ins), strict=True)
        return next((v.dtype for o, v in pairs if v is not None and not o.holds), "fp32")

    @property
    def sizes(self) -> dict[str, int]:
        return self.signature.bind(tuple(v and v.shape for v in (*self.outs, *self.ins)))

    def __str__(self) -> str:
        def text(views: tuple[View | None, ...]) -> str:
            return ", ".join("-" if v is None else v.name + "+" * v.add for v in views)

        default = self.signature.attrs
        attrs = "".join(f", {k}={v}" for k, v in self.attrs.items() if v != default[k])
        return f"{text(self.written)} = {self.op}({text(tuple(v for v in self.ins if v))}{attrs})"


@dataclass(frozen=True)
class Program:
    """A list of calls.  Immutable: passes return new ones."""

    calls: tuple[Call, ...]

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    def __getitem__(self, i: int) -> Call:
        return self.calls[i]

    def views(self) -> dict[str, View]:
        """Every tensor by name, in order of first appearance, as first seen."""
        found: dict[str, View] = {}
        for c in self.calls:
            for v in (*c.written, *c.read):
                found.setdefault(v.name, v)
        return found

    def validate(self) -> Program:
        """Raises ValueError at the first line that breaks a rule; returns self."""
        from backglass.program.validate import validate

        validate(self)
        return self

    def recompute(self, *fields: str) -> Program:
        """Activations called h*.field are made again in the backward instead of kept."""
        from backglass.program.recompute import recompute

        return recompute(self, fields)

    def fuse(self, *names: str) -> Program:
        """Compositions replaced by fused ops: the named ones, or all."""
        from backglass.program.fuse import fuse

        return fuse(self, names or None)

    def plan(self, workspace: Callable[[Call], int] = lambda c: 0) -> Plan:
        """A place in one arena for every activation; `.peak` is its size in bytes."""
        from backglass.program.plan import plan

        return plan(self, workspace)

    def table(self, fold: bool = True) -> str:
        """The program as text, repeated layers once."""
        from backglass.program.table import table

        return table(self, fold=fold)

    def __repr__(self) -> str:
        return self.table()


class Record:
    """Collects calls.  `program` is what was recorded so far."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @property
    def program(self) -> Program:
        return Program(tuple(self.calls))

    def __getattr__(self, op: str):
        sig = signature(op)

        def call(*operands: View | None, **attrs: Any) -> None:
            self.calls.append(make_call(sig, operands, attrs, caller()))

        return call


def make_call(sig: Signature, operands: tuple, attrs: dict[str, Any], where: str) -> Call:
    """A checked call.  Raises ValueError if operands, shapes, '+' or attrs do not fit the spec."""
    outs, ins = sig.split(operands)
    for operand, view in zip(sig.passed, (*outs, *ins), strict=True):
        if view is None and not operand.optional:
            raise ValueError(f"{sig.call}: {operand.name} is missing; it takes {sig}")
        if view is not None and view.add and not operand.add:
            raise ValueError(f"{sig.call} cannot accumulate into {operand.name} ({view.name})")
    if unknown := set(attrs) - set(sig.attrs):
        raise ValueError(f"{sig.call} has no attr {', '.join(unknown)}; it has {sig.attrs}")
    call = Call(sig.call, outs, ins, sig.attrs | attrs, sig.phase, where)
    _ = call.sizes  # raises if the shapes do not fit
    _check_dtypes(call)
    return call


def _check_dtypes(c: Call) -> None:
    """Operands share one dtype, those the spec calls wide its wide form."""
    pairs = zip(c.signature.passed, (*c.outs, *c.ins), strict=True)
    floats = [(o, v) for o, v in pairs if v is not None and o.holds != "int"]
    working = next((v.dtype for o, v in floats if o.holds != "wide"), "")
    for o, v in floats:
        expected = wide(working or v.dtype) if o.holds == "wide" else working
        if v.dtype != expected:
            beside = f" beside {working}" if working else ""
            raise ValueError(
                f"{c.op}: {o.name} ({v.name}) is {v.dtype}, expected {expected}{beside}"
            )


def caller() -> str:
    """models/gpt2.py:61, the line that called the op."""
    frame = sys._getframe(2)
    return f"{'/'.join(Path(frame.f_code.co_filename).parts[-2:])}:{frame.f_lineno}"
