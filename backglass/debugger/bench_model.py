"""The whole model at once: the slope of the recorded step's loss along random directions, by finite
differences and by the gradient, in float64.

(L(θ + hv) − L(θ − hv))/2h = ⟨grad, v⟩, L the loss of all micro-batches of the step, the plain
program evaluated by the maths files.  v moves every weight by about its own size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from backglass import models
from backglass.checks.cells import typical_size
from backglass.checks.model import slope_along
from backglass.checks.op import LIMIT
from backglass.debugger.bench import Row
from backglass.debugger.bench_checks import ticker
from backglass.debugger.bench_values import Progress, Values, exact, values_of
from backglass.debugger.matrix import Cache
from backglass.debugger.problem import Problem, damaged
from backglass.debugger.reading import Reading
from backglass.device import get
from backglass.execute.memory import Memory
from backglass.execute.run import Run
from backglass.layout import Layout, is_layered
from backglass.program.plan import plan
from backglass.program.step import Tensors, declare, record_loss, record_micro

MOST_BYTES = 2 << 30
HELD = 4  # in float64: parameters, gradients, where they were, and a direction
STEP = 1e-3  # in units of a weight's size
ROUND_OFF = 16 * 2.0**-52  # of a loss, in units of it
SEED = 1  # of the directions
EVALUATIONS = 4  # of a central difference
MOST_PARAMETERS, MOST_BATCHES = 10_000, 1_000  # tensors, and micro-batches


def model_check(reading: Reading, cache: Cache, progress: Progress) -> Row:
    """A row for all parameters together and one for each kind; refused where memory would not
    do."""
    c, batches = config_of(reading), batches_of(reading)
    model = models.of(c)
    B, T = batches[0]["ids"]["shape"]
    params = parameters_of(reading, c)
    micro = plan(record_micro(model, c, B, T, "fp64"), inplace=False)
    forward = plan(record_loss(model, c, B, T, "fp64"), inplace=False)
    count = sum(int(np.prod(v["shape"])) for v in params.values())
    if (need := 8 * HELD * count + micro.peak) > MOST_BYTES:
        raise Problem(
            413, f"The whole model in float64 takes {need:,} bytes: {count:,} parameters {HELD} "
            f"times over, and {micro.peak:,} for activations. {MOST_BYTES:,} are used. Every op "
            "can be checked by itself, on the numbers of this step.",
        )  # fmt: skip
    versions = [*params.values(), *(v for batch in batches for v in batch.values())]
    values = values_of(reading, versions, cache, progress)
    memory, t = filled(c, B, T, params, values)
    memory.arena(max(micro.peak, forward.peak))
    lines = [Run(p.placed(), get("numpy"), memory) for p in (micro, forward)]

    def total(line: Run) -> float:
        found = 0.0
        for batch in batches:
            for name, v in batch.items():
                memory.write(getattr(t.io, name), values[v["id"]])
            line()
            found += float(np.sum(memory.array(t.io.loss) * memory.array(t.io.dloss)))
        return found

    with np.errstate(all="ignore"):
        loss = total(lines[0])  # which also leaves the gradient in memory
        rows = rows_along(memory, t, loss, lambda: total(lines[1]), progress)
    return {"rows": rows, "loss": loss, "parameters": count, "tokens": B * T * len(batches)}


def rows_along(
    memory: Memory, t: Tensors, loss: float, total: Callable[[], float], progress: Progress
) -> list[Row]:
    """All parameters along one direction, then those of each kind.  The bound is that of an op, or
    what rounding the loss makes of it where the slope is small."""
    kinds = [[p.name for p in t.layout.params], *([p.name] for p in t.layout.params)]
    tick, rng = ticker(progress, EVALUATIONS * len(kinds)), np.random.default_rng(SEED)
    least = typical_size(memory.array(t.p.flat))  # biases that are still zero move like the rest

    def told() -> float:
        tick()
        return total()

    def size(x: np.ndarray) -> float:
        return max(least, typical_size(x) if x.any() else 0.0)

    rows = []
    for names in kinds:
        along = slope_along(memory, t, names, told, rng, STEP, size)
        bound = max(LIMIT, ROUND_OFF * abs(loss) / (STEP * max(along.norm, 1e-300)))
        rows.append({
            "name": names[0] if len(names) == 1 else "", "numeric": along.numeric,
            "by_hand": along.by_hand, "norm": along.norm, "error": along.error, "bound": bound,
            "ok": bool(along.error <= bound),
        })  # fmt: skip
    return rows


def config_of(reading: Reading) -> Any:
    """Of the recorded program, in which attention is spelled out if the model can."""
    try:
        c = models.get(reading.model).Config(**reading.manifest["config"])
        return models.adapted(c, attention="explicit")
    except (TypeError, ValueError) as error:
        raise damaged(reading.folder / "manifest.json", error) from None


def parameters_of(reading: Reading, c: Any) -> dict[str, Row]:
    """The versions of the parameters before the step, by name."""
    with reading.asking() as db:
        found = db.execute(
            "select tensor, id from versions where kind = 'param' and event is null limit ?",
            (MOST_PARAMETERS,),
        ).fetchall()
    ids, layout = dict(found), Layout(models.of(c).PARAMS, c.sizes(1, 1), "fp64")
    layered = sum(is_layered(p.dims) for p in layout.params)
    if len(ids) != len(layout.params) - layered + c.layers * layered:
        raise damaged(reading.index, "its parameters are not those of the model that it names")
    params = {s.name: reading.version(ids[s.name]) for s in layout.slots if s.name in ids}
    if any(params[s.name]["shape"] != list(s.shape) for s in layout.slots):
        raise damaged(reading.index, "its parameters have not the shapes of the model it names")
    return params


def batches_of(reading: Reading) -> list[dict[str, Row]]:
    """What the host wrote for each micro-batch, by the name of the tensor."""
    found: dict[str, list[Row]] = {}
    for name in ("ids", "targets", "dloss", "seed"):
        with reading.asking() as db:
            rows = db.execute(
                "select id from versions where tensor = ? and event is null order by number limit "
                "?", (name, MOST_BATCHES),
            ).fetchall()  # fmt: skip
        if rows:
            found[name] = [reading.version(number) for (number,) in rows]
    if "ids" not in found or len({len(rows) for rows in found.values()}) != 1:
        raise damaged(reading.index, "it has no whole micro-batch")
    return [dict(zip(found, rows, strict=True)) for rows in zip(*found.values(), strict=True)]


def filled(
    c: Any, B: int, T: int, params: dict[str, Row], values: Values
) -> tuple[Memory, Tensors]:
    """Memory with the recorded parameters, and a gradient of zero."""
    memory = Memory()
    t = declare(models.of(c), c, B, T, "fp64", memory)
    memory.allocate(t.p.flat)
    memory.allocate(t.dp.flat)
    for view in t.p:
        memory.write(view, exact(values[params[view.name]["id"]]))
    return memory, t
