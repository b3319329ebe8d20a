"""Two recordings of a step side by side: the first event whose results differ, and by how much."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backglass.debugger.record import recordings
from backglass.debugger.trace import Event, NotStored, Trace, Version
from backglass.errors import wrong_use


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
    """Of one step.  before: tensors that differ before it; event: the first that makes a
    difference, None if there is none; compared: tensors until then."""

    step: int
    before: list[Difference]
    compared: int
    event: int | None
    text: str
    where: str
    differences: list[Difference]

    @property
    def equal(self) -> bool:
        return self.event is None and not self.before


def compare(a: Trace, b: Trace) -> Comparison:
    """Raises UserError (wrong use) if they are not recordings of the same program."""
    step, count = a.manifest["step"], 0
    early = [difference(a, b, v, w) for v, w in before(a, b) if v.hash != w.hash]
    for x, y in zip(a.events(), b.events(), strict=False):
        if x.text != y.text:
            raise wrong_use(
                f"{a.folder} and {b.folder} are not the same program: event {x.k} is {x.text} in "
                f"one and {y.text} in the other"
            )
        pairs = list(zip(a.outs(x.k), b.outs(x.k), strict=True))
        count += len(pairs)
        if different := [(v, w) for v, w in pairs if v.hash != w.hash]:
            differences = [difference(a, b, v, w) for v, w in different]
            return Comparison(step, early, count, x.k, x.text, _where(x), differences)
    return Comparison(step, early, count, None, "", "", [])


def before(a: Trace, b: Trace) -> list[tuple[Version, Version]]:
    """Versions that no event made, by name and number."""
    ours, theirs = ({(v.tensor, v.number): v for v in t.given()} for t in (a, b))
    return [(ours[key], theirs[key]) for key in ours if key in theirs]


def difference(a: Trace, b: Trace, x: Version, y: Version) -> Difference:
    norms = (x.statistics["norm"], y.statistics["norm"])
    try:
        p, q = (t.values(v).astype(np.float64) for t, v in ((a, x), (b, y)))
    except NotStored:
        return Difference(x.tensor, None, None, None, norms)
    gap = np.abs(p - q)
    at = np.unravel_index(int(np.nanargmax(gap)), gap.shape) if not np.isnan(gap).all() else None
    size = float(np.linalg.norm(p)) or 1.0
    return Difference(
        x.tensor, float(np.linalg.norm(p - q)) / size,
        None if at is None else float(gap[at]),
        None if at is None else tuple(int(i) for i in at), norms,
    )  # fmt: skip


def _where(e: Event) -> str:
    return f"{e.model}, {e.kernel}:{e.first_line}"


def pairs_of(a: Path, b: Path) -> list[tuple[Trace, Trace]]:
    """Two recordings, or the recordings of the same steps in two runs, in order of steps."""
    if all((path / "manifest.json").is_file() for path in (a, b)):
        return [(Trace(a), Trace(b))]
    for path in (a, b):
        if not path.is_dir():
            raise wrong_use(f"there is no run or recording {path}")
    common = sorted(recordings(a).keys() & recordings(b).keys())
    if not common:
        raise wrong_use(
            f"{a} and {b} have no recording of the same step (steps {steps(a)} and {steps(b)}). "
            f"`backglass trace RUN --step N` makes one, in both runs"
        )
    return [(Trace(recordings(a)[n]), Trace(recordings(b)[n])) for n in common]


def steps(run: Path) -> str:
    return ", ".join(map(str, sorted(recordings(run)))) or "none"
