"""The gradient bench: an event's op with the numbers it was recorded on, ready to be checked.

A check works on the *forward* line of an op and the backward lines that undo it.  For an event of
the forward pass those are all its backward lines, for a backward event only its own results count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from backglass import models
from backglass.checks.samples import Sample
from backglass.debugger.bench_values import Values, exact
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.ops import Op, signature, table
from backglass.spec import Operand, Signature

MOST_BACKWARD = 16  # lines that undo one line

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """event: the one that is looked at; forward: the line that computes what is differentiated,
    None if nothing is; backward: the lines that undo it."""

    reading: Reading
    event: Row
    forward: Row | None
    backward: list[Row]
    op: Op

    @property
    def signature(self) -> Signature:
        return self.op.signatures[self.event["op"]]


def bench_of(reading: Reading, k: int) -> Bench:
    """Raises Problem if there is no such event, or its op is none of this backglass's."""
    e = reading.event(k)
    try:
        op = table()[signature(e["op"]).op]
    except AttributeError:
        raise Problem(
            404, f"{e['op']} is no op of this backglass: one of a user's, or of another version's. "
            "The recording can be looked at, but not checked here.",
        ) from None  # fmt: skip
    forward = e if e["op"] == op.name else None
    if e["op"] in op.spec.backward and e["twin"] is not None:
        forward = reading.event(e["twin"])
    if not op.spec.backward or forward is None or forward["op"] != op.name:
        return Bench(reading, e, None, [], op)
    return Bench(reading, e, forward, [*undoing(reading, forward["k"], op)], op)


def undoing(reading: Reading, k: int, op: Op) -> list[Row]:
    """The backward lines of a forward line."""
    with reading.asking() as db:
        rows = db.execute(
            "select k from events where twin = ? and k > ? order by k limit ?",
            (k, k, MOST_BACKWARD),
        ).fetchall()
    found = [reading.event(other) for (other,) in rows]
    return [e for e in found if e["op"] in op.spec.backward]


# ------------------------------------------------------------------ what there is to check


def plan(b: Bench, tensor: str | None) -> Row:
    """Rows of both checks before anything is computed, and where g comes from; of AdamW's hundreds
    of outputs those of parameter `tensor`."""
    m, names = b.reading.manifest, parameters(b)
    b = of_parameter(b, tensor)
    return {
        "k": b.event["k"], "op": b.event["op"], "phase": b.event["phase"],
        "forward": b.forward and b.forward["k"], "device": m["device"], "dtype": m["dtype"],
        "maths": gradients(b), "upstream": upstream(b), "parameters": names,
        "kernel": [shown(o) for o in b.event["outs"]],
        "stored": all(v["stored"] for v in (*given(b), *own(b))),
    }  # fmt: skip


def gradients(b: Bench) -> list[Row]:
    """A row for each gradient that the event is about: of the forward's input `of`, and the version
    that the recorded backward made of it."""
    if b.forward is None:
        return []
    made = {o["name"]: o for e in b.backward for o in e["outs"]}
    results = {o["name"] for o in b.event["outs"]}
    rows = []
    for o in differentiable(b):
        x, recorded = by_name(b.forward["ins"]).get(o.name), made.get(f"d{o.name}")
        if x and (b.event is b.forward or f"d{o.name}" in results):
            row = {"name": f"d{o.name}", "of": o.name, "x": shown(x)}
            rows.append(row | {"recorded": recorded and shown(recorded)})
    return rows


def differentiable(b: Bench) -> list[Operand]:
    """Inputs of the op that are no integers."""
    return [o for o in b.op.signatures[b.op.name].ins if o.holds != "int"]


def upstream(b: Bench) -> list[Row]:
    """For each output that is differentiated its recorded gradient, or None: it will be random.  A
    gradient of nothing but zeros would let anything pass, so it counts as none."""
    if b.forward is None:
        return []
    read = by_name([o for e in b.backward for o in e["ins"]])
    rows = []
    for o in b.op.signatures[b.op.name].outs:
        if not o.saved:
            recorded = read.get(f"d{o.name}")
            zero = bool(recorded) and recorded["version"]["statistics"]["norm"] == 0
            why = "is zero" if zero else "" if recorded else "was not recorded"
            row = {"name": f"d{o.name}", "why_random": why}
            rows.append(row | {"recorded": None if why or not recorded else shown(recorded)})
    return rows


def given(b: Bench) -> list[Row]:
    """The versions that the check of the maths reads: the forward's inputs, and g."""
    wanted = {row["recorded"]["version"] for row in upstream(b) if row["recorded"]}
    above = [o for e in b.backward for o in e["ins"] if o["version"]["id"] in wanted]
    return [o["version"] for o in (*(b.forward["ins"] if b.forward else []), *above)]


def own(b: Bench) -> list[Row]:
    """The versions that the event itself read and made."""
    return [o["version"] for o in (*b.event["ins"], *b.event["outs"])]


def parameters(b: Bench) -> list[str]:
    """What AdamW moves: every parameter, in one line."""
    outs = b.event["outs"] if b.op.name == "adamw" else []
    return [o["version"]["tensor"] for o in outs if o["name"] == "p"]


def of_parameter(b: Bench, tensor: str | None) -> Bench:
    """AdamW as a line that moves this parameter alone (None: the first); any other event as it is.

    Its flat buffers have a member for each parameter, in the same order in all of them.
    """
    names = parameters(b)
    if b.op.name != "adamw":
        return b
    if tensor not in (None, *names):
        raise Problem(404, f"event {b.event['k']} moves no parameter called {tensor!r}")
    place, e = names.index(tensor) if tensor else 0, dict(b.event)
    for role in ("ins", "outs"):
        members = {o["name"]: [x for x in e[role] if x["name"] == o["name"]] for o in e[role]}
        if any(len(found) not in (1, len(names)) for found in members.values()):
            raise Problem(422, f"event {e['k']} has not the same parameters in all its buffers")
        e[role] = [found[place if len(found) > 1 else 0] for found in members.values()]
    size = math.prod(e["outs"][0]["version"]["shape"])
    e["attrs"] = {"decay_size": size if decays(names[place], b.reading.model) else 0}
    return replace(b, event=e)


def decays(tensor: str, model: str) -> bool:
    """Whether a parameter has weight decay."""
    params = models.get(model).PARAMS
    return any(p.decay for p in params if p.name == tensor.rpartition(".")[2])


def shown(o: Row) -> Row:
    v = o["version"]
    return {
        "name": o["name"], "adds": o["adds"], "dims": o["dims"], "version": v["id"],
        "tensor": v["tensor"], "number": v["number"], "shape": v["shape"], "dtype": v["dtype"],
    }  # fmt: skip


def by_name(operands: list[Row]) -> dict[str, Row]:
    return {o["name"]: o for o in reversed(operands)}


# ------------------------------------------------------------------ as the checks want them


def forward_sample(b: Bench, values: Values) -> Sample:
    """The forward's inputs in float64, in exactly the spec's shapes."""
    assert b.forward is not None
    return sample_of(b.op, b.op.signatures[b.op.name], b.forward, values)


def sample_of(op: Op, sig: Signature, event: Row, values: Values) -> Sample:
    """What a recorded line was given, in exactly the spec's shapes.  An operand that the line has
    not is None; several under one name are the parts of a flat buffer."""
    parts = {o.name: [r for r in event["ins"] if r["name"] == o.name] for o in sig.passed}
    made = {o.name: [r for r in event["outs"] if r["name"] == o.name] for o in sig.outs}
    shapes = [shape_of(parts[o.name] or made.get(o.name, [])) for o in sig.passed]
    try:
        sizes = sig.bind(tuple(shapes))
    except (ValueError, KeyError) as error:
        raise Problem(422, f"event {event['k']} cannot have been recorded so: {error}") from None
    given: dict[str, Any] = {}
    for o in sig.passed:
        found = [values[r["version"]["id"]] for r in parts[o.name]]
        whole = [np.concatenate([x.ravel() for x in found])] if len(found) > 1 else found
        given[o.name] = exact(whole[0]).reshape(o.shape(sizes)) if whole else None
    return Sample(op, sizes, event["attrs"], given)


def shape_of(rows: list[Row]) -> tuple[int, ...] | None:
    """Of an operand, or of the flat buffer that several make."""
    if len(rows) < 2:
        return tuple(rows[0]["version"]["shape"]) if rows else None
    return (sum(math.prod(r["version"]["shape"]) for r in rows),)
