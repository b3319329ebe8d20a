"""Planted model bugs: one line of a model's backward is changed; validate, mirror or the
directional derivative must notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType

import numpy as np

from backglass.checks.model import B, T, directional_whole, prepare, small_config
from backglass.checks.planted import Planted
from backglass.device import get
from backglass.execute.run import Run
from backglass.program.record import Call, Program
from backglass.program.step import record_micro
from backglass.program.validate import mirror, validate
from backglass.view import View


def program_bugs(model: ModuleType, name: str) -> list[Planted]:
    """Each planted program is judged twice: by the static checks, and by numbers alone (directional
    derivative)."""
    c = small_config(model, **model.VARIANTS[-1])
    program = record_micro(model, c, B, T, "fp64")
    right = gradients(model, c, program)
    found = []
    for kind, place, wrong in planted(program):
        static = _static(wrong)
        numbers = _numbers(model, c, wrong, name)
        if static or numbers:
            outcome = "caught"
        else:
            outcome = (
                "equivalent" if np.array_equal(gradients(model, c, wrong), right) else "missed"
            )
        found.append(Planted("program", name, kind, place, outcome))
    return found


def gradients(model: ModuleType, c, program: Program) -> np.ndarray:
    memory, t = prepare(model, c)
    with np.errstate(all="ignore"):
        Run(program, get("numpy"), memory)()
    return memory.array(t.dp.flat).copy()


def _static(program: Program) -> bool:
    try:
        validate(program)
        mirror(program)
        return False
    except ValueError:
        return True


def _numbers(model: ModuleType, c, program: Program, name: str) -> bool:
    with np.errstate(all="ignore"):
        return not directional_whole(model, c, program, name).ok


def planted(program: Program) -> Iterator[tuple[str, str, Program]]:
    """(kind, the line, the changed program) for every backward line."""
    for i, c in enumerate(program):
        if c.phase != "backward":
            continue
        yield "dropped line", str(c), _put(program, i, [])
        if i + 1 < len(program):
            pair = [program[i + 1], c]
            yield "swapped lines", f"{c}; {pair[0]}", _put(program, i, pair, 2)
        for k, v in enumerate(c.outs):
            if v is None:
                continue
            outs = (*c.outs[:k], replace(v, add=not v.add), *c.outs[k + 1 :])
            kind = "missing +" if v.add else "+ where = was meant"
            yield kind, f"{v.name} in {c}", _put(program, i, [replace(c, outs=outs)])
        for k, v in enumerate(c.ins):
            other = v and _lookalike(program, i, v, c)
            if other is not None:
                ins = (*c.ins[:k], other, *c.ins[k + 1 :])
                place = f"{other.name} for {v.name} in {c}"
                yield "stale input", place, _put(program, i, [replace(c, ins=ins)])


def _put(program: Program, i: int, lines: list[Call], length: int = 1) -> Program:
    return Program((*program.calls[:i], *lines, *program.calls[i + length :]))


def _lookalike(program: Program, i: int, v: View, c: Call) -> View | None:
    """Another tensor of the same shape that has been written by now: the one a tired person would
    write."""
    used = {x.name for x in (*c.ins, *c.outs) if x is not None}
    for line in reversed(program.calls[:i]):
        for other in (*line.written, *line.read):
            alike = (other.shape, other.dtype, other.kind) == (v.shape, v.dtype, v.kind)
            if alike and other.name not in used:
                return replace(other, add=False)
    return None
