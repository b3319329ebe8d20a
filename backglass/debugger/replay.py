"""Going back: any step of a run, from the nearest checkpoint before it, executed again.

Training is recorded by its inputs: parameters, moments, the seed and the place in the data.  The
same inputs give the same bits, so a step long past is as good as one that was kept, and a recording
can be verified: do the step again and compare every hash.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backglass.debugger.record import Recording
from backglass.debugger.store import digest_of
from backglass.debugger.trace import Trace
from backglass.errors import UserError, wrong_use
from backglass.execute.trace import Event, Version
from backglass.training import checkpoint
from backglass.training.session import Batch
from backglass.training.settings import Settings
from backglass.training.start import Start, prepare

Progress = Callable[[int, int], None]


@dataclass
class Before:
    """A run just before update `step` (0-based): its session, the step's batches, and where the
    state came from."""

    start: Start
    step: int
    batches: list[Batch]
    origin: dict[str, Any]


def before_step(
    s: Settings, run: Path | None, step: int | None, progress: Progress = lambda done, total: None
) -> Before:
    """The state before update `step` (1-based; None: the first after the newest checkpoint).

    run: a run directory with checkpoints, or None: from the beginning.
    """
    steps = checkpoint.steps_in(run) if run else []
    step = max(steps, default=0) if step is None else step - 1
    base = max((n for n in steps if n <= step), default=0)
    folder = checkpoint.step_folder(run, base) if run and base in steps else None
    start = prepare(s, None, at=folder)
    for done in range(base, step):
        progress(done - base, step - base)
        start.session.gradients(next_batches(start), done)
        start.session.update(done)
    start.session.bind()
    origin: dict[str, Any] = {"step": step, "from": base}
    if folder and base == step:
        origin["checkpoint"] = folder
    return Before(start, step, next_batches(start), origin)


def settings_of_run(run: Path) -> Settings:
    """What a run was started with.  Raises UserError if it is none."""
    if steps := checkpoint.steps_in(run):
        return checkpoint.settings_of(checkpoint.step_folder(run, steps[-1]))
    path = run / "run.json"
    try:
        return Settings(**json.loads(path.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError:
        raise wrong_use(f"{run} is no run: there is no run.json in it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from None


def next_batches(start: Start) -> list[Batch]:
    s = start.session.s
    return [start.loader.batch(s.batch_size) for _ in range(s.micro_batches)]


@dataclass(frozen=True)
class Divergence:
    """Where a replay left the recording.  event: None if the state before the step differs."""

    event: int | None
    text: str
    tensor: str


class Diverged(Exception):
    def __init__(self, divergence: Divergence):
        self.divergence = divergence


class EndOfRecording(Exception):
    pass


class Matcher:
    """A sink that holds a step against a recording, hash by hash; `count` of them agreed."""

    def __init__(self, trace: Trace):
        self.trace, self.count = trace, 0

    def versions(self, found: list[tuple[Version, np.ndarray]], name: str) -> None:
        for version, values in found:
            self._compare(version, values, None, f"the state {name} the step")

    def event(self, e: Event, source: dict[str, Any], made: list[np.ndarray]) -> None:
        for operand, values in zip(e.outs, made, strict=True):
            self._compare(operand.version, values, e.index, str(e.call))

    def _compare(self, v: Version, values: np.ndarray, event: int | None, text: str) -> None:
        recorded = self.trace.hash(v.tensor, v.number)
        if recorded is None and not self.trace.complete:
            raise EndOfRecording
        if recorded != digest_of(values):
            raise Diverged(Divergence(event, text, v.tensor))
        self.count += 1


def replay(trace: Trace, progress: Progress) -> tuple[int, Divergence | None]:
    """Do the recorded step again: (how many hashes agreed, the first that did not)."""
    s = Settings(**trace.manifest["settings"])
    run, origin = trace.run_folder, trace.manifest["before"]
    if origin["step"] and run is None:
        raise UserError(
            f"{trace.folder} cannot be done again: it is step {origin['step'] + 1} of a run whose "
            "directory is not above it any more"
        )
    before = before_step(s, run, origin["step"] + 1)
    recording = Recording(before.start.session, before.batches, before.step, progress)
    matcher = Matcher(trace)
    try:
        recording.execute(matcher)
    except EndOfRecording:
        pass
    except Diverged as diverged:
        return matcher.count, diverged.divergence
    return matcher.count, None
