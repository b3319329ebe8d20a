"""plan: a place in one arena for every activation, before anything is allocated.

A *life* is one value of a tensor: from an '=' write to its last read or '+'.  A name written twice
(recomputed activations) has two lives, perhaps in two places.  Lives that an op's `inplace` joins
share a slot: y may be written over x if x dies on that line.  Slots are placed largest first, each
into the tightest gap among those alive at the same time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from backglass.program.record import Call, Program
from backglass.view import DTYPES, View

ALIGN_BYTES = 256
ARENA = "arena"


@dataclass
class Life:
    """One value of a tensor and the lines it spans, both ends included."""

    name: str
    nbytes: int
    start: int
    end: int
    slot: int = -1


@dataclass
class Plan:
    """Where every life lies.  peak: bytes of the arena; bound: the largest sum of live bytes, which
    no placement can beat, reached at bound_line."""

    program: Program
    lives: list[Life] = field(default_factory=list)
    life_of: list[dict[str, int]] = field(default_factory=list)  # per line: name -> life read
    made_on: list[dict[str, int]] = field(default_factory=list)  # per line: name -> life written
    scratch: dict[int, int] = field(default_factory=dict)  # line -> life of its workspace
    offsets: list[int] = field(default_factory=list)  # per slot, bytes
    sizes: list[int] = field(default_factory=list)  # per slot, bytes
    peak: int = 0
    bound: int = 0
    bound_line: int = 0

    def span(self, life: int) -> tuple[int, int]:
        """(first byte, one past the last) of a life."""
        at = self.offsets[self.lives[life].slot]
        return at, at + self.lives[life].nbytes

    def placed(self) -> Program:
        """The program with every activation's view pointing into the group `arena`."""
        calls = []
        for i, c in enumerate(self.program):
            ins = tuple(v and self._place(v, self.life_of[i]) for v in c.ins)
            outs = tuple(v and self._place(v, self.made_on[i]) for v in c.outs)
            calls.append(replace(c, ins=ins, outs=outs))
        return Program(tuple(calls))

    def _place(self, v: View, lives: dict[str, int]) -> View:
        if v.kind != "act":
            return v
        offset = self.span(lives[v.name])[0] // DTYPES[v.dtype].itemsize
        return replace(v, group=ARENA, offset=offset)

    def live_at(self, line: int) -> list[Life]:
        """Lives that occupy memory of their own on a line, largest first."""
        found: dict[int, Life] = {}
        for life in self.lives:
            if life.start <= line <= life.end:
                found[life.slot] = life
        return sorted(found.values(), key=lambda life: -life.nbytes)


def plan(
    program: Program, workspace: Callable[[Call], int] = lambda c: 0, inplace: bool = True
) -> Plan:
    """Plan a program.  workspace: bytes of scratch a call's kernel needs while it runs."""
    p = liveness(program, workspace)
    for k, life in enumerate(p.lives):
        life.slot = k
    if inplace:
        _join(p)
    _place_slots(p)
    return p


def liveness(program: Program, workspace: Callable[[Call], int]) -> Plan:
    p, current = Plan(program), {}
    for i, c in enumerate(program):
        p.life_of.append({v.name: current[v.name] for v in c.read if v.kind == "act"})
        for k in p.life_of[-1].values():
            p.lives[k].end = i
        made = {}
        for v in c.written:
            if v.kind != "act":
                continue
            if not (v.add or v.name in p.life_of[-1]):
                current[v.name] = len(p.lives)
                p.lives.append(Life(v.name, _round(v.nbytes), i, i))
            made[v.name] = current[v.name]
        p.made_on.append(made)
        if scratch := workspace(c):
            p.scratch[i] = len(p.lives)
            p.lives.append(Life(f"workspace of {c.op}", _round(scratch), i, i))
    return p


def _join(p: Plan) -> None:
    """`y:x` in a spec, x dies here, y is born here, same size: one slot."""
    for i, c in enumerate(p.program):
        outs = dict(zip((o.name for o in c.signature.outs), c.outs, strict=True))
        ins = dict(zip((o.name for o in c.signature.passed_ins), c.ins, strict=True))
        taken: set[int] = set()
        for y, x in c.signature.inplace:
            yv, xv = outs.get(y), ins.get(x)
            if yv is None or xv is None or yv.add or {yv.kind, xv.kind} != {"act"}:
                continue
            if sum(v is not None and v.name == xv.name for v in c.ins) > 1:
                continue
            born, dying = p.made_on[i][yv.name], p.life_of[i][xv.name]
            a, b = p.lives[dying], p.lives[born]
            if a.end == i and b.start == i and a.nbytes == b.nbytes and dying not in taken:
                if b.slot == born:  # not joined by another pair of this line
                    taken.add(dying)
                    b.slot = a.slot


def _place_slots(p: Plan) -> None:
    """Greedy by size; then the lower bound that shows how good it is."""
    boxes: dict[int, tuple[int, int, int]] = {}
    for life in p.lives:
        size, start, end = boxes.get(life.slot, (0, life.start, life.end))
        boxes[life.slot] = max(size, life.nbytes), min(start, life.start), max(end, life.end)
    p.offsets, p.sizes = [0] * len(p.lives), [0] * len(p.lives)
    placed: list[tuple[int, int, int, int]] = []  # (offset, end offset, start, end), by offset
    for slot, (size, start, end) in sorted(boxes.items(), key=lambda b: (-b[1][0], b[1][1])):
        at, tightest, top = None, 0, 0
        for low, high, first, last in placed:
            if first <= end and start <= last:
                if low - top >= size and (at is None or low - top < tightest):
                    at, tightest = top, low - top
                top = max(top, high)
        at = top if at is None else at
        p.offsets[slot], p.sizes[slot] = at, size
        p.peak = max(p.peak, at + size)
        placed.append((at, at + size, start, end))
        placed.sort()
    for line in range(len(p.program)):
        live = sum(size for size, start, end in boxes.values() if start <= line <= end)
        if live > p.bound:
            p.bound, p.bound_line = live, line


def check(p: Plan) -> None:
    """Replay the program on byte ranges: nothing is read after its memory was reused.

    Raises ValueError naming the line.  An output may lie over an input of its own line only where
    the spec's `inplace` says so.
    """
    inside: dict[tuple[int, int], int] = {}  # (first, last + 1) -> life
    for i, c in enumerate(p.program):
        for name, k in p.life_of[i].items():
            if inside.get(p.span(k)) != k:
                raise ValueError(f"line {i}: {c}\n    {name} was overwritten before this read")
        allowed = _allowed(p, i, c)
        born = [k for k in p.made_on[i].values() if p.lives[k].start == i]
        if i in p.scratch:
            born.append(p.scratch[i])
        reads = set(p.life_of[i].values())
        for k in born:
            low, high = p.span(k)
            for span in [s for s in inside if s[0] < high and low < s[1]]:
                other = inside[span]
                if (other in reads or other in born) and (k, other) not in allowed:
                    raise ValueError(
                        f"line {i}: {c}\n    {p.lives[k].name} lies over {p.lives[other].name}, "
                        f"which this line uses"
                    )
                del inside[span]
            inside[low, high] = k


def _allowed(p: Plan, i: int, c: Call) -> set[tuple[int, int]]:
    outs = dict(zip((o.name for o in c.signature.outs), c.outs, strict=True))
    ins = dict(zip((o.name for o in c.signature.passed_ins), c.ins, strict=True))
    pairs = [(outs.get(y), ins.get(x)) for y, x in c.signature.inplace]
    return {
        (p.made_on[i][y.name], p.life_of[i][x.name])
        for y, x in pairs
        if y is not None and x is not None and {y.kind, x.kind} == {"act"}
    }


def _round(n: int) -> int:
    return -(-n // ALIGN_BYTES) * ALIGN_BYTES
