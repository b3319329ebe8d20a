"""backglass compare"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from backglass.commands.options import Number, opt
from backglass.errors import wrong_use

if TYPE_CHECKING:
    from backglass.debugger.compare import Comparison, Difference

SHOWN = 8  # of the tensors that differ; --json has them all


@dataclass
class Compare:
    """Find the first op at which two runs, or two recordings of a step, differ, and by how much.

    For example:
      backglass compare runs/a runs/b                  the steps recorded in both, in order
      backglass compare runs/a/trace/step-00000003 runs/b/trace/step-00000003

      backglass compare runs/a runs/b --all            every event that differs, not the first
      backglass compare cpu-step gpu-step --within 1e-5    two devices: how far apart

    Of two devices, or other kernels, it tells the largest error ‖a − b‖/‖a‖ of a tensor: their bits
    cannot be the same. Exit code 1 if they differ, there: by more than --within.
    `backglass trace RUN --step N --level 3` records a step.
    """

    a: Annotated[Positional[Path], arg(help="a run or a recording", metavar="A")]
    b: Annotated[Positional[Path], arg(help="another", metavar="B")]
    all: Annotated[FlagCreatePairsOff[bool], arg(help="every event that differs")] = False
    within: Annotated[
        Number, opt("of two devices: the error that is allowed", "E", "(default: none is)")
    ] = None
    json: Annotated[bool, arg(help="as JSON")] = False

    def run(self) -> int:
        from backglass.debugger.compare import compare, pairs_of
        from backglass.debugger.trace import Trace

        found = []
        for a, b in pairs_of(self.a, self.b):
            with Trace(a) as ours, Trace(b) as theirs:
                found.append(compare(ours, theirs, self.all))
            if not self.json:
                print(sentence(found[-1]))
            if not self.near(found[-1]):
                break
        if self.json:
            print(json.dumps([asdict(c) for c in found]))
        return int(not self.near(found[-1]))

    def near(self, c: Comparison) -> bool:
        """Whether that is as it should be.  Raises UserError if --within has no meaning."""
        if not c.unlike and self.within is not None:
            raise wrong_use(
                f"--within {self.within:g}: step {c.step} of both was computed by the same kernels "
                "on the same device, so its bits must be the same. Leave it out"
            )
        return c.equal or (self.within is not None and c.error <= self.within)


def sentence(c: Comparison) -> str:
    if c.unlike:
        return apart(c)
    if c.equal:
        cut = "" if c.cut is None else f" in the {c.cut} events that both recordings have"
        return f"step {c.step}: no divergence{cut}, {c.compared:,} tensors have the same bits"
    said = [f"step {c.step}:"]
    if c.before:
        said += ["  different before the step, or given to it", *some(c.before)]
    if c.event is not None:
        said += [f"  first divergence at event {c.event}: {c.text}", f"    {c.where}"]
        said += some(c.differences)
    for met in c.events[1:]:
        said += [f"  then event {met.k}: {met.text}", *some(met.differences)]
    return "\n".join(said)


def apart(c: Comparison) -> str:
    """Two programs: how far they are from one another."""
    said = [f"step {c.step}: not the same program, so not the same bits ({'; '.join(c.unlike)})"]
    if c.before:
        said += ["  different before the step, or given to it", *some(c.before)]
    if c.worst is None:
        return "\n".join([*said, f"  no difference in {c.compared:,} tensors"])
    said += [f"  largest error at event {c.worst.k}: {c.worst.text}", f"    {c.worst.where}"]
    said += some(c.worst.differences)
    for met in c.events:
        said += [f"  event {met.k}: {met.text}", *some(met.differences)]
    return "\n".join(said)


def some(found: list[Difference]) -> list[str]:
    more = len(found) - SHOWN
    return [*map(line, found[:SHOWN]), *[f"    and {more} more"] * (more > 0)]


def line(d: Difference) -> str:
    if d.error is None:
        a, b = d.norms
        return f"    {d.tensor}: norm {a:.9g} and {b:.9g} (values: record with --level 3)"
    where = "" if d.at is None else f"; most at {list(d.at)}, by {d.largest:.3g}"
    ulp = "" if d.ulp is None else f", {d.ulp:,} ulp"
    return f"    {d.tensor}: ‖a − b‖/‖a‖ = {d.error:.3g}{where}{ulp}"
