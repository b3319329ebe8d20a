"""fuse: replace a composition by the fused op that `equals` it.

There is no table of patterns: the `equals` text of a fused op is its documentation, its test oracle
and what is searched for.  Lines need not be adjacent; they move together when every line between
them commutes with them.  What the text says holds in real arithmetic, not bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from backglass.ops import signature, table
from backglass.program.record import Call, Program
from backglass.spec import Signature
from backglass.view import View


@dataclass(frozen=True)
class Line:
    """One line of an `equals` text: `dx+, dw+ = d_layernorm(dy, x, w)`."""

    op: str
    outs: tuple[str, ...]
    adds: tuple[bool, ...]
    ins: tuple[str, ...]


def fuse(program: Program, names: Iterable[str] | None = None) -> Program:
    """The program with copies shared and every match of the named fused ops (all of them)
    replaced."""
    program = share_copies(program)
    for name in fused_ops() if names is None else names:
        program = _rewrite(program, signature(name))
    return program


def fused_ops() -> list[str]:
    """Every fused op, the longest composition first."""
    found = [s for op in table().values() for s in op.signatures.values() if s.equals]
    return [s.call for s in sorted(found, key=lambda s: -len(parse(s.equals)))]


@cache
def parse(text: str) -> tuple[Line, ...]:
    """The lines of an `equals` text.  Raises ValueError for one that cannot be read."""
    lines = []
    for row in filter(None, map(str.strip, text.splitlines())):
        match = re.fullmatch(r"(.+?) = (\w+)\((.*)\)", row)
        if match is None:
            raise ValueError(f"cannot read the line {row!r} of an `equals` text")
        outs = [o.strip() for o in match[1].split(",")]
        names = tuple(o.rstrip("+") for o in outs)
        adds = tuple(o.endswith("+") for o in outs)
        lines.append(Line(match[2], names, adds, tuple(i.strip() for i in match[3].split(","))))
    return tuple(lines)


def share_copies(program: Program) -> Program:
    """d_add(da, db; dy) makes two copies.  db is only read, so dy can be read instead: the gradient
    of a branch *is* the gradient of the sum.  What is left is da = dy."""
    writers: dict[str, list[int]] = {}
    for i, c in enumerate(program):
        for v in c.written:
            writers.setdefault(v.name, []).append(i)
    rename: dict[str, View] = {}
    out = []
    for i, c in enumerate(program):
        ins = tuple(
            rename[v.name].reshape(*v.shape) if v is not None and v.name in rename else v
            for v in c.ins
        )
        c = replace(c, ins=ins)
        if c.op == "d_add" and (db := c.outs[1]) is not None and db.kind == "act" and not db.add:
            dy = c.ins[0]
            last = max((j for j, d in enumerate(program) if _reads(d, db.name)), default=i)
            untouched = not any(i < j <= last for j in writers.get(dy.name, ()))
            if len(writers[db.name]) == 1 and untouched:
                rename[db.name] = dy
                c = replace(c, outs=(c.outs[0], None))
        out.append(c)
    return Program(tuple(out))


def _rewrite(program: Program, sig: Signature) -> Program:
    calls: list[Call | None] = list(program.calls)
    first = parse(sig.equals)[0].op
    for i, c in enumerate(program.calls):
        if c.op == first and calls[i] is not None and (match := _match(calls, sig, i)):
            at, where, call = match
            for j in at:
                calls[j] = None
            calls[where] = call
    return Program(tuple(c for c in calls if c is not None))


def _match(calls: list, sig: Signature, i: int) -> tuple[list[int], int, Call] | None:
    """Bind the pattern from line i on: (matched lines, where the fused line goes, the line)."""
    lines, env, attrs, at = parse(sig.equals), {}, {}, []
    for n, line in enumerate(lines):
        for j in [i] if n == 0 else range(at[-1] + 1, len(calls)):
            linked = n == 0 or any(var in env for var in (*line.ins, *line.outs))
            if calls[j] is not None and linked and (bound := _unify(line, calls[j], env, attrs)):
                env, attrs = bound
                at.append(j)
                break
        else:
            return None
    call = _fused_call(calls, sig, lines, env, attrs, at)
    where = _meeting_point(calls, at) if call else None
    return None if call is None or where is None else (at, where, call)


def _unify(line: Line, c: Call, env: dict, attrs: dict) -> tuple[dict, dict] | None:
    """env and attrs extended so that the pattern line is the call; None if it is not."""
    if c.op != line.op or any(attrs.get(k, v) != v for k, v in c.attrs.items()):
        return None
    outs, ins = _given(c.outs, line.outs), _given(c.ins, line.ins)
    if outs is None or ins is None:
        return None
    env = dict(env)
    for var, v in zip((*line.outs, *line.ins), (*outs, *ins), strict=True):
        if env.setdefault(var, replace(v, add=False)).name != v.name:
            return None
    if any(add and not v.add for add, v in zip(line.adds, outs, strict=True)):
        return None
    return env, attrs | c.attrs


def _given(operands: tuple, names: tuple[str, ...]) -> tuple[View, ...] | None:
    """The call's operands if exactly those the pattern names are present (absent ones come
    last)."""
    head, tail = operands[: len(names)], operands[len(names) :]
    return head if None not in head and not any(tail) and len(head) == len(names) else None


def _fused_call(
    calls: list, sig: Signature, lines: tuple[Line, ...], env: dict, attrs: dict, at: list[int]
) -> Call | None:
    """The fused line, or None if the match would change what others see."""
    first: dict[str, View] = {}
    for line, j in zip(lines, at, strict=True):
        for var, v in zip(line.outs, calls[j].outs, strict=False):
            first.setdefault(var, v)
    outer = {o.name for o in sig.outs}
    for var, v in first.items():
        hidden = var not in outer
        if hidden and (v.add or v.kind != "act" or _read_elsewhere(calls, v.name, at)):
            return None
    outs = tuple(+env[o.name] if first[o.name].add else env[o.name] for o in sig.outs)
    if any(v.add and not o.add for o, v in zip(sig.outs, outs, strict=True)):
        return None
    ins = tuple(env[o.name] for o in sig.passed_ins)
    written = {v.name for v in first.values()}
    if len(written) < len(first) or written & {v.name for v in ins}:
        return None  # one name plays two parts: legal line by line, not in one kernel
    kept = {k: attrs.get(k, v) for k, v in sig.attrs.items()}
    head = calls[at[0]]
    return Call(sig.call, outs, ins, kept, head.phase, " ".join(calls[j].where for j in at))


def _read_elsewhere(calls: list, name: str, at: list[int]) -> bool:
    """Is this life of `name` read by a line outside the match?"""
    for j in range(at[0] + 1, len(calls)):
        if calls[j] is None or j in at:
            continue
        if _reads(calls[j], name):
            return True
        if any(v.name == name for v in calls[j].written):
            return False
    return False


def _meeting_point(calls: list, at: list[int]) -> int | None:
    """The line of the match that all others can move to without crossing one they conflict with."""
    for goal in (at[-1], at[0], *at[1:-1]):
        crossed = (
            (calls[j], calls[k])
            for j in at
            for k in range(min(j, goal) + 1, max(j, goal))
            if k not in at and calls[k] is not None
        )
        if all(commute(a, b) for a, b in crossed):
            return goal
    return None


def commute(a: Call, b: Call) -> bool:
    """Whether two lines may change places: neither writes what the other reads or writes."""
    return not (_clash(a.written, (*b.read, *b.written)) or _clash(b.written, a.read))


def _clash(xs: tuple[View, ...], ys: tuple[View, ...]) -> bool:
    """A common tensor, a group standing for all of its members."""
    names = {v.name for v in xs} & {v.name for v in ys}
    groups_x = {v.group for v in xs if v.name == v.group} - {""}
    groups_y = {v.group for v in ys if v.name == v.group} - {""}
    return bool(names or groups_x & {v.group for v in ys} or groups_y & {v.group for v in xs})


def _reads(c: Call, name: str) -> bool:
    return any(v.name == name for v in c.read)
