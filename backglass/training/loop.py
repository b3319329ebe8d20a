"""The training loop.  `train(settings, out=…)` is what `backglass train` and `bg.train` run."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np

from backglass.device.cuda_faults import gpu_errors
from backglass.training import checkpoint, diagnose, messages
from backglass.training.report import Report
from backglass.training.settings import Settings
from backglass.training.start import disk_errors, prepare
from backglass.training.stopping import Stopped, last_signal
from backglass.training.tracing import Tracing


def train(
    s: Settings, out: Path | None = None, resume: bool = False, quiet: bool = False,
    debug: bool = False,
) -> Trainer:  # fmt: skip
    """Train and return the finished trainer.  out: the run directory, or None to keep nothing.

    Raises UserError for bad input before any training starts, when the loss stops being finite, and
    when the GPU fails; Stopped after a signal.
    """
    with gpu_errors(lambda: messages.after_a_fault(s, out)):
        trainer = Trainer(s, out, resume, quiet, debug)
        trainer.run()
    return trainer


class Trainer:
    """One run: data, session, state, report."""

    def __init__(self, s: Settings, out: Path | None, resume: bool, quiet: bool, debug: bool):
        self.s, self.out, self.debug = s, out, debug
        start = prepare(s, out, resume)
        self.c, self.tokenizer, self.loader = start.c, start.tokenizer, start.loader
        self.val_windows, self.session, self.state = start.val_windows, start.session, start.state
        self.report = Report(out, s, quiet)
        self.tracing = Tracing(s, out, self.session, self.tokenizer, self.report.say)
        self.report.loggers = start.loggers
        self.session.device.progress = self.report.compiling
        self.report.used_bytes = self.session.device.used_bytes
        self.report.flops_per_token = 6.0 * self.session.t.layout.count

    def run(self) -> None:
        """Steps until s.steps; then the last validation, checkpoint and sample."""
        s, report, state = self.s, self.report, self.state
        report.say(messages.headline(s, self.c, self.session.t.layout.count, self.loader))
        if self.debug:  # nothing but the steps, line by line
            self.session.execute_eagerly()
            while state.step < s.steps:
                self._step()
            return
        with disk_errors(self.out), closing(report), last_signal(report.say) as stop:
            report.find_peak(self.session.device)  # before memory is full
            if state.step == 0:
                self._validate(first=True)
            report.start(state.step)
            while state.step < s.steps:
                self._step()
                if stop.number:
                    self._save()
                    report.say(messages.stopped(s, state.step, self.out))
                    raise Stopped(stop.number)
                if self._now(s.val_every):
                    self._validate()
                if self._now(s.sample_every):
                    self._sample(200)
                if self._now(s.save_every):
                    self._save()
            self._validate()
            self._save()
            self._sample(500)
            if self.out:
                report.say(messages.farewell(s, state.best_val_loss, self.out))

    def _step(self) -> None:
        """Gradients of all micro-batches, then the update.  A bad loss or norm ends the run before
        the update."""
        s, state, start = self.s, self.state, time.perf_counter()
        batches = [self.loader.batch(s.batch_size) for _ in range(s.micro_batches)]
        loss = self.session.gradients(batches, state.step)
        recorded = self.tracing.before_update(state.step, loss, batches)
        norm, lr = self.session.update(state.step) if np.isfinite(loss) else (np.nan, 0.0)
        if not np.isfinite(loss + norm):
            self._save()
            self.tracing.bad_step(state.step, batches, recorded)
            raise diagnose.bad_step(self.session, batches, state, loss, norm, self.out)
        self.tracing.updated(recorded, loss, norm)
        state.step += 1
        state.position = self.loader.position
        state.tokens += s.tokens_per_step
        self.report.step(state.step, loss, norm, lr, (time.perf_counter() - start) * 1e3)

    def _now(self, every: int) -> bool:
        """Whether something done every so many steps is due; what is done at the end is not."""
        return every > 0 and self.state.step % every == 0 and self.state.step < self.s.steps

    def _validate(self, first: bool = False) -> None:
        """Validation loss; the best so far is saved, except at first, before any training."""
        loss, state = self.session.validate(self.val_windows), self.state
        best = not first and (state.best_val_loss is None or loss < state.best_val_loss)
        self.report.event("val", step=state.step, loss=loss)
        note = messages.chance(self.c.vocab_size) if first else "best so far" if best else ""
        self.report.say(messages.validated(self.s, state.step, loss, note))
        if best:
            state.best_val_loss, state.best_step = loss, state.step
            if self.out and np.isfinite(loss):
                self._save()
                checkpoint.mark_best(self.out, state.step, loss)

    def _sample(self, count: int) -> None:
        """The model continues the start of the validation text by `count` tokens."""
        from backglass.infer.generate import sample_text

        prompt = self.val_windows[0][: min(self.s.seq_len, 20)]
        text = sample_text(self.c, self.session, self.tokenizer, prompt, count, seed=self.s.seed)
        text = messages.sampled(self.state.step, self.tokenizer.decode(prompt), text)
        self.report.sample(self.state.step, text)

    def _save(self) -> None:
        """A checkpoint of this step, unless there is one already or nothing is kept."""
        if self.out and not (folder := checkpoint.step_folder(self.out, self.state.step)).exists():
            layout, flats = self.session.t.layout, self.session.state()
            checkpoint.save(folder, self.c, layout, flats, self.tokenizer, self.state, self.s)
            checkpoint.prune(self.out, self.s.keep)
