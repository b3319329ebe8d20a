"""Recording one optimizer step of a session, op by op, without disturbing the session.

What is recorded is the plain program with attention spelled out, because it is made of the ops that
people read about; the run itself may fuse.  At level 0 it is the run's own program, as it was
transformed: statistics of what is really computed.  The state is put back afterwards, so a run that
is recorded now and then has the same bits as one that is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import backglass
from backglass import models
from backglass.data.tokenizer import Tokenizer
from backglass.debugger.edit import Edit, Fork, apply
from backglass.debugger.store import Writer, new_recording
from backglass.device import Device
from backglass.errors import wrong_use
from backglass.execute.trace import Event, Tracer, Version
from backglass.ops import signature, table
from backglass.program.plan import ARENA, plan
from backglass.program.record import Call
from backglass.program.step import Tensors, declare, record_micro, record_update
from backglass.training.files import write_json
from backglass.training.session import Batch, Session, hyper_of, write_batch
from backglass.view import View

PACKAGE = Path(backglass.__file__).parent
LIMIT_BYTES = 4 << 30  # of a recording, and of all that a run makes by itself


@dataclass(frozen=True)
class Wanted:
    """How much to record.  tensors: names or patterns (h3.*) of level 2; cap: bytes on disk."""

    level: int = 1
    tensors: tuple[str, ...] = ()
    cap: int = LIMIT_BYTES

    def __call__(self, v: Version) -> bool:
        return any(fnmatch.fnmatchcase(v.tensor, pattern) for pattern in self.tensors)


class Sink(Protocol):
    """Who is told of a step: a Writer, or one who compares."""

    def versions(self, found: list[tuple[Version, np.ndarray]], name: str) -> None:
        """Versions that no event made, with their values."""
        ...

    def event(self, e: Event, source: dict[str, Any], made: list[np.ndarray]) -> None:
        """An event, and the values of its outputs."""
        ...


@dataclass(frozen=True)
class Recorded:
    """Of the recorded step: what the plain program computed, and how much there is of it."""

    loss: float
    grad_norm: float
    events: int
    stored_bytes: int
    left_out: int


def record_step(
    session: Session, batches: list[Batch], step: int, folder: Path, wanted: Wanted,
    tokenizer: Tokenizer, before: dict[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
    fork: Fork | None = None, watch: tuple[Sink, ...] = (),
) -> Recorded:  # fmt: skip
    """Record update `step` (0-based) of the session on these micro-batches into a new folder.

    before: where the state before the step can be had again, for the manifest; fork: edits to make
    on the way; watch: who is told before the recording is written.  Raises UserError (wrong use)
    for tensors that there are not.  What a full disk, too little memory or Ctrl-C
    interrupts is removed again; what a kill interrupts can be read.
    """
    edits = fork.edits if fork else ()
    recording = Recording(session, batches, step, progress, edits, own=wanted.level == 0)
    recording.require(wanted.tensors)
    manifest = recording.manifest(wanted, tokenizer) | {"before": before}
    manifest |= {"fork": fork.row()} if fork else {}
    with new_recording(folder):
        writer = Writer(folder, wanted.level, wanted, wanted.cap, manifest)
        with contextlib.closing(writer.db):
            recording.sources.copy(folder)
            loss, norm = recording.execute(*watch, writer)
            facts = {"loss": loss, "grad_norm": norm, "updates": recording.updates}
            writer.close(**facts, stored_bytes=writer.stored_bytes)
    left_out = writer.manifest["left_out"]
    return Recorded(loss, norm, recording.tracer.events, writer.stored_bytes, left_out)


class Recording:
    """The plain programs of a session's step, on memory that shares the session's state and its
    arena, which is free between two programs.  edits: made where their versions are made;
    own: the session's own programs instead."""

    def __init__(
        self, session: Session, batches: list[Batch], step: int,
        progress: Callable[[int, int], None], edits: tuple[Edit, ...] = (),
        own: bool = False,
    ):  # fmt: skip
        self.session, self.batches, self.step, self.progress = session, batches, step, progress
        self.edits, self.own = edits, own
        s, c = session.s, session.c if own else models.adapted(session.c, attention="explicit")
        model, bound = models.of(c), ARENA in session.memory.flat
        self.memory = session.memory.sharing(*session.flats, *([ARENA] * bound))
        self.t: Tensors = declare(model, c, s.batch_size, s.seq_len, s.dtype, self.memory)
        if own:
            self.memory.arena(session.budget.arena)
            self.micro, self.update = (session.plans[name].placed() for name in ("micro", "update"))
        else:
            micro = record_micro(model, c, s.batch_size, s.seq_len, s.dtype)
            placed = plan(micro, inplace=False)  # the bits of eager execution, which has no aliases
            self.memory.arena(placed.peak)
            self.micro, self.update = placed.placed(), record_update(model, c, s.dtype)
        spaces = [self.t.p, self.t.dp, self.t.m, self.t.v, *([self.t.master] * bool(self.t.master))]
        self.members = {space.flat.name: list(space) for space in spaces}
        self.tracer = Tracer(session.device, self.memory, self.members)
        self.lines = [*self.micro] * len(batches) + [*self.update]
        self.updates: dict[str, float] = {}
        self.sources = Sources(session.device)
        for call in self.lines:
            self.sources.of(call)

    def execute(self, *sinks: Sink) -> tuple[float, float]:
        """Execute everything and tell the sinks, in order; (mean loss, gradient norm)."""
        with unchanged(self.session) as before:
            found = self._execute(sinks)
            self.updates = self._updates(before)
            return found

    def _updates(self, before: np.ndarray) -> dict[str, float]:
        """‖p′ − p‖ of every parameter: which no statistic of p or p′ tells."""
        views = {v.name.partition("/")[0]: v for v in self.t.master or self.t.p}
        found = {}
        for slot in self.t.layout.slots:
            old = before[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            change = self.memory.peek(views[slot.name]).astype(np.float32) - old
            found[slot.name] = math.sqrt(np.square(change, dtype=np.float64).sum())
        return found

    def _execute(self, sinks: tuple[Sink, ...]) -> tuple[float, float]:
        s, io, loss = self.session.s, self.t.io, 0.0
        self._note(sinks, "before", self.state)
        counted = sum(int((targets >= 0).sum()) for _, targets in self.batches)
        for k, batch in enumerate(self.batches):
            weights = write_batch(self.memory, io, batch, counted)
            self.memory.write(io.seed, (s.seed, self.step * s.micro_batches + k))
            self._note(sinks, f"batch-{k}", [self.tracer.renewed(v) for v in self.given])
            for event in self.tracer.run(self.micro, transformed=self.own):
                self._record(sinks, event)
            loss += float(np.sum(self.memory.read(io.loss).astype(np.float64) * weights))
        self.memory.write(io.hyper, hyper_of(s, self.step))
        self._note(sinks, "hyper", [self.tracer.renewed(io.hyper)])
        for event in self.tracer.run(self.update):
            self._record(sinks, event)
        return loss, float(self.memory.read(io.norm)[0])

    def _note(self, sinks: tuple[Sink, ...], name: str, views: list[View]) -> None:
        found = self._values([self.tracer.current(v) for v in views])
        for sink in sinks:
            sink.versions(found, name)

    def _record(self, sinks: tuple[Sink, ...], event: Event) -> None:
        made = [values for _, values in self._values([o.version for o in event.outs])]
        for sink in sinks:
            sink.event(event, self.sources.of(event.call), made)
        self.progress(event.index + 1, len(self.lines))

    def _values(self, versions: list[Version]) -> list[tuple[Version, np.ndarray]]:
        """Versions that have just been made, edited, with their values."""
        apply(self.edits, versions, self.memory)
        return [(v, self.memory.peek(v.view)) for v in versions]

    @property
    def state(self) -> list[View]:
        """What there is before the step: the flat buffers, and the model's constants."""
        constants = [v for v in self.t.io if v.values is not None]
        return [v for views in self.members.values() for v in views] + constants

    @property
    def given(self) -> list[View]:
        """What the host writes for a micro-batch."""
        io, read = self.t.io, {v.name for call in self.micro for v in call.read}
        return [v for v in (io.ids, io.targets, io.dloss, io.seed) if v.name in read]

    @property
    def made(self) -> list[View]:
        """What the lines make, in order."""
        written = (v for call in self.lines for v in call.written)
        return [m for v in written for m in self.members.get(v.name, [v])]

    def require(self, patterns: tuple[str, ...]) -> None:
        """Each names at least one tensor."""
        names = {v.name for v in (*self.state, *self.given, *self.made)}
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise wrong_use(
                    f"--tensors {pattern}: this step has no such tensor; names are like h0.qkv, "
                    "dwte or, for all of a layer, h3.*"
                )

    def manifest(self, wanted: Wanted, tokenizer: Tokenizer) -> dict[str, Any]:
        s, given = self.session.s, len(self.batches) * len(self.given) + 1
        ids = np.unique([ids for batch in self.batches for ids in batch])
        return {
            "backglass": backglass.__version__, "step": self.step + 1, "level": wanted.level,
            "program": "own" if self.own else "plain",
            "tensors": wanted.tensors, "cap": wanted.cap, "device": self.session.device.name,
            "dtype": s.dtype, "config": dataclasses.asdict(self.session.c),
            "settings": dataclasses.asdict(s), "runs": len(self.batches) + 1,
            "events": len(self.lines), "versions": len(self.state) + given + len(self.made),
            "text": {int(i): tokenizer.decode([int(i)]) for i in ids if i >= 0},
            "sources": self.sources.hashes(),
        }  # fmt: skip


def note_own(folder: Path, session: Session, loss: float, norm: float) -> None:
    """Beside the recorded step, what the run's own program computed: it may fuse, and its attention
    may be flash."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    ops = {c.op for plan in session.plans.values() for c in plan.program}
    fused = sorted(op for op in ops if signature(op).equals)
    manifest["own"] = {
        "attention": session.s.attention, "fused": fused, "recompute": session.s.recompute,
        "loss": loss, "grad_norm": norm,
    }  # fmt: skip
    write_json(path, manifest)


def recordings(run: Path) -> dict[int, Path]:
    """The recorded steps of a run."""
    found = {p.name.removeprefix("step-"): p for p in (run / "trace").glob("step-*")}
    return {
        int(number): p for number, p in found.items()
        if number.isdecimal() and (p / "manifest.json").is_file()
    }  # fmt: skip


@contextlib.contextmanager
def unchanged(session: Session) -> Iterator[np.ndarray]:
    """Afterwards parameters, moments and gradients are what they were; gradients begin at zero.
    Gives the parameters, in full precision."""
    t, memory = session.t, session.memory
    flats = [space.flat for space in (t.p, t.dp, t.m, t.v, t.master) if space]
    kept = [memory.read(flat) for flat in flats]
    memory.write(t.dp.flat, 0)
    try:
        yield kept[-1 if t.master else 0]
    finally:
        for flat, values in zip(flats, kept, strict=True):
            memory.write(flat, values)


class Sources:
    """Where the kernel of each call is written, and copies of those files and of its caller's."""

    def __init__(self, device: Device):
        self.device = device
        self.found: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}

    def of(self, call: Call) -> dict[str, Any]:
        """{"kernel": file, "first_line", "last_line"} of the function that ran."""
        if call.op not in self.found:
            op = table()[call.signature.op]
            home = getattr(self.device, "module", lambda name: op.maths)(call.op)
            function = getattr(home, call.op)
            function = inspect.unwrap(getattr(function, "py_func", function))
            lines, first = inspect.getsourcelines(function)
            self.found[call.op] = {
                "kernel": self._keep(inspect.getsourcefile(function) or ""),
                "first_line": first, "last_line": first + len(lines) - 1,
            }  # fmt: skip
            self._keep(op.maths.__file__ or "")
        if (caller := PACKAGE / call.where.partition(":")[0]).is_file():  # a model, program/step.py
            self._keep(str(caller))
        return self.found[call.op]

    def _keep(self, file: str) -> str:
        """The name of a file in the recording: its path in the package, or of an op of a user's."""
        path = Path(file).resolve()
        inside = path.is_relative_to(PACKAGE)
        short = path.relative_to(PACKAGE) if inside else Path("ops", *path.parts[-2:])
        if short.as_posix() not in self.files:
            self.files[short.as_posix()] = path.read_bytes()
        return short.as_posix()

    def hashes(self) -> dict[str, str]:
        """{name: SHA-256}."""
        return {name: hashlib.sha256(text).hexdigest() for name, text in self.files.items()}

    def copy(self, folder: Path) -> None:
        """Put the files into the recording."""
        for name, text in self.files.items():
            target = folder / "src" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(text)
