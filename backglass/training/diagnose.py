"""Where did the first NaN come from?  Re-run a step line by line and look at every tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from backglass.execute.eager import Eager
from backglass.models import gpt2
from backglass.program.record import Call
from backglass.program.step import run_micro
from backglass.training.session import Batch, Session


@dataclass(frozen=True)
class Culprit:
    """The first tensor that went bad, and the line that made it."""

    tensor: str
    index: tuple[int, ...]
    value: float
    count: int
    line: str
    where: str
    micro_batch: int

    def __str__(self) -> str:
        cell = ", ".join(map(str, self.index))
        return (
            f"the first bad value is {self.tensor}[{cell}] = {self.value} ({self.count} bad in "
            f"all), "
            f"in micro-batch {self.micro_batch}, made by\n    {self.line}\n    {self.where}"
        )


class _Found(Exception):
    pass


def find_culprit(session: Session, batches: list[Batch], step: int) -> Culprit | None:
    """The first parameter or line with a value that is not finite; None if every line is clean."""
    for p in session.t.p:
        if bad := _first_bad(session.memory.read(p)):
            return Culprit(p.name, *bad, "the parameter itself, before the step", "", 0)
    found: list[Culprit] = []
    for k, batch in enumerate(batches):
        session.load_batch(batch, 1, step, k)
        ops = Eager(session.device, session.memory, after=_watch(session, k, found))
        try:
            run_micro(ops, gpt2, session.c, session.t)
        except _Found:
            return found[0]
    return None


def _watch(session: Session, k: int, found: list[Culprit]) -> Callable[[Call], None]:
    def after(c: Call) -> None:
        for v in c.written:
            if bad := _first_bad(session.memory.read(v)):
                found.append(Culprit(v.name, *bad, str(c), c.where, k))
                raise _Found

    return after


def _first_bad(x: np.ndarray) -> tuple[tuple[int, ...], float, int] | None:
    """(index, value, how many) of the first value that is not finite."""
    if x.dtype.kind in "iu":
        return None
    bad = ~np.isfinite(x)
    if not bad.any():
        return None
    index = tuple(int(i) for i in np.unravel_index(int(bad.argmax()), x.shape))
    return index, float(x[index]), int(bad.sum())
