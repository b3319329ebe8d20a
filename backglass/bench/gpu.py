"""bench ops --device cuda: every op call of GPT-2 124M's step on the GPU, beside cuBLASLt.

Times are of replayed CUDA graphs, so that no launch from Python is in them.  Ceilings are measured
in the same run: FLOP/s as cuBLASLt reaches them on a product of 4096³, bytes/s as a copy of 1 GiB
moves them (read and written).  The rival of a fused matmul is cuBLASLt's product plus the kernels
that it saves; attention's is PyTorch's (sdpa.py), if it is asked for.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from backglass.bench.ops import Ceilings, Row, distinct, row
from backglass.checks.samples import integer_range
from backglass.device import get
from backglass.models import gpt2
from backglass.ops import signature, table
from backglass.program.fuse import parse
from backglass.program.record import Call, make_call
from backglass.program.step import record_micro, record_update
from backglass.training.settings import Settings
from backglass.view import View

if TYPE_CHECKING:
    from backglass.device.cuda import Cuda
    from backglass.execute.memory import Memory

Rivals = dict[str, tuple[str, float]]  # call -> who does the same, in how many milliseconds


def gpu_ops(
    names: list[str], B: int, T: int, gpu: str, dtype: str, rungs: dict[str, str], rivals: Rivals
) -> Iterator[Row]:
    """A row for every distinct call of the fused step, or of the named ops, in a dtype or, if it is
    empty, in every one that the GPU has: cuda, cuda:1.  rivals: of attention, in bf16."""
    for each in [dtype] if dtype else reversed(get(gpu).dtypes):
        asked = {"matmul": Settings(device=gpu, dtype=each).matmul, **rungs}
        yield from ops_in(gpu, each, names, B, T, asked, rivals if each == "bf16" else {})


def ops_in(
    gpu: str, dtype: str, names: list[str], B: int, T: int, asked: dict[str, str], rivals: Rivals
) -> Iterator[Row]:
    """asked: rungs, among them who multiplies matrices."""
    rungs = {op: rung for op, rung in asked.items() if rung != "own"}
    device: Any = get(gpu, rungs=rungs)
    library: Any = get(gpu, rungs=rungs | {"matmul": "cublaslt"})
    limits = ceilings(device, dtype)
    for c in distinct(names, calls(device, B, T, dtype)):
        ms = milliseconds(device, c)
        rival, rival_ms = rivals.get(c.op, ("", None))
        if (parts := matmul_parts(c)) and asked["matmul"] != "cublaslt":
            rival = " + ".join(("cublaslt", *(p.op for p in parts[1:])))
            rival_ms = sum(milliseconds(library, p) for p in parts)
        yield row(c, asked, dtype, limits, ms, rival, rival_ms)


def calls(device: Cuda, B: int, T: int, dtype: str) -> Iterator[Call]:
    """Two layers are enough: the others repeat their shapes."""
    c = gpt2.Config(layers=2, max_seq_len=max(1024, T))
    yield from record_micro(gpt2, c, B, T, dtype).fuse(*device.fusable())
    yield from record_update(gpt2, gpt2.Config(), dtype)


def matmul_parts(c: Call) -> list[Call]:
    """The calls that a matmul, plain or fused, stands for; empty for any other call."""
    if c.signature.op != "matmul":
        return []
    if not c.signature.equals:
        return [c]
    env = dict(zip((o.name for o in c.signature.passed), (*c.outs, *c.ins), strict=True))
    parts = []
    for line in parse(c.signature.equals):
        sig = signature(line.op)
        given = {o.name: env[v] for o, v in zip(sig.ins, line.ins, strict=False)}
        shapes = {name: v.shape for name, v in given.items() if v is not None}
        known = [shapes.get(o.name) for o in sig.passed_ins]
        sizes = sig.bind(tuple([None] * len(sig.outs) + known))
        for o, v in zip(sig.outs, line.outs, strict=False):
            env.setdefault(v, View(v, o.shape(sizes), c.dtype, "act"))
        operands = [env.get(v) for v in (*line.outs, *line.ins)]
        parts.append(make_call(sig, tuple(operands), {}, "bench"))
    return parts


def milliseconds(device: Cuda, c: Call) -> float:
    """The median over replays of a graph that holds the call several times."""
    memory = device.memory()
    line = device.bind([filled(c, memory)], memory)[0]
    line()
    found = replayed_ms(device, line)
    del memory, line
    device.cupy.get_default_memory_pool().free_all_blocks()
    return found


def replayed_ms(device: Cuda, line: Callable[[], None]) -> float:
    """Of a line whose kernels exist."""
    (once,) = elapsed_ms(device, [line])
    repeats = max(1, min(50, int(5 / max(once, 0.01))))
    replay = device.capture([line] * repeats)
    replay()
    return statistics.median(elapsed_ms(device, [replay] * 5)) / repeats


def filled(c: Call, memory: Memory) -> Call:
    """The call on tensors of its own that hold random numbers."""
    rng = np.random.default_rng(0)
    own: dict[str, View] = {}
    for o, v in zip(c.signature.passed, (*c.outs, *c.ins), strict=True):
        if v is None or v.name in own:
            continue
        own[v.name] = replace(v, group="", offset=0, kind="act", add=False)
        if o.holds == "int":
            values: Any = rng.integers(*bounds_of(c, o.name), v.shape)
        else:
            sample = rng.standard_normal(min(v.size, 1 << 20), np.float32) * 0.1
            values = np.resize(np.abs(sample) if o.holds == "wide" else sample, v.shape)
        memory.write(own[v.name], values)

    def mine(v: View | None) -> View | None:
        return None if v is None else replace(own[v.name], shape=v.shape, add=v.add)

    return replace(c, outs=tuple(map(mine, c.outs)), ins=tuple(map(mine, c.ins)))


def bounds_of(c: Call, name: str) -> tuple[int, int]:
    """Between which an integer operand is drawn, as the kernel check does."""
    op = table()[c.signature.op]
    found = integer_range(op.fused.get(c.op, op.spec), name, c.sizes | c.attrs)
    assert found, f"{c.op}: {name} has no range"
    return found


def elapsed_ms(device: Cuda, lines: list[Callable[[], object]]) -> list[float]:
    """Of each line, from the end of the one before it on the stream to its own end; all are
    launched before anything is waited for."""
    events = [device.cupy.cuda.Event() for _ in range(len(lines) + 1)]
    events[0].record(device.stream)
    for line, event in zip(lines, events[1:], strict=True):
        line()
        event.record(device.stream)
    events[-1].synchronize()
    return [device.cupy.cuda.get_elapsed_time(a, b) for a, b in pairwise(events)]


def ceilings(device: Cuda, dtype: str) -> Ceilings:
    """Measured now."""
    cp = device.cupy
    x, y = cp.ones(1 << 30, cp.uint8), cp.empty(1 << 30, cp.uint8)
    cp.copyto(y, x)
    ms = min(elapsed_ms(device, [partial(cp.copyto, y, x)] * 10))
    del x, y
    cp.get_default_memory_pool().free_all_blocks()
    return Ceilings(device.peak_flops(dtype), 2 * 2**30 / (ms / 1e3))
