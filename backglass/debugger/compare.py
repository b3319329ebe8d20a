"""Two recordings of a step side by side: the first event whose results differ, all that do, and by
how much.

The same program on the same device gives the same bits, so any other bit is a divergence.  Two
devices, or two kernels, round differently: of those the size of the difference is told, and never
that they are equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from backglass.debugger.record import recordings
from backglass.debugger.trace import Event, NotStored, Trace, Version
from backglass.errors import UserError, wrong_use

BAND_NUMBERS = 1 << 22  # compared in one go
CHOICES = ("matmul", "rung")  # settings that choose among the kernels of an op


@dataclass(frozen=True)
class Difference:
    """One tensor in two recordings.  error: ‖a − b‖/‖a‖; largest: |a − b| with its place and both
    numbers; ulp: how many numbers of its dtype lie between a and b at most.  None where the values
    are not stored: then there are the norms.  ids: of the version in each recording."""

    tensor: str
    error: float | None
    largest: float | None
    at: tuple[int, ...] | None
    norms: tuple[float, float]
    ulp: int | None = None
    values: tuple[float, float] | None = None
    ids: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Met:
    """An event that both recordings have: k in the first, compared: its tensors, and those that
    differ."""

    k: int
    text: str
    where: str
    compared: int
    differences: list[Difference]


@dataclass(frozen=True)
class Comparison:
    """Of one step.  before: tensors that differ before it, and inputs; event: the first that makes
    a difference, None if there is none; compared: tensors until then; cut: how many events there
    are in both, if one was cut off.

    unlike: why bits cannot be the same (another device, other kernels), empty if they can; then
    all events are compared, and worst is the one with the largest error.  events: all that differ,
    if they were asked for."""

    step: int
    before: list[Difference]
    compared: int
    event: int | None
    text: str
    where: str
    differences: list[Difference]
    cut: int | None = None
    unlike: list[str] = field(default_factory=list)
    worst: Met | None = None
    events: list[Met] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """The same bits, by the same program: two programs are never equal."""
        return self.event is None and not self.before and not self.unlike

    @property
    def error(self) -> float:
        """The largest of an event; NaN if something is none, or if values are not stored."""
        return 0.0 if self.worst is None else largest_error(self.worst.differences)


def compare(a: Trace, b: Trace, whole: bool = False) -> Comparison:
    """whole: to the end, not to the first difference.  Raises UserError (wrong use) if they are
    not recordings of the same computation."""
    unlike, count = unlikeness(a, b), 0
    before = differing_before(a, b, bool(unlike))
    found: list[Met] = []
    for met in walk(a, b, bool(unlike)):
        count += met.compared
        if met.differences:
            found.append(met)
            if not (whole or unlike):
                break
    first = found[0] if found else Met(-1, "", "", 0, [])
    return Comparison(
        a.manifest["step"], before, count, first.k if found else None, first.text, first.where,
        first.differences, events_in_both(a, b), unlike, worst_of(found) if unlike else None,
        found if whole else [],
    )  # fmt: skip


def rows(a: Trace, b: Trace) -> Iterator[dict[str, Any]]:
    """The same for one who looks on: what can be said at once, then each event of a with what
    differs in it, at last a verdict."""
    unlike, count, differs = unlikeness(a, b), 0, 0
    before = differing_before(a, b, bool(unlike))
    yield {
        "unlike": unlike, "before": [asdict(d) for d in before], "total": a.count,
        "cut": events_in_both(a, b),
    }  # fmt: skip
    for met in walk(a, b, bool(unlike)):
        count += met.compared
        differs += bool(met.differences)
        yield {"k": met.k, "differences": [asdict(d) for d in met.differences]}
    yield {"compared": count, "differ": differs, "equal": not (unlike or before or differs)}


def unlikeness(a: Trace, b: Trace) -> list[str]:
    """Why the two were not computed by the same kernels on the same device, so that equal bits are
    not to be expected; empty: they were."""
    found = []
    for key in ("device", "dtype"):
        one, other = (str(t.manifest[key]) for t in (a, b))
        if one != other:
            found.append(f"{key}: {one} and {other}")
    one, other = (kernels(t) for t in (a, b))
    if not found and (ops := [op for op in one if op in other and one[op] != other[op]]):
        found.append(f"the kernels of {', '.join(ops[:4])}{' …' * (len(ops) > 4)}")
    if not found:  # one file may hold several ways to compute
        one, other = ({k: t.manifest["settings"].get(k) for k in CHOICES} for t in (a, b))
        found += [f"{k}: {one[k]} and {other[k]}" for k in CHOICES if one[k] != other[k]]
    return found


def kernels(t: Trace) -> dict[str, tuple[str, str]]:
    """Of each op the file of the function that ran, and the file's hash."""
    sources = t.manifest["sources"]
    return {e.op: (e.kernel, sources.get(e.kernel, "")) for e in t.events()}


def events_in_both(a: Trace, b: Trace) -> int | None:
    return None if a.complete and b.complete else min(a.count, b.count)


def differing_before(a: Trace, b: Trace, unlike: bool) -> list[Difference]:
    """Of parameters, moments and inputs."""
    ours, theirs = ({(v.tensor, v.number): v for v in t.given()} for t in (a, b))
    given = _matched(a, b, ours, theirs, unlike)
    return [difference(a, b, v, w) for v, w in given if v.hash != w.hash]


def walk(a: Trace, b: Trace, unlike: bool) -> Iterator[Met]:
    """Events of both, in order.  Those of two programs are matched by the tensors they make."""
    for x in a.events():
        ours = {(v.tensor, v.number): v for v in a.outs(x.k)}
        if unlike:
            theirs = {key: w for key in ours if (w := b.find(*key))}
        elif x.k >= b.count:
            break
        else:
            y = b.event(x.k)
            if x.text != y.text:
                raise _other(a, b, f"event {x.k} is {x.text} in one and {y.text} in the other")
            theirs = {(w.tensor, w.number): w for w in b.outs(x.k)}
        pairs = _matched(a, b, ours, theirs, unlike)
        found = [difference(a, b, v, w) for v, w in pairs if v.hash != w.hash]
        yield Met(x.k, x.text, _where(x), len(pairs), found)
    if not unlike and events_in_both(a, b) is None and a.count != b.count:
        raise _other(a, b, f"one has {a.count} events, the other {b.count}")


def _matched(
    a: Trace, b: Trace, ours: dict, theirs: dict, unlike: bool
) -> list[tuple[Version, Version]]:
    """Versions by the same key; of a recording that was cut off, or of two programs, those that
    both have."""
    for key, v in (ours | theirs).items():
        if key in ours and key in theirs:
            shapes = [f"{list(t[key].shape)} {t[key].dtype}" for t in (ours, theirs)]
            if shapes[0] != shapes[1] and not (unlike and ours[key].shape == theirs[key].shape):
                raise _other(a, b, f"{v.tensor} is {shapes[0]} in one and {shapes[1]} in the other")
        elif a.complete and b.complete and not unlike:
            raise _other(a, b, f"only one of them has {v.tensor} (version {v.number})")
    return [(v, theirs[key]) for key, v in ours.items() if key in theirs]


def _other(a: Trace, b: Trace, why: str) -> UserError:
    return wrong_use(f"{a.folder} and {b.folder} are not the same program: {why}")


def worst_of(found: list[Met]) -> Met | None:
    """With the largest error; one with NaN, or without values, is worse than any number."""
    rank = {id(m): largest_error(m.differences) for m in found}
    return max(found, key=lambda m: (np.isnan(rank[id(m)]), rank[id(m)]), default=None)


def largest_error(found: list[Difference]) -> float:
    errors = [np.nan if d.error is None else d.error for d in found]
    return float(np.max(errors)) if errors else 0.0


def difference(a: Trace, b: Trace, x: Version, y: Version) -> Difference:
    norms = (x.statistics["norm"], y.statistics["norm"])
    try:
        p, q = (t.values(v).reshape(-1) for t, v in ((a, x), (b, y)))
    except NotStored:
        return Difference(x.tensor, None, None, None, norms, ids=(x.id, y.id))
    sizes, gaps, largest, place, ulp = [], [], -1.0, None, None
    for start in range(0, p.size, BAND_NUMBERS):
        band = slice(start, start + BAND_NUMBERS)
        if p.dtype == q.dtype and p.dtype.kind not in "iu":
            ulp = max(ulp or 0, most_ulps(p[band], q[band]))
        with np.errstate(invalid="ignore", over="ignore"):  # ∞ − ∞ is not a number either
            one, other = p[band].astype(np.float64), q[band].astype(np.float64)
            gap = np.abs(one - other)
            sizes.append(float(np.linalg.norm(one)))
            gaps.append(float(np.linalg.norm(gap)))
        if not np.isnan(gap).all() and (top := float(np.nanmax(gap))) > largest:
            largest, place = top, start + int(np.nanargmax(gap))
    error = math.hypot(*gaps) / (math.hypot(*sizes) or 1.0)
    at = None if place is None else tuple(int(i) for i in np.unravel_index(place, x.shape))
    values = None if place is None else (float(p[place]), float(q[place]))
    return Difference(
        x.tensor, error, None if at is None else largest, at, norms, ulp, values, (x.id, y.id)
    )


def most_ulps(p: np.ndarray, q: np.ndarray) -> int:
    """The most numbers of their dtype between two finite ones; +0 and −0 are one number."""
    bits = np.dtype(f"i{p.dtype.itemsize}")
    lowest = np.iinfo(bits).min
    ranks = [np.ascontiguousarray(x).view(bits).astype(object if bits.itemsize > 4 else np.int64)
             for x in (p, q)]  # fmt: skip
    ranks = [np.where(r < 0, lowest - r, r) for r in ranks]  # in the order of the numbers
    finite = np.isfinite(p.astype(np.float64)) & np.isfinite(q.astype(np.float64))
    return int(np.max(np.abs(ranks[0] - ranks[1])[finite], initial=0))


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
