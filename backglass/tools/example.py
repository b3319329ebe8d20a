"""example: a call of an op small enough to follow by hand, and its backward proven cell by cell.

Sizes follow from the dims the spec names, values are random with two decimals.  For every cell of
an input the backward's number is held against the central difference of

    f(cell) = Σ dy ⊙ y(cell)

which is what dy means: how much the loss grows with each output.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

from backglass.checks.op import backward, central_difference
from backglass.checks.samples import Sample, call_maths, differentiable, inputs, with_backward
from backglass.ops import Op, signature
from backglass.spec import OpSpec, Signature

# A 2×3 matrix wherever a spec has rows and columns, and the smallest attention that attends.
DIMS = dict(B=1, N=2, T=3, C=3, O=2, NH=1, HS=2, V=4, P=4)
OTHER_DIM = 3
ONLY_DIM = 6  # an op with a single dim gets as many numbers as a 2×3 matrix has


@dataclass
class Proof:
    """One input: its gradient by hand and by finite differences, and the largest difference."""

    name: str
    by_hand: np.ndarray
    numeric: np.ndarray

    @property
    def error(self) -> float:
        return float(np.abs(self.by_hand - self.numeric).max(initial=0))


@dataclass
class Step:
    """One call of the example: what goes in and what comes out."""

    signature: Signature
    ins: dict[str, np.ndarray]
    outs: dict[str, np.ndarray]


@dataclass
class Example:
    sample: Sample
    steps: list[Step] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)


def example(op: Op, call: str) -> Example:
    """The worked example of a forward with its backward, of an update, or of a fused call."""
    sig = signature(call)
    fused = bool(sig.equals)
    spec = op.fused[call] if fused else op.spec
    made = [_steps(_draw(op, sig, spec, seed), sig, fused) for seed in range(32)]
    best = max(made, key=telling)  # the first of the most telling ones
    if op.spec.backward and not fused:
        best.proofs = proofs(best.sample)
    return best


def telling(made: Example) -> int:
    """How much an example shows: some results that are zero (a dropped element, a masked target)
    but not all; token ids that differ, with one of them repeated."""
    zeros = np.concatenate([v.ravel() == 0 for v in made.steps[0].outs.values()])
    score = int(zeros.any() and not zeros.all())
    for v in made.steps[0].ins.values():
        if v.dtype.kind == "i" and v.size > 2:
            score += int(1 < len(np.unique(v)) < v.size)
    return score


def sizes(sig: Signature) -> dict[str, int]:
    """A size for each dim the call names."""
    dims = dict.fromkeys(d for o in sig.passed for d in o.dims if not d.isdigit())
    if len(dims) == 1:
        return dict.fromkeys(dims, ONLY_DIM)
    return {d: DIMS.get(d, OTHER_DIM) for d in dims}


def attrs(sig: Signature, spec: OpSpec, chosen: dict[str, int]) -> dict[str, int]:
    """Values for the attrs that the spec's cases set.  One that bounds a dim (vocab_size ≤ V) is
    one less than that dim, so that both sides of the bound are seen."""
    found = {}
    for name in sig.attrs:
        given = [c for c in spec.cases if name in c]
        if not given:
            continue
        bounds = [d for d in chosen if all(c.get(d, 0) >= c[name] for c in given)]
        bounds.sort(key=lambda d: sum(c[d] - c[name] for c in given))
        near = max(c[name] for c in given) * 4 > min(c[bounds[0]] for c in given) if bounds else 0
        found[name] = max(1, chosen[bounds[0]] - 1) if near else 1
    return found


def _draw(op: Op, sig: Signature, spec: OpSpec, seed: int) -> Sample:
    chosen = sizes(sig)
    case = spec.example or chosen | attrs(sig, spec, chosen)
    rng = np.random.default_rng([zlib.crc32(sig.call.encode()), seed])
    sample = inputs(op, sig, spec, case, rng)
    for name, value in sample.values.items():
        if name in spec.positive.split():
            value = value * 4  # on both sides of 1
        sample.values[name] = rounded(value) if value.dtype.kind == "f" else value
    if "hyper" in sample.values:
        sample.values["hyper"] = hyper(update=10)
    if sig.call == op.name and op.spec.backward:
        sample = with_backward(sample, rng)
        for o in sig.outs:
            if not o.saved:
                sample.values["d" + o.name] = rounded(sample.values["d" + o.name])
    return sample


def rounded(value: np.ndarray) -> np.ndarray:
    """To two decimals, but never to zero: a zero in an example means something."""
    near = np.round(value, 2)
    return np.where(near == 0, 0.01, near)


def hyper(update: int) -> np.ndarray:
    """The hyper tensor of the default settings at an update, counted from 1."""
    from backglass.training.settings import Settings, learning_rate

    s = Settings()
    return np.array([
        learning_rate(s, update - 1), s.beta1, s.beta2, s.eps, s.weight_decay, s.clip,
        1 / (1 - s.beta1**update), 1 / (1 - s.beta2**update),
    ])  # fmt: skip


def _steps(sample: Sample, sig: Signature, fused: bool) -> Example:
    made = Example(sample, [_step(sig, sample)])
    if not fused:
        signatures = sample.op.signatures
        made.steps += [_step(signatures[call], sample) for call in sample.op.spec.backward]
    return made


def _step(sig: Signature, sample: Sample) -> Step:
    ins = {o.name: sample.values[o.name] for o in sig.ins}
    made = call_maths(sig, sample, sample.values)
    return Step(sig, ins, {o.name: v for o, v in zip(sig.outs, made, strict=True)})


def proofs(sample: Sample) -> list[Proof]:
    """Every differentiable input of the forward, every cell of it."""
    by_hand = backward(sample)
    found = []
    for o in sample.op.signatures[sample.op.name].ins:
        if differentiable(sample.op, o.name):
            found.append(Proof(o.name, by_hand[f"d{o.name}"], numeric_gradient(sample, o.name)))
    return found


def numeric_gradient(sample: Sample, name: str) -> np.ndarray:
    """∂(Σ dy ⊙ y)/∂cell for every cell of an input, by central differences of the forward."""
    sig = sample.op.signatures[sample.op.name]
    x = sample.values[name]

    def f(moved: np.ndarray) -> np.ndarray:
        outs = call_maths(sig, sample, sample.values | {name: moved})
        pairs = [(o, y) for o, y in zip(sig.outs, outs, strict=True) if not o.saved]
        return np.array(sum(np.sum(sample.values["d" + o.name] * y) for o, y in pairs))

    found = np.zeros(x.shape)
    for cell in np.ndindex(x.shape):
        unit = np.zeros(x.shape)
        unit[cell] = 1
        found[cell] = central_difference(lambda eps, unit=unit: f(x + eps * unit))
    return found
