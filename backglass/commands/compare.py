"""backglass compare"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from backglass.debugger.compare import Comparison, Difference

SHOWN = 8  # of the tensors that differ; --json has them all


@dataclass
class Compare:
    """Find the first op at which two runs, or two recordings of a step, differ, and by how much.

    For example:
      backglass compare runs/a runs/b                  the steps recorded in both, in order
      backglass compare runs/a/trace/step-00000003 runs/b/trace/step-00000003

    Exit code 1 if they differ. `backglass trace RUN --step N --level 3` records a step.
    """

    a: Annotated[Positional[Path], arg(help="a run or a recording", metavar="A")]
    b: Annotated[Positional[Path], arg(help="another", metavar="B")]
    json: Annotated[bool, arg(help="as JSON")] = False

    def run(self) -> int:
        from backglass.debugger.compare import compare, pairs_of
        from backglass.debugger.trace import Trace

        found = []
        for a, b in pairs_of(self.a, self.b):
            with Trace(a) as ours, Trace(b) as theirs:
                found.append(compare(ours, theirs))
            if not self.json:
                print(sentence(found[-1]))
            if not found[-1].equal:
                break
        if self.json:
            print(json.dumps([asdict(c) for c in found]))
        return int(not found[-1].equal)


def sentence(c: Comparison) -> str:
    if c.equal:
        cut = "" if c.cut is None else f" in the {c.cut} events that both recordings have"
        return f"step {c.step}: no divergence{cut}, {c.compared:,} tensors have the same bits"
    said = [f"step {c.step}:"]
    if c.before:
        said += ["  different before the step, or given to it", *some(c.before)]
    if c.event is not None:
        said += [f"  first divergence at event {c.event}: {c.text}", f"    {c.where}"]
        said += some(c.differences)
    return "\n".join(said)


def some(found: list[Difference]) -> list[str]:
    more = len(found) - SHOWN
    return [*map(line, found[:SHOWN]), *[f"    and {more} more"] * (more > 0)]


def line(d: Difference) -> str:
    if d.error is None:
        a, b = d.norms
        return f"    {d.tensor}: norm {a:.9g} and {b:.9g} (values: record with --level 3)"
    where = "" if d.at is None else f"; most at {list(d.at)}, by {d.largest:.3g}"
    return f"    {d.tensor}: ‖a − b‖/‖a‖ = {d.error:.3g}{where}"
