"""model check: is the whole backward the derivative of the whole forward?  In float64, on a small
model of odd sizes.

mirror        every backward line against the forward line it belongs to
directional   for each parameter tensor, ⟨dp, u⟩ against the loss's finite difference along u
eager         the same lines executed at once give the same bits
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from backglass.checks.op import LIMIT, Result, central_difference
from backglass.device import Device, get
from backglass.execute.eager import Eager
from backglass.execute.memory import Memory
from backglass.execute.run import Run
from backglass.program.record import Program
from backglass.program.step import Tensors, declare, record_loss, record_micro, run_micro
from backglass.program.validate import mirror

B, T = 2, 5


def small_config(model: ModuleType, **changes: Any) -> Any:
    """Odd sizes, few enough for finite differences: two layers, three heads of five channels."""
    small = dict(layers=2, heads=3, channels=15, vocab_size=11, max_seq_len=7)
    return model.Config(**(small | changes))


def prepare(model: ModuleType, c: Any, dtype: str = "fp64", seed: int = 0) -> tuple[Memory, Any]:
    """Memory with random parameters (biases too), a random batch with one masked target, zero
    gradients."""
    memory = Memory()
    t = declare(model, c, B, T, dtype, memory)
    rng = np.random.default_rng(seed)
    p = memory.allocate(t.p.flat, t.layout.initial(seed))
    for view in t.p:
        memory.array(view)[...] += 0.3 * rng.standard_normal(view.shape)
    memory.array(t.p.wte)[c.vocab_size :] = 0
    memory.allocate(t.dp.flat)
    memory.array(t.io.ids)[...] = rng.integers(0, c.vocab_size, (B, T))
    targets = rng.integers(0, c.vocab_size, (B, T))
    targets[0, 1] = -1
    memory.array(t.io.targets)[...] = targets
    memory.array(t.io.seed)[...] = (seed, 1)
    memory.array(t.io.dloss)[...] = (targets >= 0) / (targets >= 0).sum()
    assert np.isfinite(p).all()
    return memory, t


def check_model(model: ModuleType, name: str) -> list[Result]:
    """Results for every one of the model's VARIANTS."""
    results = []
    for changes in model.VARIANTS:
        c = small_config(model, **changes)
        case = " ".join(f"{k}={v}" for k, v in changes.items()) or "plain"
        program = record_micro(model, c, B, T, "fp64").validate()
        results.append(_mirror(program, name, case))
        results += directional(model, c, program, name, case)
        results.append(_eager(model, c, program, name, case))
    return results


def _mirror(program: Program, name: str, case: str) -> Result:
    try:
        mirror(program)
        return Result("mirror", name, f"{len(program)} lines", case, 0.0, 0.0)
    except ValueError as error:
        return Result("mirror", name, f"{len(program)} lines", case, np.inf, 0.0, str(error))


def directional(
    model: ModuleType, c: Any, program: Program, name: str, case: str, device: Device | None = None
) -> list[Result]:
    """One result per parameter tensor, all layers together: |numeric − by hand| / ‖gradient‖."""
    device = device or get("numpy")
    memory, t = prepare(model, c)
    Run(program, device, memory)()
    loss_of = Run(record_loss(model, c, B, T, "fp64"), device, memory)
    loss, dloss = memory.array(t.io.loss), memory.array(t.io.dloss)

    def total() -> float:
        loss_of()
        return float(np.sum(loss * dloss))

    rng, results = np.random.default_rng(7), []
    for param in t.layout.params:
        along = slope_along(memory, t, [param.name], total, rng)
        results.append(Result("directional", name, f"d{param.name}", case, along.error, LIMIT))
    return results


@dataclasses.dataclass(frozen=True)
class Along:
    """The slope of the loss along a direction, by finite differences and by the gradient; norm: of
    the gradient in these parameters."""

    numeric: float
    by_hand: float
    norm: float

    @property
    def error(self) -> float:
        return abs(self.numeric - self.by_hand) / max(self.norm, 1e-12)


def slope_along(
    memory: Memory, t: Tensors, names: list[str], total: Callable[[], float],
    rng: np.random.Generator, eps: float = 2e-4, size: Callable[[np.ndarray], float] = lambda p: 1,
) -> Along:  # fmt: skip
    """Move the named parameters, in all layers together, along one random direction.

    total: the loss of what memory holds, which also holds the gradient; size: of a direction's
    entries in a tensor, given its values.  Afterwards the parameters are what they were.
    """
    pairs = [
        (p, memory.array(g))
        for p, g in zip(t.p, t.dp, strict=True)
        if p.name.split(".")[-1] in names
    ]
    starts = [p.numpy() for p, _ in pairs]
    directions = [size(x) * rng.standard_normal(x.shape) for x in starts]

    def moved(by: float) -> float:
        for (p, _), start, u in zip(pairs, starts, directions, strict=True):
            memory.array(p)[...] = start + by * u
        return total()

    numeric = central_difference(moved, eps)
    for (p, _), start in zip(pairs, starts, strict=True):
        memory.array(p)[...] = start
    by_hand = sum(float(np.sum(g * u)) for (_, g), u in zip(pairs, directions, strict=True))
    entries = [size(x) for x in starts]
    norm = np.sqrt(sum(np.sum(g * g) * n * n for (_, g), n in zip(pairs, entries, strict=True)))
    return Along(float(numeric), by_hand, float(norm))


def directional_whole(model: ModuleType, c: Any, program: Program, name: str) -> Result:
    """All parameters moved at once along one random direction."""
    memory, t = prepare(model, c)
    Run(program, get("numpy"), memory)()
    loss_of = Run(record_loss(model, c, B, T, "fp64"), get("numpy"), memory)
    loss, dloss = memory.array(t.io.loss), memory.array(t.io.dloss)
    p, g = memory.array(t.p.flat), memory.array(t.dp.flat)
    start, u = p.copy(), np.random.default_rng(8).standard_normal(p.shape)

    def moved(eps: float) -> float:
        p[...] = start + eps * u
        loss_of()
        return float(np.sum(loss * dloss))

    numeric = central_difference(moved, eps=2e-5)
    error = abs(numeric - float(g @ u)) / max(float(np.linalg.norm(g)), 1e-12)
    return Result("directional", name, "all parameters", "", error, 10 * LIMIT)


def _eager(model: ModuleType, c: Any, program: Program, name: str, case: str) -> Result:
    grads = []
    for eager in (False, True):
        memory, t = prepare(model, c)
        if eager:
            run_micro(Eager(get("numpy"), memory), model, c, t)
        else:
            Run(program, get("numpy"), memory)()
        grads.append(memory.array(t.dp.flat).tobytes())
    same = grads[0] == grads[1]
    return Result("eager", name, "same bits", case, 0.0 if same else np.inf, 0.0)
