"""The checks of the gradient bench, on recorded numbers.

maths     the float64 maths against central differences, φ(x) = ⟨g, f(x)⟩
curve     the same at one cell for every step size: truncation on one side, round-off on the other
kernel    the kernel in its dtype against the float64 maths, bound by what a naive evaluation errs
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backglass.checks.cells import STEP, slopes, slopes_by_step, typical_size
from backglass.checks.kernel import execute_call, held, judged, naive_maths, ulps_of
from backglass.checks.op import LIMIT, backward, differentiated, directional_error
from backglass.checks.samples import Sample, call_maths, with_backward
from backglass.debugger.bench import (
    Bench,
    Row,
    by_name,
    forward_sample,
    given,
    gradients,
    own,
    sample_of,
    upstream,
)
from backglass.debugger.bench_values import Progress, Values, exact, index_of, values_of
from backglass.debugger.matrix import Cache, text_of
from backglass.debugger.problem import Problem
from backglass.device import Device, get
from backglass.errors import UserError
from backglass.spec import Signature
from backglass.view import DTYPES

CELLS, FEWEST = 64, 4  # looked at in each operand
SECONDS = 20.0  # that they may take all together; where one takes long there are fewer
STEPS = tuple(10.0 ** (-e / 2) for e in range(2, 25))  # 1e-1 to 1e-12


@dataclass(frozen=True)
class Cell:
    """A cell of the input `of`, by its flat index."""

    of: str
    at: int


# ------------------------------------------------------------------ the maths


def maths_check(b: Bench, cache: Cache, only: Cell | None, progress: Progress) -> Row:
    """A row for each gradient: along a random direction, which reaches every cell, and at single
    cells, of which the worst is named.  only: at this cell and no other."""
    rows = [r for r in gradients(b) if only is None or r["of"] == only.of]
    if not rows:
        raise Problem(404, f"event {b.event['k']} has no such gradient that could be checked")
    sample = differentiated_sample(b, values_of(b.reading, given(b), cache, progress))
    grads, rng = backward(sample), np.random.default_rng([b.event["k"], 1])
    most = CELLS if only else affordable(sample, len(rows))
    cells = [
        np.array([only.at]) if only
        else rng.choice(sample.values[r["of"]].size, min(most, sample.values[r["of"]].size), False)
        for r in rows
    ]  # fmt: skip
    tick = ticker(progress, sum(map(len, cells)))
    with np.errstate(all="ignore"):
        found = [
            gradient_row(sample, r, grads.get(r["name"]), at, rng, tick)
            for r, at in zip(rows, cells, strict=True)
        ]
    return {"rows": found, "upstream": upstream(b), "seed": b.event["k"]}


def differentiated_sample(b: Bench, values: Values) -> Sample:
    """The forward's inputs and what its backward reads, all in float64: the forward's outputs as
    the maths makes them, and g as recorded, random where it was not."""
    g = {
        row["name"]: exact(values[row["recorded"]["version"]])
        for row in upstream(b) if row["recorded"]
    }  # fmt: skip
    sample, rng = forward_sample(b, values), np.random.default_rng([b.event["k"], 0])
    with np.errstate(all="ignore"):
        whole = with_backward(sample, rng, g)
    for name in g:  # (B, T, C) where the spec says (N, C)
        whole.values[name] = whole.values[name].reshape(whole.values[name[1:]].shape)
    return whole


def affordable(sample: Sample, operands: int) -> int:
    """How many cells of each operand, told by how long one evaluation takes: a cell needs four."""
    f, _ = differentiated(sample)
    start = time.perf_counter()
    with np.errstate(all="ignore"):
        f({})
    spent = time.perf_counter() - start
    return max(FEWEST, min(CELLS, int(SECONDS / (4 * spent * operands))))


def ticker(progress: Progress, total: int) -> Callable[[], None]:
    """Tells how far a check is, each time it is called."""
    done = iter(range(1, total + 1))
    progress(0, total)
    return lambda: progress(next(done), total)


def gradient_row(
    sample: Sample, r: Row, grad: np.ndarray | None, cells: np.ndarray, rng: np.random.Generator,
    tick: Callable[[], None],
) -> Row:  # fmt: skip
    """error: the worst of the direction's and the cells', these as fractions of the gradient's
    norm."""
    x = sample.values[r["of"]]
    found = {"name": r["name"], "of": r["of"], "cells": len(cells), "size": x.size, "bound": LIMIT}
    if grad is None or grad.shape != x.shape:
        return found | {"error": np.inf, "ok": False, "direction": np.inf, "worst": None}
    size, norm = typical_size(x), float(np.linalg.norm(grad))
    direction = directional_error(sample, r["of"], grad, rng, size)
    errors, numeric = [], []
    for cell, slope in zip(cells, slopes(sample, r["of"], cells, STEP * size), strict=True):
        numeric.append(slope)
        errors.append(error_of(slope, float(grad.flat[cell]), norm))
        tick()
    at = int(np.argmax(np.nan_to_num(errors, nan=np.inf)))
    worst = {
        "index": index_of(r["x"]["shape"], int(cells[at])), "error": errors[at],
        "numeric": numeric[at], "by_hand": float(grad.flat[cells[at]]),
    }  # fmt: skip
    error = float(np.max([direction, errors[at]]))  # NaN if either is
    found |= {"error": error, "ok": bool(error <= LIMIT), "direction": direction, "norm": norm}
    return found | {"step": STEP * size, "worst": worst}


def error_of(numeric: float, by_hand: float, norm: float) -> float:
    gap = abs(numeric - by_hand)
    return 0.0 if gap == 0 else float(gap / max(norm, 1e-300))


def curve(b: Bench, cache: Cache, cell: Cell | None, progress: Progress) -> Row:
    """The error at one cell (None: the first) for every step size, and what the check itself
    uses."""
    row = next((r for r in gradients(b) if cell is None or r["of"] == cell.of), None)
    if row is None:
        raise Problem(404, f"event {b.event['k']} has no such gradient that could be checked")
    cell = cell or Cell(row["of"], 0)
    sample = differentiated_sample(b, values_of(b.reading, given(b), cache, progress))
    grad, x = backward(sample).get(row["name"]), sample.values[cell.of]
    if grad is None or grad.shape != x.shape:
        raise Problem(422, f"no backward call of {b.op.name} returns {row['name']}")
    norm, by_hand, size = float(np.linalg.norm(grad)), float(grad.flat[cell.at]), typical_size(x)
    tick, points = ticker(progress, len(STEPS) + 1), []
    with np.errstate(all="ignore"):
        for h, numeric in slopes_by_step(sample, cell.of, cell.at, STEPS):
            error = error_of(numeric, by_hand, norm)
            points.append({"h": h, "numeric": numeric, "error": error})
            tick()
        (numeric,) = slopes(sample, cell.of, [cell.at], STEP * size)
    used = {"h": STEP * size, "numeric": numeric, "error": error_of(numeric, by_hand, norm)}
    return {
        "of": cell.of, "name": row["name"], "index": index_of(row["x"]["shape"], cell.at),
        "x": float(x.flat[cell.at]), "by_hand": by_hand, "norm": norm, "points": points,
        "used": used, "bound": LIMIT,
    }  # fmt: skip


# ------------------------------------------------------------------ the kernel


def kernel_check(b: Bench, cache: Cache, progress: Progress) -> Row:
    """A row for each output: what the kernel makes of the recorded numbers, against the maths.  It
    is run again; where its device is not, the recorded results stand for it."""
    sig, dtype = b.signature, b.reading.manifest["dtype"]
    values = values_of(b.reading, own(b), cache, progress)
    sample = sample_of(b.op, sig, b.event, values)
    outs = [by_name(b.event["outs"]).get(o.name) for o in sig.outs]
    recorded: list[Any] = [None if row is None else values[row["version"]["id"]] for row in outs]
    adds = tuple(bool(row and row["adds"]) for row in outs)
    device, why = device_of(b)
    with np.errstate(all="ignore"):
        truth = call_maths(sig, sample, sample.values)
        naive = naive_maths(sig, sample, sample.values, dtype)
        ulps = ulps_of(sig, sample, sample.values, dtype, naive)
        found = made_again(sig, sample, device, dtype, recorded, adds) if device else recorded
        rows = []
        for k, o in enumerate(sig.outs):
            if (row := outs[k]) is None:
                continue
            base = sample.values[o.name] if adds[k] else 0.0
            want = truth[k] + base
            made, stored = found[k].reshape(want.shape), held(o, dtype)
            error, bound = judged(made, want, naive[k] + base, stored, ulps[k])
            same = found[k].tobytes() == recorded[k].tobytes()
            judgement = {"error": error, "bound": bound, "ok": bool(error <= bound), "same": same}
            worst = worst_of(row["version"]["shape"], found[k], want)
            rows.append({"name": o.name, "size": want.size} | judgement | {"worst": worst})
    return {"rows": rows, "ran": device.name if device else None, "why_not_run": why}


def made_again(
    sig: Signature, sample: Sample, device: Device, dtype: str, recorded: list, adds: tuple
) -> list:
    """Outputs of the kernel; what it does not add to or update starts as NaN."""
    start = []
    for o, was, add in zip(sig.outs, recorded, adds, strict=True):
        stored = DTYPES[held(o, dtype)]
        kept = add or o.name in sig.updated
        begin = sample.values[o.name] if kept else np.nan
        start.append(
            None if was is None else np.broadcast_to(begin, o.shape(sample.sizes)).astype(stored)
        )
    found, broken = execute_call(sig, sample, sample.values, device, dtype, start, adds, None)
    if broken:
        raise Problem(422, f"{sig.call} wrote beside {', '.join(broken)}, into others' memory")
    return found


def worst_of(shape: list[int], found: np.ndarray, want: np.ndarray) -> Row:
    """The cell that errs most."""
    gap = np.abs(found.astype(np.float64).ravel() - want.ravel())
    cell = int(np.argmax(np.nan_to_num(gap, nan=np.inf)))
    stored, true = text_of(found.flat[cell]), float(want.flat[cell])
    return {"index": index_of(shape, cell), "found": stored, "true": true}


def device_of(b: Bench) -> tuple[Device | None, str]:
    """What the step ran on, with its options; or why it cannot be had here."""
    from backglass.training.session import device_options
    from backglass.training.settings import Settings

    m = b.reading.manifest
    try:
        return get(m["device"], **device_options(Settings(**m["settings"]))), ""
    except (UserError, ImportError, ValueError, TypeError) as error:
        return None, str(error)
