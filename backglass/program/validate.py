"""validate: facts that must hold for a program.  Each check raises ValueError with the offending
line.

mirror compares the hand-written backward with what the forward implies, argument by argument and
mark by mark.  The backward could be derived from the forward like this in a dozen lines; here the
derivation only checks the text people read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backglass.ops import table
from backglass.program.record import Call, Program
from backglass.view import View, gradient_name


def validate(program: Program) -> None:
    """Every check that holds for any program, transformed or not."""
    shapes(program)
    writes(program)


def shapes(program: Program) -> None:
    """Every call fits its spec, and a name always has one dtype, size and kind."""
    seen: dict[str, View] = {}
    for i, c in enumerate(program):
        _ = c.sizes
        for v in (*c.written, *c.read):
            first = seen.setdefault(v.name, v)
            if (v.dtype, v.size, v.kind) != (first.dtype, first.size, first.kind):
                _fail(i, c, f"{v!r} was {first!r} before; a name is one tensor")


def writes(program: Program) -> None:
    """Activations are written before they are read; '+' goes onto something written; no tensor is
    twice an output, or both output and input, of one call."""
    written: set[str] = set()
    for i, c in enumerate(program):
        outs = [v.name for v in c.written]
        if len(set(outs)) < len(outs) or set(outs) & {v.name for v in c.ins if v}:
            _fail(i, c, "a tensor appears twice: aliasing is the planner's job, not the model's")
        groups = {v.group for v in c.written if v.name == v.group}
        if groups & {v.group for v in c.ins if v and v.group}:
            _fail(i, c, "a group is written while one of its members is read")
        for v in c.read:
            if v.kind == "act" and v.name not in written:
                _fail(i, c, f"{v.name} is read before it is written")
        for o, v in zip(c.signature.outs, c.outs, strict=True):
            if v is not None and v.add and not o.add:
                _fail(i, c, f"{c.op} cannot accumulate into {o.name}")
            if v is not None and v.kind in ("param", "input") and c.phase != "update":
                _fail(
                    i, c, f"{v.name} is {v.kind}: only the update writes parameters, nobody inputs"
                )
        written.update(outs)


def mirror(program: Program) -> None:
    """The backward is the forward read backwards.

    For each forward line the backward has one group of lines, in reverse order: all backward calls
    of that op, in the spec's order, each given, under every name of the forward's signature, the
    forward's own view, and under d+name its gradient.  A tensor used k times gets its gradient by
    one '=' and k−1 '+'; parameters always by '+'.
    """
    started: set[str] = set()
    for f, group in mirrored(program):
        for b in group:
            _mirror_line(program[f], program[b], started)


def mirrored(program: Program) -> Iterator[tuple[int, list[int]]]:
    """(forward line, the backward lines in its place), from the last forward line to the first."""
    forward, backward = (
        [i for i, c in enumerate(program) if c.phase == phase] for phase in ("forward", "backward")
    )
    at = 0
    for i in reversed(forward):
        f = program[i]
        calls = list(table()[f.signature.op].spec.backward)
        group = backward[at : at + len(calls)]
        if sorted(program[b].op for b in group) != sorted(calls):
            found = program[group[0]] if group else "the end of the backward"
            raise ValueError(
                f"{f.where}: {f}\n    needs {' and '.join(calls)} in the backward, in this place, "
                f"found {found}"
            )
        at += len(calls)
        yield i, group
    if at < len(backward):
        b = program[backward[at]]
        raise ValueError(f"{b.where}: {b}\n    mirrors no forward line")


def twins(program: Program) -> list[int | None]:
    """For each line the one that it undoes, or the first that undoes it; None in the update, or
    where there is no backward."""
    found: list[int | None] = [None] * len(program)
    if any(c.phase == "backward" for c in program):
        for f, group in mirrored(program):
            found[f] = group[0] if group else None
            for b in group:
                found[b] = f
    return found


def _mirror_line(f: Call, b: Call, started: set[str]) -> None:
    sig = f.signature
    env = dict(zip((o.name for o in sig.passed), (*f.outs, *f.ins), strict=True))
    if any(b.attrs[k] != v for k, v in f.attrs.items() if k in b.attrs):
        raise ValueError(f"{b.where}: {b}\n    has attrs {b.attrs}, its forward has {f.attrs}")
    for operand, view in zip(b.signature.passed, (*b.outs, *b.ins), strict=True):
        twin = env[operand.name] if operand.name in env else env[operand.name.removeprefix("d")]
        want = twin and (twin.name if operand.name in env else gradient_name(twin.name))
        if want != (view and view.name):
            raise ValueError(
                f"{b.where}: {b}\n    {operand.name} should be {want}, found {view and view.name} "
                f"(mirror of {f.where}: {f})"
            )
    for view in b.written:
        if view.add != (view.kind == "grad" or view.name in started):
            verb = "overwritten (no +)" if view.add else "accumulated into (+)"
            raise ValueError(f"{b.where}: {b}\n    {view.name} should be {verb} here")
        started.add(view.name)


def _fail(i: int, c: Call, why: str) -> None:
    raise ValueError(f"line {i}, {c.where}: {c}\n    {why}")


def unread(program: Program, outputs: Sequence[str] = ()) -> list[str]:
    """Activations written and never read: harmless, but usually a forgotten line."""
    read = {v.name for c in program for v in c.read}
    made = {v.name for c in program for v in c.written if v.kind == "act"}
    return sorted(made - read - set(outputs))
