"""cost: FLOPs and bytes of every line from the specs, and the time a roofline allows them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from backglass.program.record import Call, Program
from backglass.view import DTYPES


@dataclass(frozen=True)
class Cost:
    """One line or the sum of many."""

    flops: float = 0
    nbytes: float = 0
    seconds: float = 0
    calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.nbytes + other.nbytes,
            self.seconds + other.seconds,
            self.calls + other.calls,
        )


def line_cost(c: Call, flops_per_s: float, bytes_per_s: float) -> Cost:
    """FLOPs by the spec's formula; bytes as one read per input and one write per output (a '+'
    reads too) unless the spec says otherwise; seconds = the slower of the two."""
    sizes = c.sizes | {k: v for k, v in c.attrs.items() if isinstance(v, int)}
    flops = float(eval(c.signature.flops, {}, sizes))
    if c.signature.bytes:
        width = max(DTYPES[v.dtype].itemsize for v in c.written)
        nbytes = float(eval(c.signature.bytes, {}, sizes)) * width
    else:
        nbytes = float(sum(v.nbytes for v in c.read) + sum(v.nbytes for v in c.written))
    return Cost(flops, nbytes, max(flops / flops_per_s, nbytes / bytes_per_s), 1)


def cost(program: Program, flops_per_s: float, bytes_per_s: float) -> list[Cost]:
    """One entry per line."""
    return [line_cost(c, flops_per_s, bytes_per_s) for c in program]


def by_op(program: Program, costs: list[Cost]) -> dict[str, Cost]:
    """Summed per op, the slowest first."""
    total: dict[str, Cost] = defaultdict(Cost)
    for c, k in zip(program, costs, strict=True):
        total[c.op] += k
    return dict(sorted(total.items(), key=lambda item: -item[1].seconds))
