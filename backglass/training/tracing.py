"""Steps that a run records while it trains: every n-th, and the one at which something goes wrong.

An alert is a loss or gradient norm that is not finite, or a loss more than SPIKE standard
deviations above the mean of the last WINDOW steps.  Training is not disturbed: the same bits with
and without.
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from pathlib import Path

import numpy as np

from backglass.data.tokenizer import Tokenizer
from backglass.training import checkpoint
from backglass.training.session import Batch, Session
from backglass.training.settings import Settings

WINDOW, SPIKE = 50, 6.0


class Tracing:
    """Which steps are recorded, and into what; nothing without a run directory."""

    def __init__(self, s: Settings, out: Path | None, session: Session, tokenizer: Tokenizer):
        self.s, self.out, self.session, self.tokenizer = s, out, session, tokenizer
        self.losses: deque[float] = deque(maxlen=WINDOW)

    def before_update(self, step: int, loss: float, batches: list[Batch]) -> Path | None:
        """Record update `step` (0-based) if it is due; its gradients are there, the update is
        not."""
        due = self.s.trace_every and (step + 1) % self.s.trace_every == 0
        if not self.out or not (due or (self.s.trace_on_alert and self.alert(loss))):
            self.losses.append(loss)
            return None
        self.losses.append(loss)
        return self.record(step, batches)

    def alert(self, loss: float) -> bool:
        if not np.isfinite(loss):
            return True
        known = np.array(self.losses)
        return len(known) == WINDOW and loss > known.mean() + SPIKE * known.std()

    def record(self, step: int, batches: list[Batch]) -> Path:
        """Into RUN/trace/step-…; the oldest recordings go when all of them are too large."""
        from backglass.debugger.record import Wanted, record_step

        assert self.out is not None
        folder = self.out / "trace" / f"step-{step + 1:08d}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was resumed before this step
        saved = checkpoint.step_folder(self.out, step)
        before = {"step": step}
        if saved.exists():
            before["checkpoint"] = os.path.relpath(saved, folder)
        record_step(self.session, batches, step, folder, Wanted(), self.tokenizer, before)
        self._prune(folder)
        return folder

    def updated(self, folder: Path | None, loss: float, norm: float) -> None:
        """The run's own step is done: beside the recorded one goes what it computed."""
        from backglass.debugger.record import note_own

        if folder:
            note_own(folder, self.session, loss, norm)

    def _prune(self, newest: Path) -> None:
        from backglass.debugger.record import LIMIT_BYTES, recordings

        assert self.out is not None
        found = sorted(recordings(self.out).items())
        sizes = {path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
                 for _, path in found}  # fmt: skip
        for _, path in found:
            if sum(sizes.values()) > LIMIT_BYTES and path != newest:
                del sizes[path]
                shutil.rmtree(path)
