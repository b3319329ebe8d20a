"""bench ops --tune: the tiles of the GPU kernels, each candidate timed at GPT-2 124M's shapes.

A module of launchers that has something to choose names it beside the choice:

    ROWS = 2
    CANDIDATES = {("layernorm", "add_layernorm"): ({"ROWS": 1}, {"ROWS": 4})}

for the calls that depend on it: what its constants may be instead; of a table, single entries;
of a module it has imported, "module.CONSTANT".
Here every candidate replaces the constants while the call is bound, run and timed, in bf16; its
outputs are held against those of the choice.  Nothing is written: the verdict names the file and
the constants to edit, if they save more than GAIN of the time of all shapes together.

Kernels are compiled first, in as many processes as there are cores (worker.py, kind "tiles"), into
Triton's cache; that also tells their registers.  --aot stops there: it needs no GPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from backglass.bench import measured
from backglass.bench.gpu import calls, filled, replayed_ms
from backglass.bench.ops import distinct, shape_of
from backglass.checks.kernel import ULP, rms
from backglass.device.cuda_faults import known
from backglass.errors import wrong_use
from backglass.program.cost import line_cost
from backglass.program.record import Call

GAIN = 0.03
DTYPE = "bf16"
PACKAGE = Path(__file__).parent.parent
SAMPLES = 1 << 21  # numbers of an output that are compared
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # that a program may have


@dataclass(frozen=True)
class Trial:
    """One call with some of its module's constants changed, or as they are chosen.  serves: the
    calls that these constants are for."""

    call: Call
    module: ModuleType
    serves: tuple[str, ...]
    changes: dict[str, Any]
    chosen: bool = False

    def settings(self) -> str:
        """PIECE=64, FORWARD['bf16', False]=(64, 64, 4, 2), as one would write it."""
        shown = []
        for name, value in self.changes.items():
            entries = value.items() if isinstance(value, dict) else [(None, value)]
            for key, x in entries:
                at = "" if key is None else f"[{str(key).strip('()')}]"
                shown.append(f"{name}{at}={x}")
        return ", ".join(shown)


@dataclass(frozen=True)
class Tile:
    """What was found: of which call, and where its constants are.  ms is None where it was not
    timed; note says why it cannot be, or that its result is wrong."""

    op: str
    shape: str
    file: str
    settings: str
    chosen: bool
    ms: float | None = None
    tflops: float = 0.0
    tbytes: float = 0.0
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    note: str = ""

    def __str__(self) -> str:
        took = ""
        if self.ms is not None:
            took = f"{self.ms:9.3f} ms {self.tflops:7.1f} TFLOP/s {self.tbytes:6.2f} TB/s  "
        kernel = (
            f"{self.registers:4} registers, {self.spill_bytes} bytes spilled, "
            f"{self.shared_bytes >> 10} KiB"
        )
        what = self.note or took + kernel
        return f"  {'chosen' if self.chosen else '':6} {self.settings:58} {what}"


def trials(device: Any, names: list[str], B: int, T: int) -> list[Trial]:
    """Of every line of the fused step that has candidates, each shape once: the choice first, then
    what differs from it."""
    found = []
    for c in distinct(names, calls(device, B, T, DTYPE)):
        module = sys.modules[getattr(device.module(c.op), c.op).__module__]
        for serves, candidates in getattr(module, "CANDIDATES", {}).items():
            if c.op in serves:
                found.append(Trial(c, module, serves, _choice(module, candidates), chosen=True))
                found += [
                    Trial(c, module, serves, some)
                    for some in candidates
                    if any(_now(module, k) != v for k, v in _merged(module, some).items())
                ]
    return found


def _choice(module: ModuleType, candidates: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """What the module has in every place that a candidate changes."""
    chosen: dict[str, Any] = {}
    for name, value in (item for some in candidates for item in some.items()):
        now = _now(module, name)
        if isinstance(value, dict):
            chosen.setdefault(name, {}).update({key: now[key] for key in value})
        else:
            chosen[name] = now
    return chosen


def _merged(module: ModuleType, changes: dict[str, Any]) -> dict[str, Any]:
    """The constants whole: of a table the other entries too."""
    return {
        name: {**_now(module, name), **value} if isinstance(value, dict) else value
        for name, value in changes.items()
    }


@contextmanager
def changed(t: Trial) -> Iterator[None]:
    """The module with a trial's constants in the place of its own."""
    before = {name: _now(t.module, name) for name in t.changes}
    try:
        for name, value in _merged(t.module, t.changes).items():
            setattr(*_place(t.module, name), value)
        yield
    finally:
        for name, value in before.items():
            setattr(*_place(t.module, name), value)


def _place(module: ModuleType, name: str) -> tuple[Any, str]:
    """(the module that has the constant, what it is called there)."""
    inner, _, constant = name.rpartition(".")
    return (getattr(module, inner) if inner else module), constant


def _now(module: ModuleType, name: str) -> Any:
    return getattr(*_place(module, name))


# ---------------------------------------------------------------- compiling


def compile_all(names: list[str], B: int, T: int, rungs: dict[str, str], arch: int) -> list[Tile]:
    """A tile for every trial, without times, from worker processes."""
    count = min(32, os.cpu_count() or 1)
    job = {
        "kind": "tiles", "names": names, "batch_size": B, "seq_len": T, "rungs": rungs,
        "arch": arch, "of": count, "threads": 0,
    }  # fmt: skip
    with ThreadPoolExecutor(count) as pool:
        shares = list(pool.map(measured.ours, [job | {"share": k} for k in range(count)]))
    total = sum(len(s["tiles"]) for s in shares)
    return [Tile(**shares[k % count]["tiles"][k // count]) for k in range(total)]


def compile_share(job: dict[str, Any]) -> dict[str, Any]:
    """In a worker: the job's share of the trials, every `of`-th from `share` on."""
    from backglass.device.aot import Aot

    every = trials(Aot(job["arch"], job["rungs"]), job["names"], job["batch_size"], job["seq_len"])
    mine = every[job["share"] :: job["of"]]
    return {"tiles": [asdict(compile_one(t, Aot(job["arch"], job["rungs"]))) for t in mine]}


def compile_one(t: Trial, device: Any) -> Tile:
    with changed(t):
        try:
            device.bind([t.call], device.memory())[0]()
        except Exception as error:  # of Triton's compiler, of ptxas: whatever a tile provokes
            return replace(_tile(t), note=f"does not compile: {_first_line(error)}")
    found = device.compiled
    shared = max(r.shared_bytes for r in found)
    limit = SHARED_BYTES.get(device.arch, shared)
    why = f"needs {shared >> 10} KiB of shared memory, there are {limit >> 10}" * (shared > limit)
    return replace(
        _tile(t), registers=max(r.registers for r in found), shared_bytes=shared,
        spill_bytes=sum(r.spill_bytes for r in found), note=why,
    )  # fmt: skip


def _tile(t: Trial) -> Tile:
    file = Path(t.module.__file__ or "").relative_to(PACKAGE.parent)
    return Tile(t.call.op, shape_of(t.call), file.as_posix(), t.settings(), t.chosen)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip().splitlines()[0][:90]


# ---------------------------------------------------------------- timing


def time_all(
    every: list[Trial], tiles: list[Tile], device: Any, ms_of: Callable[[Any], float]
) -> Iterator[Tile]:
    """The tiles with their times, call by call.  ms_of: of a line that has run once."""
    for _, group in groupby(zip(every, tiles, strict=True), key=lambda pair: id(pair[0].call)):
        pairs = list(group)
        memory = device.memory()
        mine = filled(pairs[0][0].call, memory)
        start, wanted = _contents(mine, memory), None
        for t, tile in pairs:
            if not tile.note:
                tile, outputs = _time_one(t, tile, device, memory, mine, start, ms_of)
                wanted = outputs if t.chosen else wanted
                if wanted and outputs and (wrong := _differs(mine, wanted, outputs)):
                    tile = replace(tile, ms=None, note=wrong)
            yield tile


def _time_one(
    t: Trial, tile: Tile, device: Any, memory: Any, mine: Call, start: dict, ms_of: Callable
) -> tuple[Tile, list[np.ndarray]]:
    """(the tile with its time, samples of the outputs of its first run)."""
    for v in mine.outs:
        if v is not None:
            memory.write(v, start.get(v.name, np.nan))
    with changed(t):
        try:
            line = device.bind([mine], memory)[0]
            line()
            outputs = [_sample(memory.read(v)) for v in mine.outs if v is not None]
            ms = ms_of(line)
        except Exception as error:
            if not isinstance(error, known("triton.runtime.errors", "OutOfResources")):
                raise
            return replace(tile, note=_first_line(error)), []
    k = line_cost(t.call, 1.0, 1.0)
    return replace(tile, ms=ms, tflops=k.flops / ms / 1e9, tbytes=k.nbytes / ms / 1e9), outputs


def _contents(c: Call, memory: Any) -> dict[str, np.ndarray]:
    """What outputs hold that the call reads: those it adds to, it updates, it is also given."""
    sig, given = c.signature, {v.name for v in c.ins if v is not None}
    return {
        v.name: memory.read(v)
        for o, v in zip(sig.outs, c.outs, strict=True)
        if v is not None and (v.add or o.name in sig.updated or v.name in given)
    }


def _sample(x: np.ndarray) -> np.ndarray:
    """Of numbers in all places: the stride is odd, so it meets every column of a tile."""
    return x.ravel()[:: -(-x.size // SAMPLES) | 1].astype(np.float64)


def _differs(c: Call, want: list[np.ndarray], found: list[np.ndarray]) -> str:
    """What is wrong, or nothing.  The choice has passed the kernel check; here it is the truth."""
    for v, a, b in zip((v for v in c.outs if v is not None), want, found, strict=True):
        apart, limit = rms(b - a), 4 * ULP[v.dtype] * rms(a)
        if not apart <= limit:
            return f"wrong: {v.name} is {apart:.1e} off the choice's, {limit:.1e} allowed"
    return ""


# ---------------------------------------------------------------- the verdict


def verdicts(every: list[Trial], tiles: list[Tile]) -> list[str]:
    """A sentence for each choice: whether some candidate is faster over all its shapes."""
    groups: dict[tuple[str, tuple[str, ...]], list[Tile]] = {}
    for t, tile in zip(every, tiles, strict=True):
        groups.setdefault((tile.file, t.serves), []).append(tile)
    return [f"{file}, {', '.join(serves)}: {_verdict(g)}" for (file, serves), g in groups.items()]


def _verdict(tiles: list[Tile]) -> str:
    found: dict[str, list[float | None]] = {}
    for tile in tiles:
        found.setdefault(tile.settings, []).append(tile.ms)
    whole = {k: sum(ms for ms in v if ms) for k, v in found.items() if None not in v}
    chosen = next(tile.settings for tile in tiles if tile.chosen)
    if chosen not in whole:
        return "the choice itself was not timed"
    best = min(whole, key=lambda settings: whole[settings])
    gain = 1 - whole[best] / whole[chosen]
    if gain <= GAIN:
        return f"the choice stands; nothing saves more than {max(gain, 0):.1%}"
    return f"{best} saves {gain:.1%} of {whole[chosen]:.3f} ms: edit it there, not {chosen}"


# ---------------------------------------------------------------- the command


def tune(
    names: list[str], B: int, T: int, gpu: str, rungs: dict[str, str], say: Callable[[str], None]
) -> list[Tile]:
    """Compile every trial and, unless gpu is empty, time it there; `say` is told a line for each,
    the fastest of each call after its last, and the verdicts.  Raises UserError (wrong use) for a
    name without candidates, or a GPU without bf16."""
    device, arch = _device(gpu, rungs)
    every = trials(device, names, B, T)
    tried = {name for t in every for name in (t.call.op, t.call.signature.op)}
    if missing := [n for n in names if n not in tried]:
        known = ", ".join(dict.fromkeys(t.call.op for t in trials(device, [], B, T)))
        raise wrong_use(f"bench ops --tune {missing[0]}: candidates have {known}")
    tiles = compile_all(names, B, T, rungs, arch)
    if gpu:
        tiles = time_all(every, tiles, device, partial(replayed_ms, device))
    found: list[Tile] = []
    for (op, shape), group in groupby(tiles, key=lambda tile: (tile.op, tile.shape)):
        say(f"\n{op} {shape}, {DTYPE}")
        for tile in group:
            say(str(tile))
            found.append(tile)
        if timed := [tile for tile in found if (tile.op, tile.shape) == (op, shape) and tile.ms]:
            say(f"  the fastest: {min(timed, key=lambda tile: tile.ms or 0).settings}")
    if gpu:
        say("")
        for sentence in verdicts(every, found):
            say(sentence)
    return found


def _device(gpu: str, rungs: dict[str, str]) -> tuple[Any, int]:
    """(the GPU, or what only compiles for a Hopper one; its architecture)."""
    if not gpu:
        from backglass.device.aot import Aot

        return Aot(90, rungs), 90
    from backglass.device import cuda, get

    device: Any = get(gpu, rungs=rungs)
    if DTYPE not in device.dtypes:
        raise wrong_use(f"bench ops --tune is for {DTYPE}; {gpu} has {', '.join(device.dtypes)}")
    return device, cuda.arch(device.index, device.cupy)
