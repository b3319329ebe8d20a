"""curves: the losses of runs as a picture, and as a few lines of text.

Smoothing is an exponential mean, corrected for its start: with s = 0.9 about the last ten steps
count.  Steps whose loss is not finite leave a gap.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backglass.errors import UserError, wrong_use
from backglass.tools.runlog import Log, read

SUFFIXES = (".png", ".svg", ".pdf")
BARS = "▁▂▃▄▅▆▇█"
PANELS = (("loss", "loss, nats per token"), ("grad_norm", "gradient norm"), ("lr", "learning rate"))


def load(paths: Iterable[Path]) -> list[Log]:
    """The log of each run.  Raises UserError for one that is missing, empty or damaged."""
    logs = []
    for path in paths:
        file = path / "log.jsonl" if path.is_dir() else path
        if not file.is_file():
            what = "is a folder without log.jsonl" if path.is_dir() else "does not exist"
            raise wrong_use(f"plot {path}: it {what}; give run directories, as made by train --out")
        try:
            log = read(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from None
        if log.problems:
            raise UserError(
                f"{file} is damaged: {'; '.join(log.problems)}. Mend or delete these lines."
            )
        if not log.steps and not len(log.val["step"]):
            raise UserError(f"{file} holds no step yet; try again when the run has done one")
        logs.append(log)
    return logs


def smooth(values: Iterable[float], s: float) -> list[float]:
    """Exponential mean with memory s, from 0 (none) to below 1; values that are not finite are
    passed over."""
    mean, weight, found = 0.0, 0.0, []
    for x in values:
        if math.isfinite(x):
            mean, weight = s * mean + (1 - s) * x, s * weight + (1 - s)
            found.append(mean / weight)
        else:
            found.append(math.nan)
    return found


def memory(log: Log) -> float:
    """Smoothing that suits a run's length: 0.9 from 100 steps on, none up to 10."""
    return max(0.0, min(0.9, 1 - 10 / max(log.steps, 1)))


def draw(logs: list[Log], names: list[str], smoothing: float | None, out: Path) -> None:
    """A panel each for loss (with validation), gradient norm and learning rate, written to out."""
    try:
        import matplotlib
    except ImportError:
        raise UserError("plot needs matplotlib: python -m pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 9), layout="constrained")
    panels = figure.subplots(len(PANELS), 1, sharex=True, height_ratios=(2, 1, 1))
    for i, (log, name) in enumerate(zip(logs, names, strict=True)):
        color = f"C{i % 10}"
        name = " " + name.replace("$", r"\$")  # not mathematics, and never a hidden label
        s = memory(log) if smoothing is None else smoothing
        for axes, (field, label) in zip(panels, PANELS, strict=True):
            x, y = log.step["step"], log.step[field]
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
            if field == "lr" or not s:
                axes.plot(x, y, color=color, linewidth=1.2, label=name)
            else:
                axes.plot(x, y, color=color, linewidth=0.6, alpha=0.3)
                axes.plot(x, smooth(y, s), color=color, linewidth=1.4, label=name)
        panels[0].plot(
            log.val["step"], log.val["loss"], color=color, marker="o", markersize=3,
            linestyle="--", linewidth=1, label=f"{name}, validation",
        )  # fmt: skip
    panels[0].legend(fontsize="small")
    panels[-1].set_xlabel("step")
    try:
        figure.savefig(out, dpi=120)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None


def summary(log: Log, name: str) -> dict[str, Any]:
    """The figures of one run; None where there are none."""
    losses, vals = log.step["loss"], log.val["loss"]
    rates = sorted(x for x in log.step["tokens_per_s"] if math.isfinite(x))
    best = min(range(len(vals)), key=lambda i: vals[i]) if len(vals) else None
    return {
        "run": name,
        "steps": int(log.step["step"][-1]) if log.steps else 0,
        "loss_first": losses[0] if log.steps else None,
        "loss_last": smooth(losses, memory(log))[-1] if log.steps else None,
        "val_last": vals[-1] if len(vals) else None,
        "val_best": None if best is None else vals[best],
        "val_best_step": None if best is None else int(log.val["step"][best]),
        "tokens_per_s": rates[len(rates) // 2] if rates else None,
        "not_finite": sum(not math.isfinite(x) for x in losses),
        "unfinished": log.unfinished,
    }


def sparkline(values: array, width: int = 40) -> str:
    """The shape of a curve in one line of text."""
    kept = [x for x in values if math.isfinite(x)]
    if not kept:
        return ""
    width = min(width, len(kept))
    parts = [kept[i * len(kept) // width : (i + 1) * len(kept) // width] for i in range(width)]
    means = [sum(p) / len(p) for p in parts]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0
    return "".join(BARS[round((m - low) * scale)] for m in means)


def run_names(paths: list[Path]) -> list[str]:
    """The last part of each path, or all of it where two are alike."""
    resolved = [p.resolve() for p in paths]
    named = [p.parent.name if p.name == "log.jsonl" else p.name for p in resolved]
    return [n if named.count(n) == 1 else str(p) for n, p in zip(named, paths, strict=True)]
