"""Random inputs for an op, from its spec."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backglass.device.reference import Keep, evaluate
from backglass.ops import Op
from backglass.spec import Operand, OpSpec, Signature


@dataclass(frozen=True)
class Sample:
    """Inputs of an op's forward at one case, and what its calls need besides."""

    op: Op
    sizes: dict[str, int]
    attrs: dict[str, Any]
    values: dict[str, np.ndarray] = field(repr=False)

    @property
    def case(self) -> str:
        return " ".join(f"{k}={v}" for k, v in (self.sizes | self.attrs).items())


def integer_range(spec: OpSpec, name: str, scope: dict[str, Any]) -> tuple[int, int] | None:
    """(low, high) if the operand holds integers, else None."""
    for text in spec.integers.split():
        operand, low, high = text.split(":")
        if operand == name:
            return tuple(int(scope.get(t, t)) for t in (low, high))  # type: ignore[return-value]
    return None


def differentiable(op: Op, name: str) -> bool:
    """Whether an input of the forward has a gradient: it holds no integers and is no table."""
    given = [text.split(":")[0] for text in op.spec.integers.split()]
    return name not in (*given, *op.spec.constant.split())


def forward_inputs(op: Op, case: dict[str, Any], rng: np.random.Generator) -> Sample:
    """float64 inputs of op's forward; integers in the spec's range."""
    return inputs(op, op.signatures[op.name], op.spec, case, rng)


def inputs(op: Op, sig: Signature, spec: OpSpec, case: dict, rng: np.random.Generator) -> Sample:
    """float64 inputs of any call whose operands need no forward before them."""
    sizes = {k: v for k, v in case.items() if k[0].isupper()}
    attrs = sig.attrs | {k: v for k, v in case.items() if not k[0].isupper()}
    values = {o.name: _draw(spec, o, sizes, attrs, rng) for o in sig.ins}
    return Sample(op, sizes, attrs, values)


def with_backward(
    sample: Sample, rng: np.random.Generator, given: dict[str, np.ndarray] | None = None
) -> Sample:
    """The sample plus the forward's outputs and cotangents, random where none is given: everything
    any backward call reads."""
    op, sig = sample.op, sample.op.signatures[sample.op.name]
    values = dict(sample.values)
    made = call_maths(sig, sample, values)
    for operand, value in zip(sig.outs, made, strict=True):
        if operand.name not in sig.updated:  # those start from what they were
            values[operand.name] = value
        if not operand.saved:
            drawn = rng.standard_normal(value.shape)
            values["d" + operand.name] = (given or {}).get("d" + operand.name, drawn)
    return Sample(op, sample.sizes, sample.attrs, values)


def call_maths(
    sig: Signature, sample: Sample, values: dict[str, np.ndarray], keep: Keep = lambda o, x: x
) -> tuple:
    """The maths on values; see evaluate for keep."""
    inputs = [values[o.name] for o in sig.ins]
    return evaluate(sig, inputs, sample.attrs, sample.sizes, keep)


def _draw(
    spec: OpSpec, o: Operand, sizes: dict, attrs: dict, rng: np.random.Generator
) -> np.ndarray:
    shape = o.shape(sizes)
    bounds = integer_range(spec, o.name, sizes | attrs)
    if bounds:
        return rng.integers(*bounds, shape)
    if o.name in spec.positive.split():
        return rng.uniform(0.05, 0.95, shape)
    return rng.standard_normal(shape)
