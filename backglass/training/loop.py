"""The training loop.  `train(settings, out=…)` is what `backglass train` and `bg.train` run."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from backglass.errors import UserError
from backglass.training import checkpoint, report
from backglass.training.files import write_json
from backglass.training.session import Batch
from backglass.training.settings import Settings
from backglass.training.start import disk_error, measured_peak_flops, prepare


class Stopped(Exception):
    """The run ended early by a signal; everything is saved."""

    def __init__(self, number: int):
        self.number = number


def train(
    s: Settings,
    out: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    debug: bool = False,
) -> Trainer:
    """Train and return the finished trainer.  out: the run directory, or None to keep nothing.

    Raises UserError for bad input before any training starts, and when the loss stops being finite.
    """
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
        self.signal = 0
        self.report = report.Report(out, s, quiet)
        self.session.device.progress = self.report.compiling
        self.report.flops_per_token = 6.0 * self.session.t.layout.count

    # ------------------------------------------------------------------------------ the loop
    def run(self) -> None:
        """Steps until s.steps; then the last validation, sample and checkpoint."""
        s, r = self.s, self.report
        r.say(self._headline())
        if self.debug:
            while self.state.step < s.steps:
                self._step()
            return
        handlers = {n: signal.signal(n, self._on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            if self.state.step == 0:
                self._validate(first=True)
            r.peak_flops = measured_peak_flops()
            r.start(self.state.step)
            while self.state.step < s.steps:
                self._step()
                if self.signal:
                    self._stop()
                self._now_and_then()
            self._finish()
        except BrokenPipeError:  # standard output, not the disk
            raise
        except OSError as error:
            raise disk_error(self.out, error) from None
        finally:
            r.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _step(self) -> None:
        """Gradients of all micro-batches, then the update.  A bad loss or norm ends the run before
        the update."""
        s, step = self.s, self.state.step
        start = time.perf_counter()
        position = self.loader.position
        batches = [self.loader.batch(s.batch_size) for _ in range(s.micro_batches)]
        if self.debug:
            loss, norm, lr = self.session.eager_step(batches, step)
        else:
            loss = self.session.gradients(batches, step)
            norm, lr = self.session.update(step) if np.isfinite(loss) else (np.nan, 0.0)
        if not np.isfinite(loss + norm):
            self._fail(batches, loss, norm, position)
        self.state.step += 1
        self.state.position = self.loader.position
        self.state.tokens += s.tokens_per_step
        self.report.step(self.state.step, loss, norm, lr, (time.perf_counter() - start) * 1e3)

    def _now_and_then(self) -> None:
        s, step = self.s, self.state.step
        last = step == s.steps
        if s.val_every and step % s.val_every == 0 and not last:
            self._validate()
        if s.sample_every and step % s.sample_every == 0 and not last:
            self._sample(200)
        if s.save_every and step % s.save_every == 0 and not last:
            self._save()

    def _finish(self) -> None:
        self._validate()
        self._save()
        self._sample(500)
        if self.out:
            best = checkpoint.best_step(self.out)
            self.report.say(
                f"\nsaved in {self.out} (best validation loss {self.state.best_val_loss:.4f} at "
                f"step {best}). "
                f"What next?\n"
                f"  backglass train {self.s.preset} --data FILE                your own text\n"
                f"  backglass check                                  prove every gradient\n"
                f"  backglass program {self.s.preset}                           the step as a "
                f"list of op calls\n"
                f"  backglass train {self.s.preset} --debug --steps 1          stop in its "
                f"forward and backward"
            )

    # ------------------------------------------------------------------------------ pieces
    def _validate(self, first: bool = False) -> None:
        loss = self.session.validate(self.val_windows)
        step = self.state.step
        self.report.event("val", step=step, loss=loss)
        better = self.state.best_val_loss is None or loss < self.state.best_val_loss
        note = "   best so far" if better and not first else ""
        if first:
            note = (
                f"   (knowing nothing is ln {self.c.vocab_size} = {np.log(self.c.vocab_size):.4f})"
            )
        self.report.say(f"step {step:5d}/{self.s.steps}   val loss {loss:.4f}{note}")
        if better and not first:
            self.state.best_val_loss, self.state.best_step = loss, step
            if self.out and np.isfinite(loss):
                self._save()
                write_json(self.out / "checkpoints" / "best.json", {"step": step, "val_loss": loss})

    def _sample(self, count: int) -> None:
        from backglass.infer.generate import sample_text

        prompt = self.val_windows[0][: min(self.s.seq_len, 20)]
        text = sample_text(self.c, self.session, self.tokenizer, prompt, count, seed=self.s.seed)
        title = (
            f"--- step {self.state.step}: the model continues {self.tokenizer.decode(prompt)!r} ---"
        )
        self.report.say(f"{title}\n{text}")
        if self.out:
            with (self.out / "samples.txt").open("a", encoding="utf-8") as f:
                f.write(f"{title}\n{text}\n\n")

    def _save(self) -> None:
        if not self.out:
            return
        folder = checkpoint.step_folder(self.out, self.state.step)
        if not folder.exists():
            checkpoint.save(
                folder,
                self.c,
                self.session.t.layout,
                self.session.state(),
                self.tokenizer,
                self.state,
                self.s,
            )
            checkpoint.prune(self.out, self.s.keep)

    def _on_signal(self, number: int, frame: Any) -> None:
        self.signal = number
        self.report.say("stopping after this step")

    def _stop(self) -> None:
        self._save()
        how = (
            f"Resume with: backglass train {self.s.preset} --out {self.out} --resume"
            if self.out
            else ""
        )
        self.report.say(f"stopped after step {self.state.step}; everything is saved. {how}")
        raise Stopped(self.signal)

    def _fail(self, batches: list[Batch], loss: float, norm: float, position: int) -> None:
        """Name the first bad value, save state and batch, end the run."""
        from backglass.training.diagnose import find_culprit

        step = self.state.step + 1
        culprit = find_culprit(self.session, batches, self.state.step)
        where = ""
        if self.out:
            self._save()
            path = self.out / f"bad-batch-step-{step:08d}.npz"
            ids, targets = (np.stack(x) for x in zip(*batches, strict=True))
            np.savez(path, ids=ids, targets=targets, position=position, step=step)
            where = f" State and batch are saved ({path})."
        raise UserError(
            f"step {step}: the loss is {loss} and the gradient norm {norm}. Stopped before the "
            f"update; the "
            f"parameters are those of step {step - 1}.{where} A lower --lr or a longer "
            f"--warmup-steps often "
            f"helps; {culprit or 'every line is finite on its own, so the sum overflowed'}"
        )

    def _headline(self) -> str:
        s, count = self.s, self.session.t.layout.count
        pad = (self.c.padded_vocab_size - self.c.vocab_size) * self.c.channels
        return (
            f"GPT-2, {s.layers} layers, {s.channels} channels, {count - pad:,} parameters on "
            f"{s.device} "
            f"({s.dtype}); {s.data}, {self.loader.windows * s.seq_len:,} training tokens, "
            f"vocabulary "
            f"{self.c.vocab_size:,}; {s.tokens_per_step:,} tokens a step"
        )
