"""A step went bad: where did the first NaN come from?  Run it again line by line and look."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backglass import models
from backglass.errors import UserError
from backglass.execute.eager import Eager
from backglass.program.record import Call
from backglass.program.step import run_micro
from backglass.training.checkpoint import State
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
            f"all), in micro-batch {self.micro_batch}, made by\n    {self.line}\n    {self.where}"
        )


class _Found(Exception):
    pass


def bad_step(
    session: Session, batches: list[Batch], state: State, loss: float, norm: float, out: Path | None
) -> UserError:
    """What to tell of a loss or norm that is not finite; keeps the batch in the run directory."""
    step, saved = state.step + 1, ""
    if out:
        path = out / f"bad-batch-step-{step:08d}.npz"
        ids, targets = (np.stack(x) for x in zip(*batches, strict=True))
        np.savez(path, ids=ids, targets=targets, position=state.position, step=step)
        saved = f" State and batch are saved ({path})."
    culprit = find_culprit(session, batches, state.step)
    return UserError(
        f"step {step}: the loss is {loss} and the gradient norm {norm}. Stopped before the update; "
        f"the parameters are those of step {state.step}.{saved} A lower --lr or a longer "
        f"--warmup-steps often helps; "
        f"{culprit or 'every line is finite on its own, so the sum overflowed'}"
    )


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
            run_micro(ops, models.of(session.c), session.c, session.t)
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
