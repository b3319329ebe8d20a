"""op check: is the hand-written backward the derivative of the forward?  In float64, by finite
differences.

For random u and v:      ⟨v, J·u⟩   (forward, central differences)    =    ⟨Jᵀ·v, u⟩   (backward)

The error is scaled by ‖J·u‖·‖v‖, not by the product itself, which can be near zero by chance.  u
and v are random, never ones: a softmax's gradient under ones is zero, and any factor in front of it
would pass.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from backglass.checks.samples import (
    Sample,
    call_maths,
    differentiable,
    forward_inputs,
    with_backward,
)
from backglass.ops import Op

LIMIT = 1e-8


@dataclass(frozen=True)
class Result:
    """One line of a check table.  error and bound are fractions of the tensor's own size."""

    check: str
    op: str
    what: str
    case: str
    error: float
    bound: float
    note: str = ""

    @property
    def ok(self) -> bool:
        return bool(self.error <= self.bound)  # False for NaN

    def row(self) -> dict:
        return dataclasses.asdict(self) | {"ok": self.ok}


def check_op(op: Op, cases: tuple | None = None) -> list[Result]:
    """One result per case and differentiable input.  Empty for ops without a backward."""
    results = []
    if not op.spec.backward:
        return results
    for i, case in enumerate(cases if cases is not None else op.spec.cases):
        rng = np.random.default_rng([zlib.crc32(op.name.encode()), i])
        sample = with_backward(forward_inputs(op, case, rng), rng)
        grads = backward(sample)
        for o in op.signatures[op.name].ins:
            if not differentiable(op, o.name):
                continue
            what = f"d{o.name}"
            if what not in grads:
                results.append(
                    Result("op", op.name, what, sample.case, np.inf, LIMIT, "no call returns it")
                )
                continue
            error = directional_error(sample, o.name, grads[what], rng)
            results.append(Result("op", op.name, what, sample.case, error, LIMIT))
    return results


def backward(sample: Sample) -> dict[str, np.ndarray]:
    """Every gradient the op's backward calls return; two calls with the same output add up."""
    grads: dict[str, np.ndarray] = {}
    for call in sample.op.spec.backward:
        sig = sample.op.signatures[call]
        for operand, value in zip(sig.outs, call_maths(sig, sample, sample.values), strict=True):
            grads[operand.name] = grads.get(operand.name, 0) + value
    return grads


def directional_error(
    sample: Sample, name: str, grad: np.ndarray, rng: np.random.Generator, size_of_u: float = 1.0
) -> float:
    """|⟨v, J·u⟩ − ⟨Jᵀ·v, u⟩| / (‖J·u‖·‖v‖), u a random direction of input `name` only."""
    x = sample.values[name]
    if grad.shape != x.shape:
        return np.inf
    u = size_of_u * rng.standard_normal(x.shape)
    f, v = differentiated(sample)
    Ju = central_difference(lambda eps: f({name: x + eps * u}))
    size = np.linalg.norm(Ju) * np.linalg.norm(v)
    return float(abs(v @ Ju - np.sum(grad * u)) / max(size, 1e-12))


def differentiated(sample: Sample) -> tuple[Callable[[dict], np.ndarray], np.ndarray]:
    """(f, v): the outputs that are differentiated as one vector, f(changed inputs), and theirs of
    the sample's cotangents."""
    sig = sample.op.signatures[sample.op.name]
    wanted = [i for i, o in enumerate(sig.outs) if not o.saved]
    v = np.concatenate([sample.values["d" + sig.outs[i].name].ravel() for i in wanted])

    def f(changed: dict[str, np.ndarray]) -> np.ndarray:
        outs = call_maths(sig, sample, sample.values | changed)
        return np.concatenate([outs[i].ravel() for i in wanted])

    return f, v


def central_difference(f: Callable[[float], np.ndarray], eps: float = 5e-4):
    """df/dε at 0, fourth order: the truncation error falls with ε⁴, the rounding error is
    1e-16/ε."""
    return (8 * (f(eps) - f(-eps)) - (f(2 * eps) - f(-2 * eps))) / (12 * eps)
