"""Two recordings of a step side by side: the first event whose results differ, and by how much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backglass.debugger.record import recordings
from backglass.debugger.trace import Event, NotStored, Trace, Version
from backglass.errors import UserError, wrong_use


@dataclass(frozen=True)
class Difference:
    """One tensor in two recordings.  error: ‖a − b‖/‖a‖, and the largest |a − b| with its place,
    where both values are stored; else what their statistics say."""

    tensor: str
    error: float | None
    largest: float | None
    at: tuple[int, ...] | None
    norms: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Of one step.  before: tensors that differ before it, and inputs; event: the first that makes
    a difference, None if there is none; compared: tensors until then; cut: how many events there
    are in both, if one was cut off."""

    step: int
    before: list[Difference]
    compared: int
    event: int | None
    text: str
    where: str
    differences: list[Difference]
    cut: int | None = None

    @property
    def equal(self) -> bool:
        return self.event is None and not self.before


def compare(a: Trace, b: Trace) -> Comparison:
    """Raises UserError (wrong use) if they are not recordings of the same program."""
    step, count = a.manifest["step"], 0
    cut = None if a.complete and b.complete else min(a.count, b.count)
    given = _matched(a, b, *({(v.tensor, v.number): v for v in t.given()} for t in (a, b)))
    early = [difference(a, b, v, w) for v, w in given if v.hash != w.hash]
    for x, y in zip(a.events(), b.events(), strict=False):
        if x.text != y.text:
            raise _other(a, b, f"event {x.k} is {x.text} in one and {y.text} in the other")
        pairs = _matched(a, b, *({v.tensor: v for v in t.outs(x.k)} for t in (a, b)))
        count += len(pairs)
        if different := [(v, w) for v, w in pairs if v.hash != w.hash]:
            differences = [difference(a, b, v, w) for v, w in different]
            return Comparison(step, early, count, x.k, x.text, _where(x), differences, cut)
    if cut is None and a.count != b.count:
        raise _other(a, b, f"one has {a.count} events, the other {b.count}")
    return Comparison(step, early, count, None, "", "", [], cut)


def _matched(a: Trace, b: Trace, ours: dict, theirs: dict) -> list[tuple[Version, Version]]:
    """Versions by the same key; of a recording that was cut off, those that it has."""
    for key, v in (ours | theirs).items():
        if key in ours and key in theirs:
            shapes = [f"{list(t[key].shape)} {t[key].dtype}" for t in (ours, theirs)]
            if shapes[0] != shapes[1]:
                raise _other(a, b, f"{v.tensor} is {shapes[0]} in one and {shapes[1]} in the other")
        elif a.complete and b.complete:
            raise _other(a, b, f"only one of them has {v.tensor} (version {v.number})")
    return [(v, theirs[key]) for key, v in ours.items() if key in theirs]


def _other(a: Trace, b: Trace, why: str) -> UserError:
    return wrong_use(f"{a.folder} and {b.folder} are not the same program: {why}")


def difference(a: Trace, b: Trace, x: Version, y: Version) -> Difference:
    norms = (x.statistics["norm"], y.statistics["norm"])
    try:
        p, q = (t.values(v).astype(np.float64) for t, v in ((a, x), (b, y)))
    except NotStored:
        return Difference(x.tensor, None, None, None, norms)
    with np.errstate(invalid="ignore", over="ignore"):  # ∞ − ∞ is not a number either
        gap = np.abs(p - q)
        error = float(np.linalg.norm(gap)) / (float(np.linalg.norm(p)) or 1.0)
    at = np.unravel_index(int(np.nanargmax(gap)), gap.shape) if not np.isnan(gap).all() else None
    return Difference(
        x.tensor, error,
        None if at is None else float(gap[at]),
        None if at is None else tuple(int(i) for i in at), norms,
    )  # fmt: skip


def _where(e: Event) -> str:
    return f"{e.model}, {e.kernel}:{e.first_line}"


def pairs_of(a: Path, b: Path) -> list[tuple[Path, Path]]:
    """Two recordings, or the recordings of the same steps in two runs, in order of steps."""
    if is_recording(a) and is_recording(b):
        return [(a, b)]
    for path in (a, b):
        if not path.is_dir():
            raise wrong_use(f"there is no run or recording {path}")
    ours, theirs = _by_step(a), _by_step(b)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise wrong_use(
            f"{a} and {b} have no recording of the same step (steps {_named(ours)} and "
            f"{_named(theirs)}). `backglass trace RUN --step N` makes one, in both runs"
        )
    return [(ours[n], theirs[n]) for n in common]


def is_recording(path: Path) -> bool:
    return (path / "manifest.json").is_file()


def _by_step(path: Path) -> dict[int, Path]:
    if not is_recording(path):
        return recordings(path)
    with Trace(path) as trace:
        return {trace.manifest["step"]: path}


def _named(steps: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(steps))) or "none"
