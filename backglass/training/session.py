"""A training session: the model's memory, its recorded programs, and one optimizer step.

This is the machinery under the loop, and what tests and `bg.load(...).grads` use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from backglass.device import Device
from backglass.execute.eager import Eager
from backglass.execute.memory import Memory
from backglass.execute.run import Run
from backglass.models import gpt2
from backglass.program.plan import Plan
from backglass.program.step import (
    Tensors,
    declare,
    record_loss,
    record_micro,
    record_update,
    run_micro,
    run_update,
)
from backglass.training.settings import Settings, learning_rate

Batch = tuple[np.ndarray, np.ndarray]


class Session:
    """Parameters, gradients and moments of one model, and the programs that work on them."""

    def __init__(self, c: gpt2.Config, s: Settings, device: Device):
        self.c, self.s, self.device = c, s, device
        self.memory = Memory()
        B, T = s.batch_size, s.seq_len
        self.t: Tensors = declare(gpt2, c, B, T, s.dtype, self.memory)
        self.flats = {
            "p": self.memory.allocate(self.t.p.flat),
            "dp": self.memory.allocate(self.t.dp.flat),
            "m": self.memory.allocate(self.t.m.flat),
            "v": self.memory.allocate(self.t.v.flat),
        }
        self.micro_program = record_micro(gpt2, c, B, T, s.dtype).validate()
        self.update_program = record_update(gpt2, c, s.dtype).validate()
        evaluated = dataclasses.replace(c, dropout=0.0)
        self.loss_program = record_loss(gpt2, evaluated, B, T, s.dtype).validate()
        self._runs: dict[str, Callable[[], None]] = {}
        self.plans: dict[str, Plan] = {}

    def init(self) -> None:
        """GPT-2's random start."""
        self.flats["p"][...] = self.t.layout.initial(self.s.seed, {"wte": self.c.vocab_size})

    def execute_eagerly(self) -> None:
        """From now on micro and update are executed line by line from the model file."""
        ops = Eager(self.device, self.memory)
        self._runs = {
            "micro": partial(run_micro, ops, gpt2, self.c, self.t),
            "update": partial(run_update, ops, self.t),
        }

    def run(self, name: str) -> Callable[[], None]:
        """The bound program micro, update or loss; bound when first used."""
        if not self._runs:
            self._bind()
        return self._runs[name]

    def _bind(self) -> None:
        """Transform, plan and bind all programs; they share one arena and compile together."""
        fields = [f for f in self.s.recompute.split(",") if f]
        programs = {
            "micro": self.micro_program.recompute(*fields) if fields else self.micro_program,
            "update": self.update_program,
            "loss": self.loss_program,
        }
        if self.s.fuse:
            names = self.device.fusable()
            programs = {
                name: p.fuse(*names).validate() for name, p in programs.items() if names
            } or programs
        self.plans = {name: p.plan() for name, p in programs.items()}
        self.memory.arena(max(p.peak for p in self.plans.values()))
        placed = {name: p.placed() for name, p in self.plans.items()}
        self.device.prepare([c for p in placed.values() for c in p], self.memory)
        self._runs = {name: Run(p, self.device, self.memory) for name, p in placed.items()}

    def load_batch(self, batch: Batch, counted: int, step: int, k: int = 0) -> None:
        """Put a micro-batch where the programs read it.  Each counted token weighs 1/counted; id −1
        weighs nothing."""
        ids, targets = batch
        self.memory.array(self.t.io.ids)[...] = ids
        self.memory.array(self.t.io.targets)[...] = targets
        self.memory.array(self.t.io.dloss)[...] = (targets >= 0) * (1.0 / max(counted, 1))
        self.memory.array(self.t.io.seed)[...] = (self.s.seed, step * self.s.micro_batches + k)

    def mean_loss(self) -> float:
        """Of what the last micro or loss program computed, weighted as load_batch said."""
        loss = self.memory.array(self.t.io.loss).astype(np.float64)
        return float(np.sum(loss * self.memory.array(self.t.io.dloss)))

    def set_hyper(self, step: int) -> float:
        """Fill the hyper tensor for update `step` (0-based); returns the learning rate."""
        s, lr = self.s, learning_rate(self.s, step)
        self.memory.array(self.t.io.hyper)[...] = (
            lr, s.beta1, s.beta2, s.eps, s.weight_decay, s.clip,
            1 / (1 - s.beta1 ** (step + 1)), 1 / (1 - s.beta2 ** (step + 1)),
        )  # fmt: skip
        return lr

    def gradients(self, batches: list[Batch], step: int) -> float:
        """Run micro on every batch; gradients add up in dp.  Returns the mean loss per counted
        token."""
        counted = sum(int((targets >= 0).sum()) for _, targets in batches)
        loss = 0.0
        for k, batch in enumerate(batches):
            self.load_batch(batch, counted, step, k)
            self.run("micro")()
            loss += self.mean_loss()
        return loss

    def update(self, step: int) -> tuple[float, float]:
        """Run update; (gradient norm, learning rate).  With a norm that is not finite nothing is
        changed."""
        lr = self.set_hyper(step)
        self.run("update")()
        return float(self.memory.array(self.t.io.norm)[0]), lr

    def validate(self, windows: np.ndarray) -> float:
        """Mean loss over windows (n, T + 1), in batches of batch_size; the last batch is padded
        with ignored rows."""
        B, total = self.s.batch_size, 0.0
        for start in range(0, len(windows), B):
            chunk = windows[start : start + B]
            rows = np.zeros((B, windows.shape[1]), np.int32)
            rows[: len(chunk)] = chunk
            targets = rows[:, 1:].copy()
            targets[len(chunk) :] = -1
            self.load_batch((rows[:, :-1], targets), windows.size - len(windows), 0)
            self.run("loss")()
            total += self.mean_loss()
        return total

    def state_bytes(self) -> dict[str, int]:
        return {name: flat.nbytes for name, flat in self.flats.items()}


def device_options(s: Settings) -> dict[str, Any]:
    """What device.get needs besides the name."""
    if s.device != "cpu":
        return {}
    rungs = dict(r.split("=", 1) for r in s.rung.split(",") if r)
    if s.matmul == "blas":
        rungs["matmul"] = "blas"
    return {"threads": s.threads or None, "rungs": rungs}
