"""Steps that a run records while it trains: every n-th, and the one at which something goes wrong.

An alert is a loss or gradient norm that is not finite, or a loss more than SPIKE standard
deviations above the mean of the last WINDOW steps.  Training is not disturbed: the same bits with
and without, and it goes on where a step cannot be recorded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from backglass.data.tokenizer import Tokenizer
from backglass.training import checkpoint
from backglass.training.session import Batch, Session
from backglass.training.settings import Settings

WINDOW, SPIKE = 50, 6.0


class Tracing:
    """Which steps are recorded, and into what; nothing without a run directory."""

    def __init__(
        self, s: Settings, out: Path | None, session: Session, tokenizer: Tokenizer,
        say: Callable[[str], None],
    ):  # fmt: skip
        self.s, self.out, self.session, self.tokenizer, self.say = s, out, session, tokenizer, say
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def before_update(self, step: int, loss: float, batches: list[Batch]) -> Path | None:
        """Record update `step` (0-based) if it is due; its gradients are there, the update is
        not."""
        due = self.s.trace_every > 0 and (step + 1) % self.s.trace_every == 0
        leaps = self.s.trace_on_alert and self._leaps(loss)
        self.losses.append(loss)
        if not (due or leaps):
            return None
        return self._record(step, batches, "the loss leapt" if leaps else "")

    def bad_step(self, step: int, batches: list[Batch], recorded: Path | None) -> None:
        """Its loss or gradient norm is not finite, so the update has changed nothing."""
        if self.s.trace_on_alert and not recorded:
            self._record(step, batches, "its loss or gradient norm is not finite")

    def updated(self, folder: Path | None, loss: float, norm: float) -> None:
        """The run's own step is done: beside the recorded one goes what it computed."""
        from backglass.debugger.record import note_own

        if folder:
            try:
                note_own(folder, self.session, loss, norm)
            except OSError as error:
                self.say(f"{folder} lacks what the run itself computed: {error}")

    def _leaps(self, loss: float) -> bool:
        known = np.array(self.losses)
        return len(known) == WINDOW and bool(loss > known.mean() + SPIKE * known.std())

    def _record(self, step: int, batches: list[Batch], why: str) -> Path | None:
        """Into RUN/trace/step-…; the oldest recordings go when all of them are too large."""
        from backglass.debugger.record import Wanted, record_step
        from backglass.debugger.store import hindrances

        if not self.out:
            return None
        folder = self.out / "trace" / f"step-{step + 1:08d}"
        if (folder / "manifest.json").exists() and not made_by_run(folder):
            self.say(f"step {step + 1} is not recorded: {folder} was made by hand")
            return None
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was resumed before this step
        saved = checkpoint.step_folder(self.out, step)
        before: dict[str, Any] = {"step": step, "from": 0, "by_run": True}
        if saved.exists():
            before |= {"from": step, "checkpoint": os.path.relpath(saved, folder)}
        try:
            record_step(
                self.session,
                batches,
                step,
                folder,
                Wanted(self.s.trace_level),
                self.tokenizer,
                before,
            )
        except hindrances() as error:
            self.say(f"step {step + 1} is not recorded: {error}")
            return None
        if why:
            self.say(f"step {step + 1}: {why}; recorded in {folder}")
        prune(self.out, folder)
        return folder


def made_by_run(folder: Path) -> bool:
    """Whether training made this recording, not `backglass trace`."""
    try:
        return bool(json.loads((folder / "manifest.json").read_text("utf-8"))["before"]["by_run"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prune(run: Path, newest: Path) -> None:
    """Delete the oldest recordings that training made until the rest takes LIMIT_BYTES at most."""
    from backglass.debugger.record import LIMIT_BYTES, recordings

    found = [path for _, path in sorted(recordings(run).items()) if made_by_run(path)]
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*") if f.is_file()) for p in found}
    for path in found:
        if sum(sizes.values()) > LIMIT_BYTES and path != newest:
            del sizes[path]
            shutil.rmtree(path, ignore_errors=True)
