"""Time by op: where an optimizer step goes, from the lines of the programs that the session runs.

The lines are executed one by one, not as the CUDA graph that training replays.  On the GPU a CUDA
event follows each, and nothing is waited for before the last; on the CPU the clock is read between
them.  A line's time is its median over STEPS steps.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from backglass.device import kind_of
from backglass.program.cost import by_op, cost
from backglass.program.record import Program

if TYPE_CHECKING:
    from backglass.bench.measured import Measured
    from backglass.bench.ops import Ceilings
    from backglass.training.session import Session

STEPS = 5
HOW = {
    "cuda": f"medians of {STEPS} steps, a CUDA event after every line; where a kernel is shorter "
    "than its\nlaunch from Python (small ones, small batches) its time includes the gap, which "
    "training's graph\ndoes not have",
    "cpu": f"medians of {STEPS} steps, the clock read between lines",
}


def line_times(session: Session) -> tuple[Program, list[float]]:
    """(the lines of one step: micro, then update; milliseconds of each).  The session has trained,
    so that all kernels exist, and its batch and hyper tensor are in place."""
    device: Any = session.device
    placed = [session.plans[name].placed() for name in ("micro", "update")]
    step = Program(tuple(c for program in placed for c in program))
    lines = device.bind(step, session.memory) * (1 + STEPS)
    if device.name == "cuda":
        from backglass.bench.gpu import elapsed_ms

        ms = elapsed_ms(device, lines)
    else:
        ms = host_ms(lines)
    steps = np.reshape(ms, (1 + STEPS, len(step)))[1:]  # in the first, launches get ahead
    return step, np.median(steps, 0).tolist()


def host_ms(lines: list[Callable[[], None]]) -> list[float]:
    marks = [time.perf_counter()]
    for line in lines:
        line()
        marks.append(time.perf_counter())
    return [(b - a) * 1e3 for a, b in pairwise(marks)]


def summary(step: Program, ms: list[float], limits: Ceilings) -> dict[str, Any]:
    """{"ceilings": FLOP/s and bytes/s, "ops": one entry per call name, the slowest first}.
    ceiling_ms: what its lines would take if each ran at the slower of its two ceilings."""
    took: defaultdict[str, float] = defaultdict(float)
    for c, line_ms in zip(step, ms, strict=True):
        took[c.op] += line_ms
    costs = by_op(step, cost(step, limits.flops_per_s, limits.bytes_per_s))
    return {
        "ceilings": (limits.flops_per_s, limits.bytes_per_s),
        "ops": [
            {"op": op, "calls": costs[op].calls, "ms": total, "flops": costs[op].flops,
             "bytes": costs[op].nbytes, "ceiling_ms": costs[op].seconds * 1e3}
            for op, total in sorted(took.items(), key=lambda item: -item[1])
        ],
    }  # fmt: skip


def rows(m: Measured) -> list[dict[str, Any]]:
    """Of the results file: milliseconds per step of each op."""
    return [
        {
            "case": m.case.replace("train-", f"op-{o['op']}-", 1), "implementation": m.name,
            "value": o["ms"], "unit": "ms", "calls": o["calls"],
            "share_of_step": o["ms"] / m.step_ms, "flops": o["flops"], "bytes": o["bytes"],
            "ceiling_ms": o["ceiling_ms"], "share": o["ceiling_ms"] / o["ms"],
        }
        for o in m.by_op.get("ops", ())
    ]  # fmt: skip


def table(m: Measured, device: str) -> Iterator[str]:
    """What is printed of it."""
    flops_per_s, bytes_per_s = m.by_op["ceilings"]
    ops = m.by_op["ops"]
    yield f"\ntime by op of {m.name}"
    yield HOW[kind_of(device)]
    yield f"{'call':24} {'lines':>5} {'ms':>10} {'of the step':>12} {'of its ceiling':>15}"
    for o in ops:
        yield _line(o["op"], o["calls"], o["ms"], m.step_ms, o["ceiling_ms"])
    lines, total, least = (sum(o[key] for o in ops) for key in ("calls", "ms", "ceiling_ms"))
    yield _line("sum", lines, total, m.step_ms, least)
    left = m.step_ms - total
    why = "tokens in, loss and norm out" if left >= 0 else "one by one its lines take longer"
    yield (
        f"{'the step, as it trains':24} {'':5} {m.step_ms:10.3f}   left over: {left:.3f} ms "
        f"({left / m.step_ms:.1%}), {why}"
    )
    yield (
        f"ceilings, measured in the same process: {flops_per_s / 1e12:,.2f} TFLOP/s, "
        f"{bytes_per_s / 1e12:,.3f} TB/s"
    )


def _line(name: str, lines: int, ms: float, step_ms: float, ceiling_ms: float) -> str:
    return f"{name:24} {lines:5} {ms:10.3f} {ms / step_ms:12.1%} {ceiling_ms / ms:15.0%}"
