"""OpSpec: one text per op from which shape checks, tests, costs, help pages and labels follow.

    SPEC = OpSpec(
        forward="x[N,C] w[C] b[C] -> y[N,C] | mean[N] rstd[N]",
        backward={"d_layernorm": "dy x w mean rstd -> dx+ dw+ db+"},
        attrs="eps=1e-5", inplace="y:x dx:dy", flops={...}, cases=[dict(N=7, C=768)])

    x[N,C]   an operand and its dims; numbers are fixed sizes: qkv[B,T,3,NH,HS]
    b?       may be absent: leave it out at the end of its side of the call, or pass None
    | mean   an output kept for the backward pass, not differentiated
    dx+      a call may write +dx to accumulate instead of overwriting
    dy, x    in a backward signature dims may be left out: x's are the forward's, dy's are y's
    p -> p   an output named like an input is that tensor, updated in place and passed once

The first dim of an operand absorbs leading axes: x may be (B,T,C) where the spec says [N,C].
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operand:
    """One argument of a call, as the spec declares it."""

    name: str
    dims: tuple[str, ...]
    add: bool = False
    optional: bool = False
    saved: bool = False
    holds: str = ""  # "" the working dtype, "wide" fp32 beside bf16, "int" ids or seeds

    def shape(self, sizes: dict[str, int]) -> Shape:
        return tuple(size_of(d, sizes) for d in self.dims)


@dataclass(frozen=True)
class Signature:
    """One callable of an op: `layernorm`, `d_layernorm`, `d_matmul_w`."""

    call: str
    op: str
    outs: tuple[Operand, ...]
    ins: tuple[Operand, ...]
    attrs: dict[str, float | int | str]
    inplace: tuple[tuple[str, str], ...]
    phase: str
    flops: str
    bytes: str
    equals: str = ""

    @cached_property
    def updated(self) -> tuple[str, ...]:
        """Operands updated in place: outputs that are also read."""
        names = {o.name for o in self.ins}
        return tuple(o.name for o in self.outs if o.name in names)

    @cached_property
    def passed(self) -> tuple[Operand, ...]:
        """The operands in the order a call passes them: outputs, then the inputs that remain."""
        return self.outs + self.passed_ins

    @cached_property
    def passed_ins(self) -> tuple[Operand, ...]:
        return tuple(o for o in self.ins if o.name not in self.updated)

    def split(self, operands: tuple) -> tuple[tuple, tuple]:
        """(outs, ins) of a call's positional operands, absent optional ones filled with None."""
        n, missing = len(self.outs), len(self.passed) - len(operands)
        if missing:
            sides = ((n, self.outs), (len(self.passed), self.passed_ins))
            ends = [
                end
                for end, side in sides
                if 0 < missing <= len(side) and all(o.optional for o in side[-missing:])
            ]
            if len(ends) != 1:
                raise ValueError(f"{self.call} takes {self}; got {len(operands)} operands")
            at = ends[0] - missing
            operands = (*operands[:at], *(None,) * missing, *operands[at:])
        return operands[:n], operands[n:]

    def bind(self, shapes: tuple[Shape | None, ...]) -> dict[str, int]:
        """Sizes {"N": 8192, "C": 768, …} of a call from its operands' shapes, as `passed` orders
        them.

        Raises ValueError naming the op, the operand and the dims if the shapes do not fit.
        """
        sizes: dict[str, int] = {}
        because: dict[str, str] = {}
        given = [(o, s) for o, s in zip(self.passed, shapes, strict=True) if s is not None]
        exact = [(o, s) for o, s in given if len(o.dims) == len(s)]
        loose = [(o, s) for o, s in given if len(o.dims) != len(s)]
        for operand, shape in exact + loose:
            whole = (math.prod(shape),) if len(operand.dims) == 1 else shape
            trailing = zip(operand.dims[:0:-1], reversed(whole), strict=False)
            for d, n in trailing:
                if not d.isdigit() and d not in sizes:
                    sizes[d], because[d] = n, f"{operand.name} is {shape}"
            first = operand.dims[0]
            tail = math.prod(size_of(d, sizes) for d in operand.dims[1:])
            if not first.isdigit() and first not in sizes:
                sizes[first] = math.prod(shape) // max(tail, 1)
                because[first] = f"{operand.name} is {shape}"
            want = operand.shape(sizes)
            fits = shape == want if len(shape) == len(want) else math.prod(shape) == math.prod(want)
            if not fits:
                reasons = dict.fromkeys(because[d] for d in operand.dims if d in because)
                raise ValueError(
                    f"{self.call}: {operand.name} has shape {shape}, expected "
                    f"({', '.join(operand.dims)}) = {want} because {' and '.join(reasons)}"
                )
        return sizes

    def __str__(self) -> str:
        def text(o: Operand) -> str:
            return f"{o.name}[{','.join(o.dims)}]{'+' * o.add}{'?' * o.optional}"

        return f"{' '.join(map(text, self.passed_ins))} -> {' '.join(map(text, self.outs))}"


@dataclass(frozen=True)
class OpSpec:
    """Everything the rest of the package knows about an op.  See the module's docstring for the
    notation.

    flops: FLOPs per call as a formula over dims, {"matmul": "2*N*C*O"}.
    bytes: elements moved, where it is not one read per input and one write per output.
    cases: sizes for the generated tests, odd ones on purpose.
    equals: for a fused op, its composition line by line: meaning, test oracle and pattern at once.
    integers: operands that hold token ids or seeds and their range, "targets:-1:vocab_size";
    nothing is differentiated with
        respect to them.
    wide: operands that stay fp32 beside bf16, "loss m v"; saved ones always do.
    positive: operands that are positive by nature, "v norm"; tests draw them from (0.05, 0.95).
    """

    forward: str
    backward: dict[str, str] = field(default_factory=dict)
    attrs: str = ""
    inplace: str = ""
    flops: dict[str, str] = field(default_factory=dict)
    bytes: dict[str, str] = field(default_factory=dict)
    cases: tuple[dict[str, int], ...] = ()
    integers: str = ""
    wide: str = ""
    positive: str = ""
    phase: str = "forward"
    equals: str = ""

    def signatures(self, op: str) -> dict[str, Signature]:
        """Every call of this op by name, forward first."""
        known: dict[str, tuple[str, ...]] = {}
        found = {op: self._signature(op, op, self.forward, known, self.phase)}
        for call, text in self.backward.items():
            found[call] = self._signature(op, call, text, known, "backward")
        return found

    def _signature(self, op: str, call: str, text: str, known: dict, phase: str) -> Signature:
        left, right = text.split("->")
        made, _, saved = right.partition("|")
        holds = dict.fromkeys(_saved_names(self.forward) + self.wide.split(), "wide")
        holds |= dict.fromkeys((t.split(":")[0] for t in self.integers.split()), "int")
        ins = tuple(_operand(t, known, holds) for t in left.split())
        outs = tuple(_operand(t, known, holds) for t in made.split())
        outs += tuple(_operand(t, known, holds, saved=True) for t in saved.split())
        pairs = tuple(tuple(p.split(":")) for p in self.inplace.split())
        names = {o.name for o in ins}, {o.name for o in outs}
        return Signature(
            call=call,
            op=op,
            outs=outs,
            ins=ins,
            attrs={k: _number(v) for k, v in (a.split("=") for a in self.attrs.split())},
            inplace=tuple((o, i) for o, i in pairs if o in names[1] and i in names[0]),
            phase=phase,
            flops=self.flops.get(call, "0"),
            bytes=self.bytes.get(call, ""),
            equals=self.equals,
        )


def size_of(dim: str, sizes: dict[str, int]) -> int:
    return int(dim) if dim.isdigit() else sizes[dim]


def _saved_names(forward: str) -> list[str]:
    return re.findall(r"(\w+)\[", forward.partition("|")[2])


def _operand(
    text: str, known: dict[str, tuple[str, ...]], holds: dict[str, str], saved: bool = False
) -> Operand:
    match = re.fullmatch(r"(\w+)(?:\[([\w,]+)\])?(\+?)(\??)", text)
    if match is None:
        raise ValueError(f"cannot read the operand {text!r}; expected something like x[N,C]+?")
    name, dims, plus, question = match.groups()
    if dims is None:
        dims_of = known.get(name) or known.get(name.removeprefix("d"))
        if dims_of is None:
            raise ValueError(f"operand {name!r} has no dims and the forward has no {name!r} either")
    else:
        dims_of = tuple(dims.split(","))
    known.setdefault(name, dims_of)
    return Operand(name, dims_of, bool(plus), bool(question), saved, holds.get(name, ""))


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
