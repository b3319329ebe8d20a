"""recompute: do not keep some activations for the backward; make them again just before they are
needed.

A repeated line keeps the tensors' names: same name, same value, a second life.  Everything it
reads that was dropped as well is repeated first, so ("ln1", "qkv", …) recomputes a whole block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from backglass.program.record import Call, Program


def recompute(program: Program, fields: Iterable[str]) -> Program:
    """Drop every activation called h*.field (or field) between forward and backward.

    Raises ValueError for a field no forward line makes, and for a line that cannot be repeated
    because it accumulates.
    """
    fields = set(fields)
    maker: dict[str, Call] = {}
    for c in program:
        for v in c.written if c.phase == "forward" else ():
            if v.kind == "act" and v.name.rpartition(".")[2] in fields:
                maker[v.name] = c
    if unknown := fields - {name.rpartition(".")[2] for name in maker}:
        made = sorted(
            {v.name.rpartition(".")[2] for c in program if c.phase == "forward" for v in c.written}
        )
        raise ValueError(
            f"no forward line makes {', '.join(sorted(unknown))}; it makes {', '.join(made)}"
        )
    for c in maker.values():
        if any(c.add):
            raise ValueError(f"cannot repeat   {c}   because it accumulates")
    return _repeat(program, maker)


def _repeat(program: Program, maker: dict[str, Call]) -> Program:
    out: list[Call] = []
    alive: set[str] = set()

    def need(c: Call) -> None:
        for v in c.ins:
            if v is not None and v.name in maker and v.name not in alive:
                line = maker[v.name]
                need(line)
                out.append(replace(line, phase="recompute"))
                alive.update(w.name for w in line.written)

    for c in program:
        if c.phase == "backward":
            need(c)
        out.append(c)
    return Program(tuple(out))
