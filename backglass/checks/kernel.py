"""kernel check: does a device's kernel compute what the maths says, as well as its dtype allows?

The truth is the maths in float64 on inputs rounded to the kernel's dtype.  *Naive* is the maths
evaluated in float32 (for fp64 in float64), every tensor rounded when stored.  A kernel may err
twice as much as naive, or 4 ulp of the output's size, whichever is more; errors and sizes are root
mean squares.  In TF32 more is allowed what hangs on a matrix product (tf32.py).  Outputs
start as NaN where they are overwritten and random where they accumulate; canaries stand before and
after every tensor; two runs must give the same bits; where the spec promises `inplace`, the output
is laid over the input.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from backglass.checks.op import Result
from backglass.checks.samples import Sample, call_maths, forward_inputs, inputs, with_backward
from backglass.checks.tf32 import Tf32
from backglass.device import Device
from backglass.device.gpu import OutOfBounds
from backglass.execute.memory import Memory
from backglass.ops import Op
from backglass.program.record import make_call
from backglass.spec import Operand, Signature
from backglass.view import DTYPES, View, wide

ULP = {"fp64": 2.0**-52, "fp32": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}
CANARY = 64  # elements on either side


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
    for call, spec in op.fused.items():
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


def held(o: Operand, dtype: str) -> str:
    """The dtype of an operand in a program of `dtype`."""
    if o.holds == "int":
        return "i64" if o.name == "seed" else "i32"
    return wide(dtype) if o.holds == "wide" else dtype


def rounded(sample: Sample, dtype: str) -> Sample:
    """Inputs as the kernel will see them, still held in float64."""
    operands = {o.name: o for s in sample.op.signatures.values() for o in s.passed}
    values = dict(sample.values)
    for k in values.keys() & operands.keys():
        if operands[k].holds != "int":
            values[k] = values[k].astype(DTYPES[held(operands[k], dtype)]).astype(np.float64)
    return Sample(sample.op, sample.sizes, sample.attrs, values)


def _check(
    sig: Signature, sample: Sample, device: Device, dtype: str,
    absent: bool, adds: tuple[bool, ...], alias: tuple[str, str] | None,
) -> list[Result]:  # fmt: skip
    values = {**sample.values, **{o.name: None for o in sig.ins if o.optional and absent}}
    truth = call_maths(sig, sample, values)
    naive = naive_maths(sig, sample, values, dtype)
    ulps = ulps_of(sig, sample, values, dtype, naive)
    start = _starting_values(sig, sample, values, dtype, adds, absent)
    notes = [f"+{o.name}" for o, add in zip(sig.outs, adds, strict=True) if add]
    notes += ["without optional"] * absent + ([f"{alias[0]} over {alias[1]}"] if alias else [])
    case = " ".join([sample.case, dtype, device.name, *notes])

    def result(what: str, error: float, bound: float, why: str = "") -> Result:
        return Result("kernel", sig.op, f"{sig.call}.{what}", case, error, bound, why)

    try:
        first, broken = execute_call(sig, sample, values, device, dtype, start, adds, alias)
    except OutOfBounds as error:
        return [result("memory", np.inf, 0, str(error))]
    again, _ = execute_call(sig, sample, values, device, dtype, start, adds, alias)
    results = []
    for k, o in enumerate(sig.outs):
        if first[k] is None:
            continue
        base = start[k].astype(np.float64) if adds[k] else 0.0
        stored = held(o, dtype)
        error, bound = judged(first[k], truth[k] + base, naive[k] + base, stored, ulps[k])
        results.append(result(o.name, error, bound))
        if first[k].tobytes() != again[k].tobytes():
            results.append(result(o.name, np.inf, 0, "two runs differ"))
    if broken:
        results.append(result(",".join(broken), np.inf, 0, "memory outside was overwritten"))
    return results


def judged(
    found: np.ndarray, want: np.ndarray, naive: np.ndarray, stored: str, ulp: float
) -> tuple[float, float]:
    """(error, bound) of an output that a kernel has stored, as fractions of the true one's size."""
    size = rms(want)
    naive_error = rms(naive.astype(DTYPES[stored]).astype(np.float64) - want)
    bound = max(2 * naive_error, 4 * ulp * size) / max(size, 1e-300)
    error = rms(found.astype(np.float64) - want) / max(size, 1e-300)
    return 0.0 if size == 0 and not found.any() else error, bound


def naive_maths(sig: Signature, sample: Sample, values: dict, dtype: str) -> tuple:
    """The maths in float32; what a composition stores on the way is rounded there too, and in TF32
    every operand of a product."""
    computing = DTYPES[wide(dtype)]
    arrays = Tf32 if dtype == "tf32" else np.ndarray

    def narrow(x: np.ndarray | None) -> np.ndarray | None:
        return x if x is None or x.dtype.kind in "iu" else x.astype(computing).view(arrays)

    def keep(o: Operand, x: np.ndarray) -> np.ndarray:
        return x.astype(DTYPES[held(o, dtype)]).astype(computing)

    made = call_maths(sig, sample, {k: narrow(v) for k, v in values.items()}, keep)
    return tuple(np.asarray(x) for x in made)


def ulps_of(sig: Signature, sample: Sample, values: dict, dtype: str, naive: tuple) -> list[float]:
    """Of each output's dtype; in TF32 fp32's, unless the output hangs on a product."""
    if dtype != "tf32":
        return [ULP[held(o, dtype)] for o in sig.outs]
    exact = naive_maths(sig, sample, values, "fp32")
    same = [np.array_equal(a, b, equal_nan=True) for a, b in zip(naive, exact, strict=True)]
    return [ULP["fp32" if s else "tf32"] for s in same]


def _starting_values(
    sig: Signature, sample: Sample, values: dict, dtype: str, adds: tuple[bool, ...], absent: bool
) -> list[Any]:
    """What each output holds before the call: NaN, random numbers under '+', the input if updated
    in place."""
    rng = np.random.default_rng(5)
    start: list[Any] = []
    for o, add in zip(sig.outs, adds, strict=True):
        shape, stored = o.shape(sample.sizes), DTYPES[held(o, dtype)]
        if o.optional and absent:
            start.append(None)
        elif o.name in sig.updated:
            start.append(values[o.name].astype(stored))
        elif add:
            start.append(rng.standard_normal(shape).astype(stored))
        else:
            start.append(np.full(shape, np.nan, stored))
    return start


def execute_call(
    sig: Signature, sample: Sample, values: dict, device: Device, dtype: str,
    start: list, adds: tuple[bool, ...], alias: tuple[str, str] | None,
) -> tuple[list, list[str]]:  # fmt: skip
    """(outputs, names of tensors beside which something was written)."""
    memory = device.memory()
    ins = {o.name: _place(memory, o, values[o.name], dtype) for o in sig.passed_ins}
    outs: list[View | None] = []
    for o, begin, add in zip(sig.outs, start, adds, strict=True):
        if alias and alias[0] == o.name:
            outs.append(replace(ins[alias[1]], name=f"out.{o.name}"))
        else:
            view = _place(memory, o, begin, dtype, prefix="out.")
            outs.append(+view if view and add else view)
    attrs = {k: v for k, v in sample.attrs.items() if k in sig.attrs}
    call = make_call(sig, (*outs, *ins.values()), attrs, "kernel check")
    device.bind([call], memory)[0]()
    given = [v for v in (*outs, *ins.values()) if v is not None]
    found = [None if v is None else memory.read(v) for v in outs]
    return found, [v.name for v in given if _disturbed(memory, v)]


def _place(
    memory: Memory, o: Operand, values: np.ndarray | None, dtype: str, prefix: str = ""
) -> View | None:
    """The operand's tensor, between two rows of canaries in a buffer of its own."""
    if values is None:
        return None
    name, kind = prefix + o.name, held(o, dtype)
    guarded = np.full(values.size + 2 * CANARY, 77, DTYPES[kind])
    guarded[CANARY:-CANARY] = values.ravel()
    group = f"{name} guarded"
    memory.allocate(View(group, guarded.shape, kind, "act", group), guarded)
    return View(name, values.shape, kind, "act", group, CANARY)


def _disturbed(memory: Memory, v: View) -> bool:
    whole = View(v.group, (v.size + 2 * CANARY,), v.dtype, v.kind, v.group)
    around = memory.read(whole)
    return not ((around[:CANARY] == 77).all() and (around[-CANARY:] == 77).all())


def rms(x: np.ndarray) -> float:
    x = np.asarray(x, np.float64)
    return float(np.sqrt(np.mean(x * x))) if x.size else 0.0
