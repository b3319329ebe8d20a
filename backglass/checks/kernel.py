"""kernel check: does a device's kernel compute what the maths says, as well as its dtype allows?

The truth is the maths in float64 on inputs rounded to the kernel's dtype.  *Naive* is the maths
evaluated in that dtype.  A kernel may err twice as much as naive, or 4 ulp of the output's size,
whichever is more; errors and sizes are root mean squares. Outputs start as NaN where they are
overwritten and random where they accumulate; canaries stand before and after every output; two runs
must give the same bits; where the spec promises `inplace`, the output is laid over the input.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from backglass.checks.op import Result
from backglass.checks.samples import Sample, call_maths, forward_inputs, inputs, with_backward
from backglass.device import Device
from backglass.execute.memory import Memory
from backglass.ops import Op
from backglass.program.record import make_call
from backglass.spec import Operand, Signature
from backglass.view import DTYPES, View

ULP = {"fp64": 2.0**-52, "fp32": 2.0**-23, "bf16": 2.0**-7}
CANARY = 64  # elements on either side


class CanaryMemory(Memory):
    """Memory whose tensors stand between two rows of canaries."""

    def place(self, name: str, values: np.ndarray) -> None:
        guarded = np.empty(values.size + 2 * CANARY, values.dtype)
        guarded[:CANARY] = guarded[-CANARY:] = 77
        inner = guarded[CANARY:-CANARY]
        inner[...] = values.ravel()
        self.flat[name] = inner

    def disturbed(self) -> list[str]:
        """Names whose canaries were overwritten."""
        found = []
        for name, inner in self.flat.items():
            whole = inner.base
            if (
                whole is not None
                and not (whole[:CANARY] == 77).all() & (whole[-CANARY:] == 77).all()
            ):
                found.append(name)
        return found


def check_kernel(
    op: Op, device: Device, dtype: str = "fp32", cases: tuple | None = None
) -> list[Result]:
    """Results for every call of the op, every case, overwriting and accumulating, plain and in
    place."""
    results = []
    for i, case in enumerate(op.spec.cases if cases is None else cases):
        rng = np.random.default_rng([zlib.crc32(op.name.encode()), i, 1])
        sample = rounded(with_backward(forward_inputs(op, case, rng), rng), dtype)
        for sig in op.signatures.values():
            if not sig.equals:
                results += _variants(sig, sample, device, dtype)
    for call, spec in getattr(op.maths, "FUSED", {}).items():
        if call not in device.fusable():
            continue
        for i, case in enumerate(spec.cases):
            rng = np.random.default_rng([zlib.crc32(call.encode()), i])
            sample = rounded(inputs(op, op.signatures[call], spec, case, rng), dtype)
            results += _variants(op.signatures[call], sample, device, dtype)
    return results


def _variants(sig: Signature, sample: Sample, device: Device, dtype: str) -> list[Result]:
    return [r for v in variants(sig) for r in _check(sig, sample, device, dtype, *v)]


Variant = tuple[bool, tuple[bool, ...], tuple[str, str] | None]


def variants(sig: Signature) -> Iterator[Variant]:
    """(optional operands absent, '+' per output, in-place pair): every combination a call may ask
    for."""
    for absent in (False, True)[: 1 + any(o.optional for o in sig.passed)]:
        choices = [(False, True)[: 1 + (o.add and not (absent and o.optional))] for o in sig.outs]
        for adds in itertools.product(*choices):
            yield absent, adds, None
    for pair in sig.inplace:
        yield False, (False,) * len(sig.outs), pair


def rounded(sample: Sample, dtype: str) -> Sample:
    """Inputs as the kernel will see them, still held in float64."""
    values = {
        k: v if v.dtype.kind in "iu" else v.astype(DTYPES[dtype]).astype(np.float64)
        for k, v in sample.values.items()
    }
    return Sample(sample.op, sample.sizes, sample.attrs, values)


def _check(
    sig: Signature, sample: Sample, device: Device, dtype: str,
    absent: bool, adds: tuple[bool, ...], alias: tuple[str, str] | None,
) -> list[Result]:  # fmt: skip
    values = {
        **sample.values,
        **{o.name: None for o in sig.ins if o.optional and absent},
    }
    truth = call_maths(sig, sample, values)
    narrow = {
        k: v if v is None or v.dtype.kind in "iu" else v.astype(DTYPES[dtype])
        for k, v in values.items()
    }
    naive = call_maths(sig, sample, narrow)
    start = _starting_values(sig, sample, narrow, dtype, adds, absent)
    notes = [f"+{o.name}" for o, add in zip(sig.outs, adds, strict=True) if add]
    notes += ["without optional"] * absent + ([f"{alias[0]} over {alias[1]}"] if alias else [])
    case = " ".join([sample.case, dtype, device.name, *notes])

    def result(what: str, error: float, bound: float, why: str = "") -> Result:
        return Result("kernel", sig.op, f"{sig.call}.{what}", case, error, bound, why)

    first, broken = _execute(sig, sample, narrow, device, dtype, start, adds, absent, alias)
    again, _ = _execute(sig, sample, narrow, device, dtype, start, adds, absent, alias)
    results = []
    for k, o in enumerate(sig.outs):
        if first[k] is None:
            continue
        base = start[k].astype(np.float64) if adds[k] else 0.0
        want = truth[k] + base
        naive_out = naive[k].astype(DTYPES[dtype]) + (start[k] if adds[k] else 0)
        size = rms(want)
        allowed = max(2 * rms(naive_out - want), 4 * ULP[dtype] * size) / max(size, 1e-300)
        error = rms(first[k].astype(np.float64) - want) / max(size, 1e-300)
        error = 0.0 if size == 0 and not first[k].any() else error
        results.append(result(o.name, error, allowed))
        if first[k].tobytes() != again[k].tobytes():
            results.append(result(o.name, np.inf, 0, "two runs differ"))
    if broken:
        results.append(result(",".join(broken), np.inf, 0, "memory outside was overwritten"))
    return results


def _starting_values(
    sig: Signature, sample: Sample, narrow: dict, dtype: str, adds: tuple[bool, ...], absent: bool
) -> list[Any]:
    """What each output holds before the call: NaN, random numbers under '+', the input if updated
    in place."""
    rng = np.random.default_rng(5)
    start: list[Any] = []
    for o, add in zip(sig.outs, adds, strict=True):
        shape = o.shape(sample.sizes)
        if o.optional and absent:
            start.append(None)
        elif o.name in sig.updated:
            start.append(narrow[o.name].copy())
        elif add:
            start.append(rng.standard_normal(shape).astype(DTYPES[dtype]))
        else:
            start.append(np.full(shape, np.nan, DTYPES[dtype]))
    return start


def _execute(
    sig: Signature, sample: Sample, narrow: dict, device: Device, dtype: str,
    start: list, adds: tuple[bool, ...], absent: bool, alias: tuple[str, str] | None,
) -> tuple[list, list[str]]:  # fmt: skip
    memory = CanaryMemory()
    for o in sig.passed_ins:
        if narrow[o.name] is not None:
            kind = np.int64 if o.name == "seed" else np.int32
            array = narrow[o.name]
            memory.place(o.name, array.astype(kind) if array.dtype.kind in "iu" else array)
    views: list[View | None] = []
    for o, values, add in zip(sig.outs, start, adds, strict=True):
        if values is None:
            views.append(None)
            continue
        name = f"out.{o.name}"
        if alias and alias[0] == o.name:
            memory.flat[name] = memory.flat[alias[1]]
        else:
            memory.place(name, values)
        views.append(_view(name, o, sample, dtype, add))
    for o in sig.passed_ins:
        held = memory.flat.get(o.name)
        kind = {np.dtype(np.int32): "i32", np.dtype(np.int64): "i64"}.get(
            held.dtype if held is not None else None, dtype
        )
        views.append(None if held is None else _view(o.name, o, sample, kind, False))
    attrs = {k: v for k, v in sample.attrs.items() if k in sig.attrs}
    call = make_call(sig, tuple(views), attrs, "kernel check")
    device.bind([call], memory)[0]()
    outs = [None if v is None else memory.array(v).copy() for v in views[: len(sig.outs)]]
    return outs, memory.disturbed()


def _view(name: str, o: Operand, sample: Sample, dtype: str, add: bool) -> View:
    return View(name, o.shape(sample.sizes), dtype, "act", add=add)


def rms(x: np.ndarray) -> float:
    x = np.asarray(x, np.float64)
    return float(np.sqrt(np.mean(x * x))) if x.size else 0.0
