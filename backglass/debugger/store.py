"""What a recorded step is on disk: a folder that is written event by event and never rewritten.

    manifest.json   what was recorded and how; `complete` once it is all there
    index.sqlite    events, their operands, the versions of tensors: a transaction an event
    t/000123.safetensors    the full tensors that event 123 made, each once (by hash)
    src/…           the source files of models and kernels as they were

A recording that was killed is readable up to its last event.  bf16 tensors are stored as their
bits.  Nothing here is pickled, and nothing is evaluated on reading.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import xxhash

from backglass.device.health import health
from backglass.execute.trace import Event, Operand, Version
from backglass.program.record import Call
from backglass.training.files import write_json

FORMAT = 1
BAD_CELLS = 100  # coordinates kept of numbers that are not finite
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


class Writer:
    """Fills a folder.  level: 0 statistics, 1 also pictures and histograms, 2 also the tensors
    that `wanted` says, 3 all; not more than `cap` bytes on disk."""

    def __init__(self, folder: Path, level: int, wanted: Any, cap: int, manifest: dict[str, Any]):
        self.folder, self.level, self.wanted, self.cap = folder, level, wanted, cap
        (folder / "t").mkdir(parents=True)
        self.manifest = {"format": FORMAT, "complete": False, "left_out": 0, **manifest}
        write_json(folder / "manifest.json", self.manifest)
        self.db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
        self.db.execute("pragma journal_mode = wal")
        self.db.executescript(SCHEMA)
        self.ids: dict[tuple[str, int], int] = {}
        self.stored: set[str] = set()
        self.stored_bytes = 0
        self.had = False

    def versions(self, found: list[tuple[Version, np.ndarray]], name: str) -> None:
        """Record versions that no event made: the state before the step, and inputs."""
        self.had = name == "before" and "checkpoint" in self.manifest["before"]
        self._write(found, name, [])
        self.had = False

    def event(self, e: Event, source: dict[str, Any], made: list[np.ndarray]) -> None:
        """An event with what it made, in the order of e.outs."""
        row = (
            e.index, e.run, e.call.phase, e.call.op, layer_of(e.call), str(e.call), e.call.where,
            source["kernel"], source["first_line"], source["last_line"], e.ms, e.twin,
        )  # fmt: skip
        found = list(zip((o.version for o in e.outs), made, strict=True))
        statements = [(f"insert into events values ({', '.join('?' * len(row))})", row)]
        self._write(found, f"{e.index:06d}", statements, e)

    def _write(
        self, found: list[tuple[Version, np.ndarray]], name: str, rows: list, e: Event | None = None
    ) -> None:
        full: dict[str, np.ndarray] = {}
        for version, values in found:
            rows.append(self._version(version, values, full))
        if full:
            save(self.folder / "t" / f"{name}.safetensors", full)
            rows += [("insert into tensors values (?, ?)", (h, name)) for h in full]
        if e is not None:
            rows += [self._operand(e, "in", i, o) for i, o in enumerate(e.ins)]
            rows += [self._operand(e, "out", i, o) for i, o in enumerate(e.outs)]
        self.db.execute("begin")
        for statement, values in rows:
            self.db.execute(statement, values)
        self.db.execute("commit")

    def _version(
        self, v: Version, values: np.ndarray, full: dict[str, np.ndarray]
    ) -> tuple[str, tuple]:
        number = self.ids[v.tensor, v.number] = len(self.ids)
        h = health(values.astype(np.float64) if values.dtype.kind in "iu" else values)
        digest = digest_of(values)
        constant = not h.nans + h.infs and h.min == h.max
        bad = []
        if h.nans or h.infs:
            bad = np.argwhere(~np.isfinite(values.astype(np.float32)))[:BAD_CELLS].tolist()
        keep = self._wants(v) and not constant and digest not in self.stored
        if keep and self._room(values.nbytes):
            self.stored.add(digest)
            full[digest] = values
        picture: tuple = (None, None, None, None)
        if self.level and not constant:
            planes = h.planes.astype(ml_dtypes.bfloat16).tobytes()
            picture = (*h.planes.shape[1:], planes, h.histogram.astype(np.int64).tobytes())
        statistics = [getattr(h, s) for s in STATISTICS]
        row = (
            number, v.tensor, v.number, v.event, json.dumps(v.view.shape), v.view.dtype,
            v.view.kind, digest, constant, *statistics, json.dumps(bad), *picture,
        )  # fmt: skip
        return f"insert into versions values ({', '.join('?' * len(row))})", row

    def _wants(self, v: Version) -> bool:
        """Whether the values are to be stored; not those that the checkpoint has."""
        if self.had:
            return False
        return self.level == 3 or v.view.kind == "input" or (self.level == 2 and self.wanted(v))

    def _room(self, nbytes: int) -> bool:
        """Whether that many bytes may still be stored; what may not is counted."""
        index = sum(f.stat().st_size for f in self.folder.glob("index.sqlite*"))
        if self.stored_bytes + index + nbytes + nbytes // 8 > self.cap:
            self.manifest["left_out"] += 1
            return False
        self.stored_bytes += nbytes
        return True

    def _operand(self, e: Event, role: str, position: int, o: Operand) -> tuple[str, tuple]:
        version = self.ids[o.version.tensor, o.version.number]
        return "insert into operands values (?, ?, ?, ?, ?, ?)", (
            e.index, role, position, o.name, version, o.adds,
        )  # fmt: skip

    def close(self, **facts: Any) -> None:
        """All is there."""
        self.db.execute("pragma wal_checkpoint(truncate)")
        self.db.close()
        self.manifest |= {"complete": True, **facts}
        write_json(self.folder / "manifest.json", self.manifest)


def layer_of(call: Call) -> int | None:
    """The block that a line belongs to: that of its parameters, or else of what it makes."""
    if call.phase == "update":
        return None
    weights = [v for v in (*call.written, *call.read) if v.kind in ("param", "grad")]
    heads = (v.name.partition(".")[0] for v in weights or call.written)
    return max((int(h[1:]) for h in heads if h[:1] == "h" and h[1:].isdecimal()), default=None)


def digest_of(x: np.ndarray) -> str:
    """Of a tensor's bytes: equal for equal bits."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(x).view(np.uint8))


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file, whole or not there."""
    from safetensors.numpy import save_file

    part = path.with_suffix(".part")
    save_file({k: storable(x) for k, x in tensors.items()}, part)
    part.replace(path)


def storable(x: np.ndarray) -> np.ndarray:
    """bf16 as its bits: NumPy has no such type."""
    return np.ascontiguousarray(x.view(np.uint16) if x.dtype == ml_dtypes.bfloat16 else x)
