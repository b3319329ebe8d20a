"""The numpy device: every line is the maths file's own function, its results stored or added."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from backglass.device.process import HostMemory
from backglass.execute.memory import Memory
from backglass.ops import signature, table
from backglass.program.fuse import parse
from backglass.program.record import Call
from backglass.spec import Operand, Signature


class Reference(HostMemory):
    name = "numpy"
    dtypes = ("fp32",)
    captures = False

    def __init__(self) -> None:
        self.progress: Callable[[int, int], None] = lambda done, total: None

    def workspace_bytes(self, calls: Iterable[Call]) -> int:
        return 0  # not asked, where memory has no limit

    def prepare(self, calls: Iterable[Call], memory: Memory) -> None:
        pass  # nothing to compile

    def fusable(self) -> list[str]:
        return []  # every line is the maths of one op

    def bind(self, calls: Iterable[Call], memory: Memory) -> list[Callable[[], None]]:
        return [self._line(c, memory) for c in calls]

    def _line(self, c: Call, memory: Memory) -> Callable[[], None]:
        outs, ins, sizes = operands(c, memory)
        by_name = dict(zip((o.name for o in c.signature.passed), (*outs, *ins), strict=True))
        inputs = [by_name[o.name] for o in c.signature.ins]
        return lambda: store(outs, c.add, evaluate(c.signature, inputs, c.attrs, sizes))


def operands(c: Call, memory: Memory) -> tuple[list, list, dict[str, int]]:
    """(outs, ins, sizes) of a call: arrays in exactly the spec's shapes, None where absent."""
    sizes = c.sizes
    arrays = [
        None if v is None else memory.array(v).reshape(o.shape(sizes))
        for o, v in zip(c.signature.passed, (*c.outs, *c.ins), strict=True)
    ]
    n = len(c.outs)
    return arrays[:n], arrays[n:], sizes


Keep = Callable[[Operand, np.ndarray], np.ndarray]


def evaluate(
    sig: Signature, inputs: list, attrs: dict, sizes: dict[str, int], keep: Keep = lambda o, x: x
) -> tuple:
    """Call the maths: inputs in the spec's order, attrs and the sizes it names as keywords.

    keep: what becomes of a tensor that a fused op's composition stores on the way.
    """
    if sig.equals:
        return compose(sig, inputs, attrs, sizes, keep)
    op = table()[sig.op]
    given = {k: v for k, v in (sizes | attrs).items() if k in op.keywords(sig.call)}
    return getattr(op.maths, sig.call)(*inputs, **given)


def compose(sig: Signature, inputs: list, attrs: dict, sizes: dict[str, int], keep: Keep) -> tuple:
    """A fused op has no maths of its own: evaluate the lines of its `equals`."""
    env: dict[str, Any] = dict(zip((o.name for o in sig.ins), inputs, strict=True))
    for line in parse(sig.equals):
        inner = signature(line.op)
        given = [env[name] for name in line.ins]
        given += [None] * (len(inner.ins) - len(given))
        shapes = [None] * len(inner.outs) + [None if g is None else g.shape for g in given]
        found = inner.bind(tuple(shapes))
        kept = inner.attrs | {k: v for k, v in attrs.items() if k in inner.attrs}
        made = evaluate(inner, given, kept, sizes | found)
        for name, add, value, o in zip(line.outs, line.adds, made, inner.outs, strict=False):
            env[name] = keep(o, env[name] + value if add else value)
    return tuple(env[o.name] for o in sig.outs)


def store(outs: list, add: tuple[bool, ...], values: tuple) -> None:
    for out, accumulate, value in zip(outs, add, values, strict=True):
        if out is None:
            continue
        if accumulate:
            out += value
        else:
            np.copyto(out, value)
