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
from ast import literal_eval
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
        return tuple(int(d) if d.isdigit() else sizes[d] for d in self.dims)


@dataclass(frozen=True)
class Signature:
    """One callable of an op: `layernorm`, `d_layernorm`, `d_matmul_w`."""

    call: str
    op: str
    outs: tuple[Operand, ...]
    ins: tuple[Operand, ...]
    attrs: dict[str, float | int]
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
        n, total = len(self.outs), len(self.passed)
        missing = total - len(operands)
        places = [  # the optional ones are the last of the outputs or of the inputs
            end - missing
            for start, end in ((0, n), (n, total))
            if missing <= end - start and all(o.optional for o in self.passed[end - missing : end])
        ]
        if missing and len(places) != 1:
            raise ValueError(f"{self.call} takes {self}; got {len(operands)} operands")
        operands = (*operands[: places[0]], *(None,) * missing, *operands[places[0] :])
        return operands[:n], operands[n:]

    def bind(self, shapes: tuple[Shape | None, ...]) -> dict[str, int]:
        """Sizes {"N": 8192, "C": 768, …} of a call from its operands' shapes, as `passed` orders
        them.

        Raises ValueError naming the op, the operand and the dims if the shapes do not fit.
        """
        sizes = {d: int(d) for o in self.passed for d in o.dims if d.isdigit()}
        because = dict.fromkeys(sizes, "")
        given = [(o, s) for o, s in zip(self.passed, shapes, strict=True) if s is not None]
        given.sort(key=lambda pair: len(pair[0].dims) != len(pair[1]))  # first what has every axis
        for operand, shape in given:
            first, *rest = operand.dims
            for d, n in zip(reversed(rest), reversed(shape), strict=False):
                sizes.setdefault(d, n)
            tail = math.prod(sizes[d] for d in rest)
            sizes.setdefault(first, math.prod(shape) // max(tail, 1))
            for d in operand.dims:
                because.setdefault(d, f"{operand.name} is {shape}")
            want = tuple(sizes[d] for d in operand.dims)
            fits = shape == want if len(shape) == len(want) else math.prod(shape) == math.prod(want)
            if not fits:
                reasons = filter(None, dict.fromkeys(because[d] for d in operand.dims))
                raise ValueError(
                    f"{self.call}: {operand.name} has shape {shape}, expected "
                    f"({', '.join(operand.dims)}) = {want} because {' and '.join(reasons)}"
                )
        return {d: n for d, n in sizes.items() if not d.isdigit()}

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
    constant: inputs that nothing is differentiated with respect to, "cos sin": tables.
    example: sizes and attrs of `explain`'s worked example, where dims hang on one another.
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
    constant: str = ""
    example: dict[str, int] = field(default_factory=dict)
    phase: str = "forward"
    equals: str = ""

    def signatures(self, op: str) -> dict[str, Signature]:
        """Every call of this op by name, forward first."""
        known: dict[str, tuple[str, ...]] = {}
        texts = {op: self.forward} | self.backward
        return {call: self._signature(op, call, text, known) for call, text in texts.items()}

    def _signature(self, op: str, call: str, text: str, known: dict) -> Signature:
        left, right = text.split("->")
        made, _, saved = right.partition("|")
        always_wide = re.findall(r"(\w+)\[", self.forward.partition("|")[2])
        holds = dict.fromkeys((*always_wide, *self.wide.split()), "wide")
        holds |= dict.fromkeys((t.split(":")[0] for t in self.integers.split()), "int")
        ins = tuple(_operand(t, known, holds) for t in left.split())
        outs = tuple(_operand(t, known, holds) for t in made.split())
        outs += tuple(_operand(t, known, holds, saved=True) for t in saved.split())
        pairs = tuple(tuple(p.split(":")) for p in self.inplace.split())
        names = {o.name for o in ins}, {o.name for o in outs}
        return Signature(
            call=call, op=op, outs=outs, ins=ins, equals=self.equals,
            attrs={k: literal_eval(v) for k, v in (a.split("=") for a in self.attrs.split())},
            inplace=tuple((o, i) for o, i in pairs if o in names[1] and i in names[0]),
            phase=self.phase if call == op else "backward",
            flops=self.flops.get(call, "0"), bytes=self.bytes.get(call, ""),
        )  # fmt: skip


def _operand(
    text: str, known: dict[str, tuple[str, ...]], holds: dict[str, str], saved: bool = False
) -> Operand:
    match = re.fullmatch(r"(\w+)(?:\[([\w,]+)\])?(\+?)(\??)", text)
    if match is None:
        raise ValueError(f"cannot read the operand {text!r}; expected something like x[N,C]+?")
    name, dims, plus, question = match.groups()
    axes = tuple(dims.split(",")) if dims else known.get(name) or known.get(name.removeprefix("d"))
    if not axes:
        raise ValueError(f"operand {name!r} has no dims and the forward has no {name!r} either")
    known.setdefault(name, axes)
    return Operand(name, axes, bool(plus), bool(question), saved, holds.get(name, ""))
