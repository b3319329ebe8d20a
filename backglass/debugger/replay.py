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

from backglass.debugger.edit import fork_of
from backglass.debugger.record import Recording
from backglass.debugger.store import digest_of
from backglass.debugger.trace import Trace, reading
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


def run_and_step(path: Path, step: int | None) -> tuple[Path, int | None]:
    """The run that a path means, and the step: of a checkpoint, the one after it."""
    if path.parent.name != "checkpoints" or not path.name.removeprefix("step-").isdecimal():
        return path, step
    after = int(path.name.removeprefix("step-")) + 1
    if step not in (None, after):
        raise wrong_use(f"--step {step}: the step after {path} is {after}. Name the run instead")
    return path.parent.parent, after


def chosen_step(run: Path | None, step: int | None) -> int:
    """The update meant, 1-based: `step`, or the first after the newest checkpoint."""
    return step or max(checkpoint.steps_in(run) if run else [], default=0) + 1


def before_step(
    s: Settings, run: Path | None, step: int, progress: Progress = lambda done, total: None
) -> Before:
    """The state before update `step` (1-based).

    run: a run directory with checkpoints, or None: from the beginning.
    """
    steps = checkpoint.steps_in(run) if run else []
    step -= 1
    base = max((n for n in steps if n <= step), default=0)
    folder = checkpoint.step_folder(run, base) if run and base in steps else None
    start = prepare(s, None, at=folder)
    start.session.bind()
    for done in range(base, step):
        start.session.gradients(next_batches(start), done)
        start.session.update(done)
        progress(done + 1 - base, step - base)
    origin: dict[str, Any] = {"step": step, "from": base}
    if folder and base == step:
        origin["checkpoint"] = folder
    return Before(start, step, next_batches(start), origin)


def settings_of_run(run: Path, step: int | None = None) -> Settings:
    """What update `step` (1-based; None: the last) of a run was made with, as the next checkpoint
    has it: a resumed run may have other settings.  Raises UserError if it is no run."""
    if steps := checkpoint.steps_in(run):
        following = [n for n in steps if step is not None and n >= step]
        return checkpoint.settings_of(checkpoint.step_folder(run, (following or steps[-1:])[0]))
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
    """Where a replay left the recording.  event: None if the state before the step differs, or an
    input."""

    event: int | None
    text: str
    tensor: str


class Diverged(Exception):
    """Ends a replay at the first hash that is another."""

    def __init__(self, divergence: Divergence):
        self.divergence = divergence


class EndOfRecording(Exception):
    """Ends the replay of a recording that was cut off."""


class Matcher:
    """A sink that holds a step against a recording, hash by hash; `count` of them agreed."""

    def __init__(self, trace: Trace):
        self.trace, self.count = trace, 0

    def versions(self, found: list[tuple[Version, np.ndarray]], name: str) -> None:
        text = "the state before the step" if name == "before" else f"the inputs ({name})"
        for version, values in found:
            self._compare(version, values, None, text)

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


def before_recorded(trace: Trace, progress: Progress = lambda done, total: None) -> Before:
    """The state before a recorded step.  Raises UserError if it cannot be had again."""
    with reading(trace.folder / "manifest.json"):
        s = Settings(**trace.manifest["settings"])
    run, origin = trace.run_folder, trace.manifest["before"]
    if origin["from"] and run is None:
        raise UserError(
            f"{trace.folder} cannot be done again: it is step {origin['step'] + 1} of a run whose "
            "directory is not there any more. Put it back above the recording."
        )
    return before_step(s, run, origin["step"] + 1, progress)


def again(trace: Trace, progress: Progress) -> Recording:
    """The recorded step, with the edits it was made with, ready to be executed once more."""
    before, fork = before_recorded(trace), fork_of(trace.manifest)
    edits = fork.edits if fork else ()
    own, session = trace.manifest.get("program") == "own", before.start.session
    return Recording(session, before.batches, before.step, progress, edits, own)


def replay(trace: Trace, progress: Progress) -> tuple[int, Divergence | None]:
    """Do the recorded step again: (how many hashes agreed, the first that did not)."""
    recording = again(trace, progress)
    matcher = Matcher(trace)
    try:
        recording.execute(matcher)
    except EndOfRecording:
        pass
    except Diverged as diverged:
        return matcher.count, diverged.divergence
    return matcher.count, None
