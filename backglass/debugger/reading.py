"""A recording as the studio reads it: rows of its index as JSON, checked before they are used.

It may come from anybody.  What its manifest and index say is held against what they must be, an
SQL query is stopped when it takes too long, and no name in them becomes a path unchecked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backglass import models
from backglass.debugger.dims import dims_of
from backglass.debugger.edit import fork_of
from backglass.debugger.problem import Problem, damaged
from backglass.debugger.store import FORMAT, SCHEMA, STATISTICS
from backglass.errors import UserError
from backglass.tools.found import read_json
from backglass.view import DTYPES

LARGEST_MANIFEST_BYTES = 8 << 20
LARGEST_SOURCE_BYTES = 256 << 10
LARGEST_ROW_BYTES = 64 << 10  # of the index
LARGEST_TEXT = 16 << 10
LARGEST_TEXTS = 64 << 20  # of all events
MOST_EVENTS = 200_000
MOST_OPERANDS = 5_000  # of one event
MOST_VERSIONS = 1_000_000
MOST_AXES = 8
QUERY_SECONDS = 20
HASH = re.compile(r"\w{1,64}", re.ASCII)  # it is sent in a header
SOURCE_NAME = re.compile(r"\w+(/\w+)*\.py", re.ASCII)

NUMBER, MAYBE = (int, float), (int, type(None))
MANIFEST = {
    "step": int, "level": int, "events": int, "complete": bool, "device": str, "dtype": str,
    "config": dict, "before": dict, "settings": dict, "text": dict,
}  # fmt: skip
EVENT = {
    "k": int, "run": int, "phase": str, "op": str, "layer": MAYBE, "text": str, "model": str,
    "kernel": str, "first_line": int, "last_line": int, "ms": NUMBER, "twin": MAYBE,
}  # fmt: skip
VERSION = {
    "id": int, "tensor": str, "number": int, "event": MAYBE, "shape": str, "dtype": str,
    "kind": str, "hash": str, "constant": int, "bad": str, "pictured": int, "in_file": int,
    **dict.fromkeys(STATISTICS, NUMBER),
}  # fmt: skip
OPERAND = {"name": str, "adds": int, "version": int}
SELECT_VERSION = (
    "select v.id, v.tensor, v.number, v.event, v.shape, v.dtype, v.kind, v.hash, v.constant, "
    "v.bad, v.planes is not null, exists (select 1 from tensors t where t.hash = v.hash), "
    + ", ".join(f"v.{s}" for s in STATISTICS)
    + " from versions v "
)


class Reading:
    """Safe to ask from several threads.  Raises Problem for what is not there or damaged."""

    def __init__(self, folder: Path):
        self.folder, self.manifest = folder, manifest_of(folder)
        self.index, self.lock, self.until = plain(folder, "index.sqlite"), threading.Lock(), 0.0
        try:
            uri = uri_of(self.index, self.manifest["complete"])
            self.db = sqlite3.connect(uri, uri=True, check_same_thread=False)
        except sqlite3.Error as error:
            raise damaged(self.index, error) from None
        self.db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_ROW_BYTES)
        self.db.set_progress_handler(lambda: time.monotonic() > self.until, 10_000)
        with self.asking() as db:
            db.execute("pragma trusted_schema = off")
            require_schema(db)
            texts = "sum(length(phase) + length(op) + length(text) + length(model))"
            count, length = db.execute(f"select count(*), {texts} from events").fetchone()
        if count > MOST_EVENTS or (length or 0) > LARGEST_TEXTS:
            raise Problem(413, f"{self.index} has {count:,} events; {MOST_EVENTS:,} can be shown")

    @contextlib.contextmanager
    def asking(self) -> Iterator[sqlite3.Connection]:
        """The index, for one question; what is wrong with the answer becomes a Problem."""
        with self.lock:
            self.until = time.monotonic() + QUERY_SECONDS
            try:
                yield self.db
            except (sqlite3.Error, ValueError, TypeError, OverflowError, RecursionError) as error:
                raise damaged(self.index, error) from None

    def close(self) -> None:
        with self.lock:
            self.db.close()

    @property
    def model(self) -> str:
        """The name of the model that was trained."""
        name = self.manifest["settings"].get("model", "gpt2")
        if name not in models.NAMES:
            raise damaged(self.folder / "manifest.json", f"there is no model {name!r}")
        return name

    def count(self) -> int:
        """Events so far: a recording that is being made has more each time."""
        with self.asking() as db:
            return db.execute("select count(*) from events").fetchone()[0]

    def overview(self) -> dict[str, Any]:
        """The manifest, the tokens' texts, and a row for every event."""
        hidden = ("settings", "text")
        manifest = {k: v for k, v in self.manifest.items() if k not in hidden}
        return {"manifest": manifest, "text": self.manifest["text"], "events": self.events()}

    def events(self) -> list[dict[str, Any]]:
        """In order of execution.  bad: whether something in an output is not finite; first: the
        version that is its first output."""
        first: dict[int, int] = {}
        bad: dict[int, bool] = {}
        with self.asking() as db:
            found = db.execute(f"select {', '.join(EVENT)} from events order by k").fetchall()
            rows = [typed(row, EVENT) for row in found]
            for event, version, odd in db.execute(
                "select o.event, v.id, v.nans + v.infs > 0 from operands o join versions v "
                "on v.id = o.version where o.role = 'out' and o.event between 0 and ? "
                "order by o.position desc", (MOST_EVENTS,),
            ):  # fmt: skip
                first[event], bad[event] = version, bool(odd) or bad.get(event, False)
        return [
            row | {"bad": bad.get(row["k"], False), "first": first.get(row["k"])} for row in rows
        ]

    def event(self, k: int) -> dict[str, Any]:
        """One event with its operands."""
        with self.asking() as db:
            sql = f"select {', '.join(EVENT)} from events where k = ?"
            row = db.execute(sql, (k,)).fetchone()
            e = typed(row, EVENT) if row else {}
        if not e:
            raise Problem(404, f"event {k}: the recording has events 0 to {self.count() - 1}")
        ins, outs = self.operands(k, "in"), self.operands(k, "out")
        bad = any(o["version"]["statistics"][s] for o in outs for s in ("nans", "infs"))
        first = outs[0]["version"]["id"] if outs else None
        attrs = attrs_of(e["op"], e["text"])
        return e | {"bad": bad, "first": first, "attrs": attrs, "ins": ins, "outs": outs}

    def operands(self, k: int, role: str) -> list[dict[str, Any]]:
        """What an event was given ("in") or made ("out"), by their names in the op's spec."""
        with self.asking() as db:
            rows = db.execute(
                "select name, adds, version from operands where event = ? and role = ? "
                "order by position limit ?", (k, role, MOST_OPERANDS + 1),
            ).fetchall()  # fmt: skip
            rows = [typed(row, OPERAND) for row in rows]
        if len(rows) > MOST_OPERANDS:
            raise Problem(413, f"event {k} has more than {MOST_OPERANDS:,} operands")
        found = []
        for row in rows:
            v = self.version(row["version"])
            dims = dims_of(v["tensor"], v["shape"], self.model)
            found.append(row | {"adds": bool(row["adds"]), "dims": dims, "version": v})
        return found

    def version(self, number: int) -> dict[str, Any]:
        with self.asking() as db:
            row = db.execute(SELECT_VERSION + "where v.id = ?", (number,)).fetchone()
            if row is None:
                raise Problem(404, f"version {number}: the recording has no such version")
            v = typed(row, VERSION)
            shape, bad = json.loads(v.pop("shape")), json.loads(v.pop("bad"))
        sound = is_shape(shape) and v["dtype"] in DTYPES and isinstance(bad, list)
        if not sound or not HASH.fullmatch(v["hash"]):
            raise damaged(self.index, f"version {number} has no shape, dtype or hash that can be")
        in_file = bool(v.pop("in_file"))
        return v | {
            "shape": shape, "constant": bool(v["constant"]), "bad": bad,
            "stored": bool(v["constant"]) or in_file or self.in_checkpoint(v),
            "statistics": {s: v.pop(s) for s in STATISTICS}, "pictured": bool(v["pictured"]),
        }  # fmt: skip

    def version_with_neighbours(self, number: int) -> dict[str, Any]:
        """A version, who made and who uses it, and the ones before and after of its tensor."""
        v = self.version(number)
        with self.asking() as db:
            used = db.execute(
                "select distinct event from operands where version = ? and role = 'in' "
                "order by event limit ?", (number, MOST_EVENTS),
            ).fetchall()  # fmt: skip
            near = dict(
                db.execute(
                    "select number, id from versions where tensor = ? and number in (?, ?)",
                    (v["tensor"], v["number"] - 1, v["number"] + 1),
                ).fetchall()
            )
        return v | {
            "made_by": v["event"], "used_by": [k for (k,) in used],
            "previous": near.get(v["number"] - 1), "next": near.get(v["number"] + 1),
            "dims": dims_of(v["tensor"], v["shape"], self.model),
        }  # fmt: skip

    def named(self, tensor: str, number: int) -> dict[str, Any]:
        """That version of a tensor.  Raises Problem if there is none."""
        with self.asking() as db:
            row = db.execute(
                "select id from versions where tensor = ? and number = ?", (tensor, number)
            ).fetchone()
        if row is None or not isinstance(row[0], int):
            raise Problem(404, f"The recording has no version {number} of {tensor}.")
        return self.version_with_neighbours(row[0])

    def blob(self, number: int, columns: str) -> tuple:
        """Columns of a version's row that hold its picture or histogram."""
        with self.asking() as db:
            return db.execute(f"select {columns} from versions where id = ?", (number,)).fetchone()

    def shard(self, digest: str) -> Path | None:
        """The file that holds the tensor of that hash."""
        with self.asking() as db:
            row = db.execute("select file from tensors where hash = ?", (digest,)).fetchone()
        if row is None:
            return None
        if not isinstance(row[0], str) or not re.fullmatch(r"[\w-]+", row[0], re.ASCII):
            raise damaged(self.index, "the name of a file of tensors is none that is written")
        return plain(self.folder, "t", f"{row[0]}.safetensors")

    def stored(self) -> list[int]:
        """A version for each tensor that is in a file."""
        with self.asking() as db:
            rows = db.execute(
                "select min(v.id) from versions v join tensors using (hash) group by hash limit ?",
                (MOST_VERSIONS,),
            ).fetchall()
        return [number for (number,) in rows]

    @property
    def checkpoint(self) -> Path | None:
        """Where parameters and moments before the step are: only ever of the run around it."""
        named = self.manifest["before"].get("checkpoint")
        match = isinstance(named, str) and re.fullmatch(
            r"\.\./\.\./(checkpoints)/(step-\d+)", named
        )
        if not match:
            return None
        folder = self.folder.parent.parent
        try:
            for part in match.groups():
                folder = plain(folder, part, file=False)
        except Problem:
            return None
        return folder

    def in_checkpoint(self, v: dict[str, Any]) -> bool:
        given = v["event"] is None and v["kind"] in ("param", "state")
        return given and self.checkpoint is not None

    def sources(self) -> list[str]:
        """The names of the source files that were copied into the recording."""
        hashes = self.manifest.get("sources", {})
        if not isinstance(hashes, dict):
            raise damaged(self.folder / "manifest.json", "sources is no list of files")
        return [name for name in hashes if SOURCE_NAME.fullmatch(name)]

    def source(self, name: str) -> bytes:
        """A source file as it was when the step was recorded."""
        if name not in self.sources():
            raise Problem(404, "The recording has no such source; manifest.sources lists them.")
        path = plain(self.folder, "src", *name.split("/"))
        if path.stat().st_size > LARGEST_SOURCE_BYTES:
            raise Problem(413, f"{path} is larger than a source file can be")
        text = path.read_bytes()
        if hashlib.sha256(text).hexdigest() != self.manifest["sources"][name]:
            raise damaged(path, "its SHA-256 is not what the manifest says")
        return text


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest, with everything in it that is used here."""
    path = plain(folder, "manifest.json")
    if path.stat().st_size > LARGEST_MANIFEST_BYTES:
        raise Problem(413, f"{path} is larger than the manifest of a recording can be")
    try:
        manifest = read_json(path)
    except (ValueError, OSError) as error:
        raise damaged(path, error) from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise damaged(path, f"this backglass reads recordings of format {FORMAT}")
    for key, kind in MANIFEST.items():
        if type(manifest.get(key)) is not kind:
            raise damaged(path, f"{key} is missing or not of the type {kind.__name__}")
    try:
        fork_of(manifest)
    except UserError as error:
        raise damaged(path, error) from None
    return manifest


def plain(folder: Path, *names: str, file: bool = True) -> Path:
    """A file (or folder) inside a folder; Problem if it is not there or a symbolic link is on the
    way."""
    path = folder
    for name in names:
        path = path / name
        if path.is_symlink():
            raise Problem(422, f"{path} is a symbolic link, which is not followed in a recording")
    if not (path.is_file() if file else path.is_dir()):
        raise Problem(404, f"{path} is missing: this is no whole recording")
    return path


def uri_of(index: Path, complete: bool) -> str:
    """To be opened for reading; of a recording that is complete, without any lock or file beside
    it, so that it may lie where nobody can write."""
    beside = [index.with_name(index.name + end) for end in ("-wal", "-shm", "-journal")]
    if any(path.is_symlink() for path in beside):
        raise Problem(422, f"there are symbolic links beside {index}, which are not followed")
    log = beside[0]  # empty, if someone who only read has left it
    alone = complete and not (log.exists() and log.stat().st_size)
    return f"{index.absolute().as_uri()}?mode=ro{'&immutable=1' * alone}"


def require_schema(db: sqlite3.Connection) -> None:
    """Raises ValueError unless the tables are exactly those that are written: a view, a trigger or
    a computed column would run foreign SQL."""
    sql = "select type, name, sql from sqlite_master order by name limit 100"
    with contextlib.closing(sqlite3.connect(":memory:")) as own:
        own.executescript(SCHEMA)
        if db.execute(sql).fetchall() != own.execute(sql).fetchall():
            raise ValueError("its tables are not those of a recording")


def typed(row: tuple, kinds: dict[str, Any]) -> dict[str, Any]:
    """A row by column.  Raises ValueError if something in it has another type."""
    found = dict(zip(kinds, row, strict=True))
    for key, kind in kinds.items():
        if not isinstance(found[key], kind):
            raise ValueError(f"{key} is a {type(found[key]).__name__}")
        if kind is str and len(found[key]) > LARGEST_TEXT:
            raise ValueError(f"{key} has {len(found[key]):,} characters")
    return found


def is_shape(shape: Any) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= MOST_AXES
        and all(type(n) is int and 0 < n < 1 << 62 for n in shape)
        and math.prod(shape) < 1 << 62
    )


def attrs_of(op: str, text: str) -> dict[str, Any]:
    """A call's attrs: those of its line, the others as the op's spec has them."""
    from backglass.ops import signature

    try:
        known = dict(signature(op).attrs)
    except AttributeError:  # an op of a user's, not loaded here
        known = {}
    given = re.findall(r", (\w+)=([^,()=]+)(?=[,)])", text)
    return known | {name: number(value) for name, value in given}


def number(text: str) -> int | float | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text
