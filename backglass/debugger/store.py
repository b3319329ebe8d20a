"""What a recorded step is on disk: a folder that is written event by event and never rewritten.

    manifest.json   what was recorded and how; `complete` once it is all there
    index.sqlite    events, their operands, the versions of tensors: a transaction an event
    t/000123.safetensors    the full tensors that event 123 made, each once (by hash); none whose
                    numbers are all the same
    src/…           the source files of models and kernels as they were

A recording that was killed is readable up to its last event.  bf16 tensors are stored as their
bits.  Nothing here is pickled, and nothing is evaluated on reading.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import xxhash

from backglass.device.cuda_faults import known
from backglass.device.health import Health, health
from backglass.errors import UserError, wrong_use
from backglass.execute.trace import Event, Operand, Version
from backglass.program.record import Call
from backglass.training.files import write_json

FORMAT = 1
BAD_CELLS = 100  # coordinates kept of numbers that are not finite
# What the index may grow by for a version: its row and operands are 0.3 KB, or 2.5 with a hundred
# bad cells; a picture is 8.7.  Both may fill pages of 4 KB, and are in the write-ahead log too.
ROW_BYTES, PICTURE_BYTES = 2 * 3072, 2 * 9216
FILE_BYTES = 8192  # of a tensor's file besides its numbers: header, last block
SLACK_BYTES = 4 << 20  # the log before it is emptied, manifest, sources
STATISTICS = ("min", "max", "mean", "std", "norm", "zeros", "nans", "infs")

SCHEMA = """
create table events (
    k integer primary key, run integer, phase text, op text, layer integer, text text,
    model text, kernel text, first_line integer, last_line integer, ms real, twin integer
);
create table versions (
    id integer primary key, tensor text, number integer, event integer, shape text, dtype text,
    kind text, hash text, constant integer, min real, max real, mean real, std real, norm real,
    zeros integer, nans integer, infs integer, bad text, down integer, across integer, planes blob,
    histogram blob
);
create table operands (
    event integer, role text, position integer, name text, version integer, adds integer
);
create table tensors (hash text primary key, file text);
create index made on versions (event);
create index named on versions (tensor, number);
create index given on operands (event);
"""


@contextlib.contextmanager
def new_recording(folder: Path) -> Iterator[None]:
    """A folder to record into, which must not be there.  It is removed again when the user, a full
    disk or too little memory ends the block, but kept when a line of the program fails."""
    above = [parent for parent in folder.parents if not parent.exists()]
    (folder / "t").mkdir(parents=True)
    try:
        yield
    except (KeyboardInterrupt, *hindrances()):
        shutil.rmtree(folder, ignore_errors=True)
        for parent in above:
            with contextlib.suppress(OSError):  # something else is in it by now
                parent.rmdir()
        raise


def hindrances() -> tuple[type[BaseException], ...]:
    """What keeps a step from being recorded: the disk, memory (the GPU's too), or the settings."""
    return OSError, MemoryError, UserError, *known("cupy", "cuda.memory.OutOfMemoryError")


class Writer:
    """Fills a new folder.  level: 0 statistics, 1 also pictures and histograms, 2 also the tensors
    that `wanted` says, 3 all; not more than `cap` bytes on disk.

    manifest["versions"] says how many there will be: room is kept for their rows.  Raises UserError
    (wrong use) if cap is less than that, OSError if something cannot be written.
    """

    def __init__(self, folder: Path, level: int, wanted: Any, cap: int, manifest: dict[str, Any]):
        self.folder, self.level, self.wanted, self.cap = folder, level, wanted, cap
        self.manifest = {"format": FORMAT, "complete": False, "left_out": 0, **manifest}
        self.ids: dict[tuple[str, int], int] = {}
        self.stored: set[str] = set()
        self.stored_bytes = 0
        if cap < self._reserve():
            raise wrong_use(
                f"--max-disk {cap / 1e6:,.1f} MB is too little: the statistics of this step may "
                f"take {self._reserve() / 1e6:,.1f} MB at level {level}"
            )
        write_json(folder / "manifest.json", self.manifest)
        with writing(folder / "index.sqlite"):
            self.db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
            self.db.execute("pragma journal_mode = wal")
            self.db.execute("pragma synchronous = normal")  # a kill loses nothing, a power cut may
            self.db.executescript(SCHEMA)

    def versions(self, found: list[tuple[Version, np.ndarray]], name: str) -> None:
        """Record versions that no event made: the state before the step, and inputs."""
        self._write(found, name, [])

    def event(self, e: Event, source: dict[str, Any], made: list[np.ndarray]) -> None:
        """An event with what it made, in the order of e.outs."""
        row = (
            e.index, e.run, e.call.phase, e.call.op, layer_of(e.call), str(e.call), e.call.where,
            source["kernel"], source["first_line"], source["last_line"], e.ms, e.twin,
        )  # fmt: skip
        found = list(zip((o.version for o in e.outs), made, strict=True))
        self._write(found, f"{e.index:06d}", [_insert("events", row)], e)

    def _write(
        self, found: list[tuple[Version, np.ndarray]], name: str, rows: list, e: Event | None = None
    ) -> None:
        """One transaction, after the tensors that it speaks of."""
        full: dict[str, np.ndarray] = {}
        for version, values in found:
            rows.append(self._version(version, values, name, full))
        if full:
            save(self.folder / "t" / f"{name}.safetensors", full)
            rows += [_insert("tensors", (h, name)) for h in full]
        if e is not None:
            rows += [self._operand(e, "in", i, o) for i, o in enumerate(e.ins)]
            rows += [self._operand(e, "out", i, o) for i, o in enumerate(e.outs)]
        with writing(self.folder / "index.sqlite"):
            self.db.execute("begin")
            for statement, values in rows:
                self.db.execute(statement, values)
            self.db.execute("commit")

    def _version(
        self, v: Version, values: np.ndarray, name: str, full: dict[str, np.ndarray]
    ) -> tuple[str, tuple]:
        number = self.ids[v.tensor, v.number] = len(self.ids)
        h = health(values)
        digest = digest_of(values)
        constant = is_constant(values, h, digest)
        if self._wants(v, name) and not constant and digest not in self.stored:
            if self._room(values.nbytes):
                self.stored.add(digest)
                full[digest] = values
        picture: tuple = (None, None, None, None)
        if self.level and not constant:
            planes = h.planes.astype(ml_dtypes.bfloat16).tobytes()
            picture = (*h.planes.shape[1:], planes, h.histogram.astype(np.int64).tobytes())
        bad = bad_cells(values) if h.nans or h.infs else []
        return _insert("versions", (
            number, v.tensor, v.number, v.event, json.dumps(v.view.shape), v.view.dtype,
            v.view.kind, digest, constant, *(getattr(h, s) for s in STATISTICS), json.dumps(bad),
            *picture,
        ))  # fmt: skip

    def _wants(self, v: Version, name: str) -> bool:
        """Whether the values are to be stored; not those that the checkpoint has."""
        edits = self.manifest.get("fork", {}).get("edits", ())
        edited = any((e["tensor"], e["number"]) == (v.tensor, v.number) for e in edits)
        if name == "before" and "checkpoint" in self.manifest["before"] and not edited:
            return False
        return self.level == 3 or v.view.kind == "input" or (self.level == 2 and self.wanted(v))

    def _room(self, nbytes: int) -> bool:
        """Whether a tensor of that size may still be stored; one that may not is counted."""
        index = sum(f.stat().st_size for f in self.folder.glob("index.sqlite*"))
        nbytes += FILE_BYTES
        if self.stored_bytes + nbytes + index + self._reserve() > self.cap:
            self.manifest["left_out"] += 1
            return False
        self.stored_bytes += nbytes
        return True

    def _reserve(self) -> int:
        """Bytes that the index may still grow by."""
        left = self.manifest["versions"] - len(self.ids)
        return SLACK_BYTES + left * (ROW_BYTES + PICTURE_BYTES * (self.level > 0))

    def _operand(self, e: Event, role: str, position: int, o: Operand) -> tuple[str, tuple]:
        version = self.ids[o.version.tensor, o.version.number]
        return _insert("operands", (e.index, role, position, o.name, version, o.adds))

    def close(self, **facts: Any) -> None:
        """All is there.  The index becomes one file, which a read-only folder can hold."""
        with writing(self.folder / "index.sqlite"):
            self.db.execute("pragma wal_checkpoint(truncate)")
            self.db.execute("pragma busy_timeout = 0")
            with contextlib.suppress(sqlite3.OperationalError):  # someone is reading along
                self.db.execute("pragma journal_mode = delete")
            self.db.close()
        self.manifest |= {"complete": True, **facts}
        write_json(self.folder / "manifest.json", self.manifest)


def _insert(table: str, row: tuple) -> tuple[str, tuple]:
    return f"insert into {table} values ({', '.join('?' * len(row))})", row


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A full disk is an OSError, whichever library meets it."""
    from safetensors import SafetensorError

    try:
        yield
    except (sqlite3.Error, SafetensorError) as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


def is_constant(x: np.ndarray, h: Health, digest: str) -> bool:
    """Whether every number is h.min to the bit, and SQLite will keep it: −0 becomes 0 there."""
    value = np.float32(h.min + 0.0)
    if h.nans or h.infs or (h.planes[:2].view(np.int32) != value.view(np.int32)).any():
        return False
    if x.dtype in (np.float32, ml_dtypes.bfloat16):
        return True  # the planes hold their smallest and largest number as it is
    return digest_of(np.full(x.shape, h.min, x.dtype)) == digest


def bad_cells(x: np.ndarray) -> list[list[int]]:
    """Coordinates of the first BAD_CELLS numbers that are not finite (as fp32)."""
    with np.errstate(over="ignore"):
        found = np.flatnonzero(~np.isfinite(x.astype(np.float32)))[:BAD_CELLS]
    return np.stack(np.unravel_index(found, x.shape), -1).tolist()


def layer_of(call: Call) -> int | None:
    """The block that a line belongs to: that of its parameters, or else of what it makes."""
    if call.phase == "update":
        return None
    weights = [v for v in (*call.written, *call.read) if v.kind in ("param", "grad")]
    heads = (v.name.partition(".")[0] for v in weights or call.written)
    return max((int(h[1:]) for h in heads if h[:1] == "h" and h[1:].isdecimal()), default=None)


def digest_of(x: np.ndarray) -> str:
    """Of a tensor's bytes: equal for equal bits."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(x).view(np.uint8).data)


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, whole or not there."""
    from safetensors.numpy import save_file

    part = path.with_suffix(".part")
    with writing(path):
        save_file({k: storable(x) for k, x in tensors.items()}, part)
    part.replace(path)


def storable(x: np.ndarray) -> np.ndarray:
    """bf16 as its bits: NumPy has no such type."""
    return np.ascontiguousarray(x.view(np.uint16) if x.dtype == ml_dtypes.bfloat16 else x)
