"""A training session: the model's memory, its recorded programs, and one optimizer step.

This is the machinery under the loop, and what tests and `bg.load(...).grads` use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from backglass import models
from backglass.device import Device
from backglass.execute.capture import Capture
from backglass.execute.eager import Eager
from backglass.execute.memory import Memory
from backglass.execute.run import Run
from backglass.layout import Space
from backglass.program.step import Tensors, declare, run_micro, run_update
from backglass.training.fit import budget_of, machine_of, require_memory
from backglass.training.settings import Settings, learning_rate, parse_rungs

Batch = tuple[np.ndarray, np.ndarray]


class Session:
    """Parameters, gradients and moments of one model, and the programs that work on them."""

    def __init__(self, c: Any, s: Settings, device: Device):
        self.c, self.s, self.device = c, s, device
        self.memory = device.memory()
        B, T = s.batch_size, s.seq_len
        self.t: Tensors = declare(models.of(c), c, B, T, s.dtype, self.memory)
        machine = machine_of(s, device)
        self.budget = budget_of(s, c, machine)
        self.plans = self.budget.plans
        require_memory(s, c, device, self.budget, machine)
        spaces = (self.t.p, self.t.dp, self.t.m, self.t.v, self.t.master)
        groups = [space.flat for space in spaces if space]
        self.flats = {flat.name: self.memory.allocate(flat) for flat in groups}
        self._runs: dict[str, Callable[[], None]] = {}

    def init(self) -> None:
        """The model's random start."""
        self.load_state({"p": self.t.layout.initial(self.s.seed)})

    def load_state(self, flats: dict[str, np.ndarray]) -> None:
        """Put buffers p, m or v, as a checkpoint holds them, into place."""
        for name, values in flats.items():
            self.memory.write(getattr(self.t, name).flat, values)
            if name == "p" and self.t.master:
                self.memory.write(self.t.master.flat, values)

    def state(self) -> dict[str, np.ndarray]:
        """The buffers p, m and v for a checkpoint; p unrounded, where there is a master."""
        p = self.t.master or self.t.p
        kept = {"p": p.flat, "m": self.t.m.flat, "v": self.t.v.flat}
        return {name: self.memory.peek(flat) for name, flat in kept.items()}

    def execute_eagerly(self) -> None:
        """From now on micro and update are executed line by line from the model file."""
        ops = Eager(self.device, self.memory)
        self._runs = {
            "micro": partial(run_micro, ops, models.of(self.c), self.c, self.t),
            "update": partial(run_update, ops, self.t),
        }

    def run(self, name: str) -> None:
        """Run the program micro, update or loss."""
        self._runs[name]()

    def bind(self) -> None:
        """Bind all programs, once; they share one arena and compile together."""
        if self._runs:
            return
        self.memory.arena(self.budget.arena)
        placed = {name: p.placed() for name, p in self.plans.items()}
        self.device.prepare([c for p in placed.values() for c in p], self.memory)
        runs = {name: Run(p, self.device, self.memory) for name, p in placed.items()}
        self._runs = dict(runs)
        if self.device.captures and self.s.graph:
            self._rehearse(runs)
            self._runs = {name: Capture(run, self.device) for name, run in runs.items()}

    def _rehearse(self, runs: dict[str, Run]) -> None:
        """Run every program once so that its kernels exist, on inputs that change nothing: no token
        counts, and the learning rate is 0 with β = 1."""
        shape = (self.s.batch_size, self.s.seq_len)
        self.load_batch((np.zeros(shape, np.int32), np.full(shape, -1, np.int32)), 1, 0)
        self.memory.write(self.t.io.hyper, (0, 1, 1, 1, 0, 0, 1, 1))
        for run in runs.values():
            run()

    def load_batch(self, batch: Batch, counted: int, step: int, k: int = 0) -> None:
        """Put a micro-batch where the programs read it.  Each counted token weighs 1/counted; id −1
        weighs nothing."""
        self.weights = write_batch(self.memory, self.t.io, batch, counted)
        self.memory.write(self.t.io.seed, (self.s.seed, step * self.s.micro_batches + k))

    def mean_loss(self) -> float:
        """Of what the last micro or loss program computed, weighted as load_batch said."""
        loss = self.memory.read(self.t.io.loss).astype(np.float64)
        return float(np.sum(loss * self.weights))

    def set_hyper(self, step: int) -> float:
        """Fill the hyper tensor for update `step` (0-based); returns the learning rate."""
        hyper = hyper_of(self.s, step)
        self.memory.write(self.t.io.hyper, hyper)
        return hyper[0]

    def gradients(self, batches: list[Batch], step: int) -> float:
        """Run micro on every batch; gradients add up in dp.  Returns the mean loss per counted
        token."""
        self.bind()
        counted = sum(int((targets >= 0).sum()) for _, targets in batches)
        loss = 0.0
        for k, batch in enumerate(batches):
            self.load_batch(batch, counted, step, k)
            self.run("micro")
            loss += self.mean_loss()
        return loss

    def update(self, step: int) -> tuple[float, float]:
        """Run update; (gradient norm, learning rate).  With a norm that is not finite nothing is
        changed."""
        self.bind()
        lr = self.set_hyper(step)
        self.run("update")
        return float(self.memory.read(self.t.io.norm)[0]), lr

    def validate(self, windows: np.ndarray) -> float:
        """Mean loss over windows (n, T + 1), in batches of batch_size; the last batch is padded
        with ignored rows."""
        self.bind()
        B, total = self.s.batch_size, 0.0
        for start in range(0, len(windows), B):
            chunk = windows[start : start + B]
            rows = np.zeros((B, windows.shape[1]), np.int32)
            rows[: len(chunk)] = chunk
            targets = rows[:, 1:].copy()
            targets[len(chunk) :] = -1
            self.load_batch((rows[:, :-1], targets), windows.size - len(windows), 0)
            self.run("loss")
            total += self.mean_loss()
        return total

    def state_bytes(self) -> dict[str, int]:
        return {name: flat.nbytes for name, flat in self.flats.items()}


def write_batch(memory: Memory, io: Space, batch: Batch, counted: int) -> np.ndarray:
    """Ids, targets and dloss into io's tensors; returns each token's weight in the mean loss."""
    ids, targets = batch
    weights = (targets >= 0) * (1.0 / max(counted, 1))
    memory.write(io.ids, ids)
    memory.write(io.targets, targets)
    memory.write(io.dloss, weights)
    return weights


def hyper_of(s: Settings, step: int) -> tuple[float, ...]:
    """What AdamW is told for update `step` (0-based): lr, β₁, β₂, ε, decay, clip and the two bias
    corrections."""
    corrections = (1 / (1 - s.beta1 ** (step + 1)), 1 / (1 - s.beta2 ** (step + 1)))
    lr = learning_rate(s, step)
    return (lr, s.beta1, s.beta2, s.eps, s.weight_decay, s.clip, *corrections)


def device_options(s: Settings) -> dict[str, Any]:
    """What device.get needs besides the name."""
    if s.device == "numpy":
        return {}
    rungs = parse_rungs(s.rung)
    if s.matmul != "own":
        rungs.setdefault("matmul", s.matmul)
    return {"rungs": rungs} | ({"threads": s.threads or None} if s.device == "cpu" else {})
