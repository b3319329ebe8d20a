"""bench ops: every op call at GPT-2 124M's shapes, against the machine's measured ceilings.

A call is bound by arithmetic or by memory; its ceiling is the slower of the two bounds, each
measured on this machine in the same run: FLOP/s as BLAS reaches them on a large product, bytes/s
as adding two long vectors does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from statistics import geometric_mean

import numpy as np

from backglass.device import get
from backglass.execute.memory import Memory
from backglass.models import gpt2
from backglass.program.cost import line_cost
from backglass.program.record import Call
from backglass.program.step import record_micro, record_update
from backglass.view import View


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do: FLOP/s and bytes/s."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Row:
    """One call.  share: its ceiling's time over its own; ratio: the rival's time over its own."""

    op: str
    rung: str
    shape: str
    dtype: str
    ms: float
    gflops: float
    gbps: float
    ceiling: str
    share: float
    rival: str = ""
    ratio: float | None = None


def bench_ops(
    names: list[str],
    B: int,
    T: int,
    threads: int | None,
    rungs: dict[str, str],
    seconds: float = 0.4,
) -> Iterator[Row]:
    """A row for every distinct call of GPT-2 124M's step (plain program), or of the named ops."""
    device = get("cpu", threads=threads, rungs=rungs)
    blas = get("cpu", threads=threads, rungs={"matmul": "blas"})
    limits = ceilings(threads)
    for c in distinct(names, distinct_calls(B, T)):
        memory = filled(c)
        device.prepare([c], memory)
        ms = best_ms(device.bind([c], memory)[0], seconds)
        rival, rival_ms = "", None
        if c.signature.op == "matmul" and "matmul" not in rungs:
            rival, rival_ms = "blas", best_ms(blas.bind([c], memory)[0], seconds)
        yield row(c, rungs, "fp32", limits, ms, rival, rival_ms)


def distinct(names: list[str], calls: Iterable[Call]) -> Iterator[Call]:
    """Calls of the named ops, or of all, each call and shape once."""
    seen = set()
    for c in calls:
        key = (c.op, shape_of(c))
        if key not in seen and (not names or c.op in names or c.signature.op in names):
            seen.add(key)
            yield c


def row(
    c: Call, rungs: dict[str, str], dtype: str, limits: Ceilings, ms: float, rival: str,
    rival_ms: float | None,
) -> Row:  # fmt: skip
    """What a call that took `ms` comes to, beside its ceilings and its rival."""
    k = line_cost(c, limits.flops_per_s, limits.bytes_per_s)
    arithmetic = k.flops / limits.flops_per_s >= k.nbytes / limits.bytes_per_s
    return Row(
        c.op, rungs.get(c.signature.op, "fastest"), shape_of(c), dtype, ms, k.flops / ms / 1e6,
        k.nbytes / ms / 1e6, "FLOP/s" if arithmetic else "bytes/s", k.seconds * 1e3 / ms, rival,
        rival_ms / ms if rival_ms else None,
    )  # fmt: skip


def means(rows: list[Row]) -> list[str]:
    """A sentence for each dtype's bare matmuls and for those with an epilogue: the geometric mean
    of their ratios, and over what."""
    groups: dict[tuple[str, bool, str], list[Row]] = {}
    for r in rows:
        if r.ratio and "matmul" in r.op:
            library, saved, _ = r.rival.partition(" + ")
            groups.setdefault((r.dtype, bool(saved), library), []).append(r)
    return [_mean(*kind, group) for kind, group in groups.items()]


def _mean(dtype: str, fused: bool, library: str, rows: list[Row]) -> str:
    mean = geometric_mean(r.ratio for r in rows if r.ratio)
    what = "matmuls with an epilogue" if fused else "bare matmuls"
    beside = f"{library} and the passes they save" if fused else library
    over = f"row{'s' * (len(rows) != 1)} of {', '.join(dict.fromkeys(r.op for r in rows))}"
    return f"{what}, {dtype}: {mean:.2f}x {beside}, the geometric mean of {len(rows)} {over}"


def distinct_calls(B: int, T: int) -> Iterator[Call]:
    """Two layers are enough: the others repeat their shapes."""
    c = gpt2.Config(layers=2, max_seq_len=max(1024, T))
    yield from record_micro(gpt2, c, B, T)
    yield from record_update(gpt2, gpt2.Config(max_seq_len=1024))


def names_in(B: int, T: int) -> dict[str, str]:
    """Every call of the step -> its op: what `bench ops` can be asked for."""
    return {c.op: c.signature.op for c in distinct_calls(B, T)}


def shape_of(c: Call) -> str:
    return " ".join(f"{k}={v}" for k, v in c.sizes.items())


def filled(c: Call) -> Memory:
    """Memory in which every operand holds plausible numbers."""
    memory, rng = Memory(), np.random.default_rng(0)
    views = [v for v in (*c.read, *c.written)]
    for v in views:
        if v.group and v.group not in memory.flat:
            memory.allocate(_whole(v, views))
        array = memory.array(v)
        if array.dtype.kind in "iu":
            array[...] = rng.integers(0, 255, v.shape)
        else:
            array[...] = rng.random(v.shape, np.float32) * 0.1
    return memory


def _whole(v: View, views: list[View]) -> View:
    """The flat buffer a member needs: as long as the furthest member of its group in this call."""
    size = max(w.offset + w.size for w in views if w.group == v.group)
    return replace(v, name=v.group, shape=(size,), offset=0)


def best_ms(run: Callable[[], object], seconds: float) -> float:
    """The best of the runs that fit into `seconds`, at least three, after one to warm up."""
    run()
    best, spent, count = np.inf, 0.0, 0
    while spent < seconds or count < 3:
        start = time.perf_counter()
        run()
        took = time.perf_counter() - start
        best, spent, count = min(best, took), spent + took, count + 1
    return best * 1e3


def ceilings(threads: int | None) -> Ceilings:
    """Measured now: the best of a BLAS product and of z = x + y."""
    a = np.random.default_rng(0).random((1536, 1536), np.float32)
    out = np.empty_like(a)
    flops = 2 * 1536**3 / (best_ms(lambda: np.dot(a, a, out=out), 0.5) / 1e3)
    add = get("cpu", threads=threads)
    n = 1 << 25
    x, y, z = (View(name, (n,), "fp32", "act") for name in "xyz")
    call = Call("add", (z,), (x, y), {}, "forward", "ceiling")
    memory = Memory()
    for v in (x, y, z):
        memory.array(v)[...] = 1
    return Ceilings(flops, 12 * n / (best_ms(add.bind([call], memory)[0], 0.5) / 1e3))
