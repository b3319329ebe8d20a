"""What a run says while it trains: a live line in a terminal, plain lines elsewhere; log.jsonl and
samples.txt always; other loggers where they are asked for."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from backglass.device import Device
from backglass.device.cuda_faults import LibraryError
from backglass.device.process import peak_bytes
from backglass.errors import UserError
from backglass.training import loggers
from backglass.training.settings import Settings


class Report:
    """Screen and log of one run.  `quiet` keeps the screen empty."""

    def __init__(self, folder: Path | None, s: Settings, quiet: bool = False):
        self.folder, self.s, self.quiet = folder, s, quiet
        self.log: TextIO | None = None
        self.loggers: list[loggers.Logger] = []
        self.live = None
        self.flops_per_token = 0.0
        self.peak_flops = 0.0
        self.used_bytes = peak_bytes

    def say(self, text: str) -> None:
        if self.quiet:
            return
        if self.live:
            self.live.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def event(self, event: str, **values: Any) -> None:
        if not self.folder:
            return
        if self.log is None:
            self.log = (self.folder / "log.jsonl").open("a", encoding="utf-8")
        self.log.write(json.dumps({"event": event, **values}) + "\n")
        self.log.flush()
        for logger in self.loggers:
            logger.scalars(values["step"], loggers.scalars(event, values))

    def sample(self, step: int, text: str) -> None:
        """A text that the model wrote."""
        self.say(text)
        if self.folder:
            with (self.folder / "samples.txt").open("a", encoding="utf-8") as f:
                f.write(f"{text}\n\n")
        for logger in self.loggers:
            logger.text(step, text)

    def compiling(self, done: int, total: int) -> None:
        """A live line while kernels are compiled; a plain one at the start and the end
        elsewhere."""
        if self.quiet:
            return
        text = f"compiling {total} kernels for this CPU, once: {done} done"
        if sys.stdout.isatty():
            print(f"\r{text}", end="\n" if done == total else "", flush=True)
        elif done in (0, total):
            print(text, flush=True)

    def find_peak(self, device: Device) -> None:
        """Measure what `of peak` refers to; nobody can without cuBLASLt or on a full GPU."""
        with suppress(UserError, LibraryError, MemoryError):
            self.peak_flops = device.peak_flops(self.s.dtype)

    def start(self, done: int) -> None:
        """Begin the live line, if there is a terminal to show it."""
        if self.quiet or not sys.stdout.isatty():
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.live = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(), transient=True,
        )  # fmt: skip
        self.live.start()
        self.task = self.live.add_task("training", total=self.s.steps, completed=done, figures="")

    def step(self, step: int, loss: float, norm: float, lr: float, ms: float) -> None:
        rate = self.s.tokens_per_step / ms * 1e3
        self.event("step", step=step, loss=loss, grad_norm=norm, lr=lr, tokens_per_s=rate, ms=ms)
        if self.quiet:
            return
        share = ""
        if self.peak_flops:
            share = f"  {rate * self.flops_per_token / self.peak_flops:.0%} of peak"
        memory = f"{self.used_bytes() / 2**20:,.0f} MiB"
        figures = f"loss {loss:.4f}  {rate:,.0f} tokens/s{share}  {memory}"
        if self.live:
            self.live.update(self.task, completed=step, figures=figures)
        slow = ms > 2000
        if step <= 5 or step % 25 == 0 or step == self.s.steps or slow:
            self.say(
                f"step {step:5d}/{self.s.steps}   loss {loss:.4f}   norm {norm:7.3f}   lr "
                f"{lr:.2e}   "
                f"{ms:6.0f} ms   {rate:,.0f} tokens/s {share}".rstrip()
            )

    def close(self) -> None:
        if self.live:
            self.live.stop()
            self.live = None
        if self.log:
            self.log.close()
            self.log = None
        for logger in self.loggers:
            logger.close()
