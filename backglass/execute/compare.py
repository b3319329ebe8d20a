"""Compare: run one program on two devices, line by line, and find where they part.

Each line is executed on both devices from the *same* inputs (the first device's), so an error is
seen on the line that makes it, not on those that inherit it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from backglass.device import Device
from backglass.execute.memory import Memory
from backglass.program.record import Program


@dataclass(frozen=True)
class Difference:
    """How far two devices are apart on one output of one line; error = ‖a − b‖/‖a‖."""

    line: int
    text: str
    tensor: str
    error: float


def compare(program: Program, a: Device, b: Device, memory: Memory) -> Iterator[Difference]:
    """A Difference per line and output.  memory holds inputs and parameters; it ends up as device a
    leaves it."""
    for i, c in enumerate(program):
        before = {v.name: memory.array(v).copy() for v in c.written}
        b.bind([c], memory)[0]()
        theirs = {v.name: memory.array(v).copy() for v in c.written}
        for v in c.written:
            memory.array(v)[...] = before[v.name]
        a.bind([c], memory)[0]()
        for v in c.written:
            ours = memory.array(v).astype(np.float64)
            size = float(np.linalg.norm(ours)) or 1.0
            error = float(np.linalg.norm(ours - theirs[v.name])) / size
            yield Difference(i, str(c), v.name, error)


def first_divergence(differences: Iterator[Difference], limit: float) -> Difference | None:
    """The first line whose outputs differ by more than limit, NaN included."""
    return next((d for d in differences if not d.error <= limit), None)
