"""budget: how many bytes a run takes, what lives at the peak, which recomputation fits, how long a
step may take.  All of it from the programs and the specs, before anything is allocated."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from backglass.layout import Layout
from backglass.program.cost import Cost, cost
from backglass.program.plan import Life, Plan, plan
from backglass.program.record import Program
from backglass.program.step import record_micro, record_update

# What may be recomputed, alone or together: cheap pieces first, the whole block last.
GROUPS: dict[str, tuple[str, ...]] = {
    "gelu": ("fch_gelu",),
    "ln": ("ln1", "ln2"),
    "fch": ("fch", "fch_gelu"),
    "qkv": ("qkv",),
    "block": ("ln1", "qkv", "atty", "attproj", "res2", "ln2", "fch", "fch_gelu", "fcproj"),
}


@dataclass(frozen=True)
class Budget:
    """One choice of recomputation: bytes by kind, and the roofline's time of a step."""

    recompute: tuple[str, ...]
    states: dict[str, int]
    plan: Plan
    step: Cost

    @property
    def total(self) -> int:
        return self.plan.peak + sum(self.states.values())

    @property
    def at_the_peak(self) -> list[Life]:
        return self.plan.live_at(self.plan.bound_line)


def states(layout: Layout, dtype: str) -> dict[str, int]:
    """Bytes that live as long as the run: parameters, gradients, AdamW's moments; with bf16 also
    the fp32 master weights."""
    n = layout.size
    width = {"fp32": 4, "fp64": 8, "bf16": 2}[dtype]
    kept = {"parameters": n * width, "gradients": n * width, "m": n * 4, "v": n * 4}
    if dtype == "fp64":
        kept |= {"m": n * 8, "v": n * 8}
    return kept | ({"master weights": n * 4} if dtype == "bf16" else {})


def budget(
    model: ModuleType, c: Any, B: int, T: int, dtype: str, recompute: Iterable[str] = (),
    fused: Iterable[str] | None = None, micro_batches: int = 1,
    flops_per_s: float = 1e12, bytes_per_s: float = 1e11,
) -> Budget:  # fmt: skip
    """Plan and cost a step.  recompute: activation names; fused: fused ops to use, None for all."""
    recompute = tuple(recompute)
    program = transformed(record_micro(model, c, B, T, dtype), recompute, fused)
    seconds = sum(cost(program, flops_per_s, bytes_per_s), Cost())
    once = sum(cost(record_update(model, c, dtype), flops_per_s, bytes_per_s), Cost())
    step = sum([seconds] * micro_batches, Cost()) + once
    layout = Layout(model.PARAMS, c.sizes(B, T), dtype)
    return Budget(recompute, states(layout, dtype), plan(program), step)


def transformed(
    program: Program, recompute: tuple[str, ...], fused: Iterable[str] | None
) -> Program:
    program = program.recompute(*recompute) if recompute else program
    return program.fuse(*fused) if fused is not None else program.fuse()


def frontier(model: ModuleType, c: Any, B: int, T: int, dtype: str, **options: Any) -> list[Budget]:
    """Every choice of GROUPS that no other beats in both bytes and time, the fastest first."""
    found = [budget(model, c, B, T, dtype, fields, **options) for fields in choices()]
    found.sort(key=lambda b: (b.step.seconds, b.total))
    best, kept = None, []
    for b in found:
        if best is None or b.total < best:
            best = b.total
            kept.append(b)
    return kept


def choices() -> Iterator[tuple[str, ...]]:
    """Every set of fields the groups can make, none twice."""
    seen = set()
    for k in range(len(GROUPS) + 1):
        for names in itertools.combinations(GROUPS, k):
            fields = tuple(sorted({f for name in names for f in GROUPS[name]}))
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
