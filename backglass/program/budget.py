"""budget: how many bytes a run takes, what lives at the peak, which recomputation fits, how long a
step may take.  All of it from the programs and the specs, before anything is allocated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from backglass.models import adapted
from backglass.program.cost import Cost, cost
from backglass.program.plan import Life, Plan, plan
from backglass.program.record import Call, Program
from backglass.program.step import declare, record_loss, record_micro, record_update
from backglass.view import View

# What a GPU's driver reports beside what we allocate: the context, the code of the kernels, what
# cuBLASLt keeps.
CUDA_CONTEXT_BYTES = int(0.53 * 2**30)
CUDA_CONTEXT_SOURCE = "measured on an H200 (driver 580, CuPy 14.2), 2026-11-24"


@dataclass(frozen=True)
class Machine:
    """What a device adds to a plan.

    fused: the fused ops it has kernels for, None for all; workspace: the scratch bytes that the
    kernels of some calls share, None if nobody can tell; context: bytes that its driver takes.
    """

    fused: tuple[str, ...] | None = None
    workspace: Callable[[Iterable[Call]], int] | None = None
    context: int = 0


@dataclass(frozen=True)
class Budget:
    """One choice of recomputation: bytes by kind, and the roofline's time of a step.

    states: the flat buffers that live as long as the run; plans: of micro, update and loss, which
    share an arena; workspace: None where it is not known, and then not in the total.
    """

    recompute: tuple[str, ...]
    states: dict[str, View]
    plans: dict[str, Plan]
    workspace: int | None
    context: int
    step: Cost

    @property
    def arena(self) -> int:
        return self.highest.peak

    @property
    def highest(self) -> Plan:
        """The plan that needs most of the arena."""
        return max(self.plans.values(), key=lambda p: p.peak)

    @property
    def state_bytes(self) -> int:
        return sum(flat.nbytes for flat in self.states.values())

    @property
    def total(self) -> int:
        return self.state_bytes + self.arena + (self.workspace or 0) + self.context

    @property
    def at_the_peak(self) -> list[Life]:
        return self.highest.live_at(self.highest.bound_line)

    def held(self) -> dict[str, dict[str, list[str]]]:
        """dtype -> kind -> the tensors held in it, those of all layers under one name."""
        found: dict[str, dict[str, list[str]]] = {}
        calls = [c for p in self.plans.values() for c in p.program]
        views = [v for c in calls for v in (*c.outs, *c.ins) if v is not None]
        for v in [*self.states.values(), *(v for v in views if not v.group)]:
            names = found.setdefault(v.dtype, {}).setdefault(v.kind, [])
            if (name := v.name.rpartition(".")[2]) not in names:
                names.append(name)
        return found


def budget(
    model: ModuleType, c: Any, B: int, T: int, dtype: str, recompute: Iterable[str] = (),
    machine: Machine = Machine(), micro_batches: int = 1,
    flops_per_s: float = 1e12, bytes_per_s: float = 1e11,
) -> Budget:  # fmt: skip
    """Plan and cost a step.  recompute: activation names.  Raises ValueError for one that no
    forward line makes."""
    plans = plan_all(programs(model, c, B, T, dtype), tuple(recompute), machine.fused)
    seconds, once = (
        sum(cost(plans[name].program, flops_per_s, bytes_per_s), Cost())
        for name in ("micro", "update")
    )
    calls = [call for p in plans.values() for call in p.program]
    return Budget(
        tuple(recompute), states(model, c, dtype), plans,
        machine.workspace and machine.workspace(calls), machine.context,
        sum([seconds] * micro_batches, Cost()) + once,
    )  # fmt: skip


def states(model: ModuleType, c: Any, dtype: str) -> dict[str, View]:
    """What lives as long as the run: parameters, gradients, AdamW's moments; with bf16 also the
    fp32 master weights."""
    t = declare(model, c, 1, 1, dtype)
    named = {"parameters": t.p, "gradients": t.dp, "m": t.m, "v": t.v, "master weights": t.master}
    return {name: space.flat for name, space in named.items() if space}


def programs(model: ModuleType, c: Any, B: int, T: int, dtype: str) -> dict[str, Program]:
    """The programs of a training run, as recorded; validation drops nothing out."""
    evaluated = adapted(c, dropout=0.0)
    return {
        "micro": record_micro(model, c, B, T, dtype).validate(),
        "update": record_update(model, c, dtype).validate(),
        "loss": record_loss(model, evaluated, B, T, dtype).validate(),
    }


def plan_all(
    recorded: dict[str, Program], recompute: tuple[str, ...], fused: tuple[str, ...] | None
) -> dict[str, Plan]:
    """Every program transformed, and a place for its activations."""
    found = dict(recorded)
    if recompute:
        found["micro"] = found["micro"].recompute(*recompute)
    if fused != ():
        found = {name: p.fuse(*(fused or ())).validate() for name, p in found.items()}
    return {name: plan(p) for name, p in found.items()}


def frontier(model: ModuleType, c: Any, B: int, T: int, dtype: str, **options: Any) -> list[Budget]:
    """Every choice of the model's RECOMPUTE that no other beats in both bytes and time, the fastest
    first."""
    groups = model.RECOMPUTE
    found = [budget(model, c, B, T, dtype, fields, **options) for fields in choices(groups)]
    found.sort(key=lambda b: (b.step.seconds, b.total))
    best, kept = None, []
    for b in found:
        if best is None or b.total < best:
            best = b.total
            kept.append(b)
    return kept


def choices(groups: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every set of fields the groups can make, none twice; a group is fields in one text."""
    seen = set()
    for k in range(len(groups) + 1):
        for chosen in itertools.combinations(groups, k):
            fields = tuple(sorted({f for group in chosen for f in group.split()}))
            if fields not in seen:
                seen.add(fields)
                yield fields


def largest_batch(
    model: ModuleType, c: Any, T: int, dtype: str, memory: int, **options: Any
) -> int:
    """The largest B that fits into `memory` bytes; 0 if none does."""

    def fits(B: int) -> bool:
        return budget(model, c, B, T, dtype, **options).total <= memory

    if not fits(1):
        return 0
    high = 1
    while fits(2 * high):
        high *= 2
    low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
