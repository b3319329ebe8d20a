"""backglass check"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from backglass.errors import wrong_use


@dataclass
class Check:
    """Prove gradients: backward against finite differences, kernels against the maths, and that the
    proof can fail.

    For example:
      backglass check                       every op and model, then the planted bugs
      backglass check layernorm matmul      two ops
      backglass check gpt2                  mirror, directional derivatives, eager = recorded
      backglass check --device interpret    the GPU kernels in Triton's interpreter, without a GPU
    """

    names: Annotated[
        Positional[tuple[str, ...]], arg(help="ops or models; none: all", metavar="[OP|MODEL ...]")
    ] = ()
    device: Annotated[
        str,
        arg(
            help="whose kernels are held against the maths: cpu, numpy, cuda, cuda:1, interpret",
            metavar="NAME",
        ),
    ] = "cpu"
    dtype: Annotated[
        tuple[Literal["fp32", "tf32", "bf16"], ...],
        arg(help="dtypes of the kernels", help_behavior_hint="(default: all the device has)"),
    ] = ()
    against: Annotated[
        str | None, arg(help="debug state of llm.c, its model .bin beside it", metavar="FILE")
    ] = None
    planted: Annotated[
        bool, arg(help="plant bugs too: the checks must catch every one (default without names)")
    ] = False
    verbose: Annotated[bool, arg(help="a line for every case")] = False
    json: Annotated[bool, arg(help="rows as JSON")] = False

    def run(self) -> int:
        from backglass import checks

        start, results = time.perf_counter(), []
        try:
            for r in self.wanted():
                results.append(r)
                if not self.json and (self.verbose or not r.ok):
                    print(f"{'ok ' if r.ok else 'BAD'}  {r.check:11s} {r.op:14s} {r.what:24s} "
                          f"error {r.error:.1e} of {r.bound:.1e}   {r.case} {r.note}")  # fmt: skip
        except ValueError as error:
            raise wrong_use(str(error)) from None
        plant = self.planted or not (self.names or self.against)
        bugs = checks.planted(self.names) if plant else []
        bad = [r for r in results if not r.ok]
        missed = [
            b for b in bugs if b.outcome == "missed" or (b.outcome == "equivalent" and not b.reason)
        ]
        if self.json:
            planted = [dataclasses.asdict(b) | {"reason": b.reason} for b in bugs]
            print(json.dumps({"rows": [r.row() for r in results], "planted": planted}))
        else:
            print_checks(results, bugs, missed, time.perf_counter() - start)
        return 1 if bad or missed else 0

    def wanted(self):
        """The results asked for, as they come."""
        from backglass import checks

        if self.against is None:
            return checks.check(self.names, self.device, self.dtype)
        if self.names not in ((), ("gpt2",)):
            raise wrong_use(f"--against compares gpt2, not {' '.join(self.names)}")
        from backglass.checks.against import check_against

        return iter(check_against(self.against, device=self.device))


def worst(group: list) -> str:
    """How near to its bound a check came, where there is a bound to speak of."""
    shares = [r.error / r.bound for r in group if r.bound]
    return f"(worst {max(shares):.0%} of its bound)" if shares else ""


def print_checks(results: list, bugs: list, missed: list, seconds: float) -> None:
    """A line per op, the score of the planted bugs, the verdict."""
    for op in dict.fromkeys(r.op for r in results):
        rows = [r for r in results if r.op == op]
        kinds = {k: [r for r in rows if r.check == k] for k in dict.fromkeys(r.check for r in rows)}
        parts = [
            f"{kind} {sum(r.ok for r in group)}/{len(group)} {worst(group)}"
            for kind, group in kinds.items()
        ]
        print(f"{'ok ' if all(r.ok for r in rows) else 'BAD'}  {op:15s} {'   '.join(parts)}")
    if bugs:
        caught = sum(b.outcome == "caught" for b in bugs)
        equivalent = [b for b in bugs if b.outcome == "equivalent"]
        kinds = len({b.kind for b in bugs})
        print(f"planted bugs: {caught} of {len(bugs) - len(equivalent)} caught, of {kinds} kinds; "
              f"{len(equivalent)} more change nothing:")  # fmt: skip
        for reason in dict.fromkeys(b.reason for b in equivalent):
            group = [b for b in equivalent if b.reason == reason]
            print(
                f"     {group[0].op}: {group[0].place or group[0].kind}"
                + f" (and {len(group) - 1} more)" * (len(group) > 1)
            )
            print(f"         {reason or 'NO REASON IS WRITTEN DOWN'}")
        for b in missed:
            print(f"BAD  {b.outcome}: {b.kind} in {b.op}: {b.place}")
    good = sum(r.ok for r in results)
    print(f"{good} of {len(results)} checks passed in {seconds:.0f} s")
