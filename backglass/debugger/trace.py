"""Reading a recorded step: events, versions, values.  Writing is in store.py.

trace = Trace("runs/a/trace/step-00000012")
event = trace.event(3)                 h0.preatt = scores(h0.qkv)
version = trace.outs(event)[0]         statistics, hash, who made it
trace.values(version)                  the tensor, if it was stored or can be had
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from backglass.debugger.store import FORMAT, STATISTICS, digest_of
from backglass.errors import UserError
from backglass.layout import Layout
from backglass.models import gpt2
from backglass.view import DTYPES


@dataclass(frozen=True)
class Event:
    """A line of the program that was executed.  layer: None outside the blocks; kernel, first_line,
    last_line: the function that ran, in the recording's src/."""

    k: int
    run: int
    phase: str
    op: str
    layer: int | None
    text: str
    model: str
    kernel: str
    first_line: int
    last_line: int
    ms: float
    twin: int | None


@dataclass(frozen=True)
class Version:
    """A tensor after `event` wrote it (None: before the step, or an input).  statistics: of finite
    numbers, with counts of zeros, NaNs and infinities; bad: where those are, the first hundred."""

    id: int
    tensor: str
    number: int
    event: int | None
    shape: tuple[int, ...]
    dtype: str
    kind: str
    hash: str
    constant: bool
    statistics: dict[str, float]
    bad: list[list[int]]


class NotStored(UserError):
    """The values of a version are not in the recording."""


class Trace:
    """A recording.  Raises UserError if the folder is none, or damaged."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)
        path = self.folder / "index.sqlite"
        if not path.is_file():
            raise UserError(f"{self.folder} is no recording: index.sqlite is missing")
        try:
            self.db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, check_same_thread=False)
            self.count = self.db.execute("select count(*) from events").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path} is damaged: {error}. Record the step again.") from None

    @property
    def complete(self) -> bool:
        return bool(self.manifest["complete"])

    def events(self) -> Iterator[Event]:
        """In order of execution."""
        columns = ", ".join(Event.__dataclass_fields__)
        for row in self.db.execute(f"select {columns} from events order by k"):
            yield Event(*row)

    def event(self, k: int) -> Event:
        columns = ", ".join(Event.__dataclass_fields__)
        row = self.db.execute(f"select {columns} from events where k = ?", (k,)).fetchone()
        if row is None:
            raise UserError(f"event {k}: the recording has events 0 to {self.count - 1}")
        return Event(*row)

    def operands(self, k: int, role: str) -> list[tuple[str, Version, bool]]:
        """(name in the op's spec, version, whether it was added to) of the role `in` or `out`."""
        rows = self.db.execute(
            "select name, version, adds from operands where event = ? and role = ? "
            "order by position", (k, role),
        )  # fmt: skip
        return [(name, self.version(number), bool(adds)) for name, number, adds in rows.fetchall()]

    def outs(self, k: int) -> list[Version]:
        return [version for _, version, _ in self.operands(k, "out")]

    def version(self, number: int) -> Version:
        columns = ", ".join(("shape", "dtype", "kind", "hash", "constant", *STATISTICS, "bad"))
        row = self.db.execute(
            f"select id, tensor, number, event, {columns} from versions where id = ?", (number,)
        ).fetchone()
        return _version(row)

    def versions(self, tensor: str) -> list[Version]:
        """Every version of a tensor, oldest first.  Raises UserError for an unknown name."""
        found = self.db.execute(
            "select id from versions where tensor = ? order by number", (tensor,)
        ).fetchall()
        if not found:
            raise UserError(f"{self.folder} has no tensor {tensor!r}; names are like h0.qkv, dwte")
        return [self.version(number) for (number,) in found]

    def given(self) -> Iterator[Version]:
        """Versions that no event made: parameters, moments and inputs before the step."""
        rows = self.db.execute("select id from versions where event is null order by id")
        for (number,) in rows.fetchall():
            yield self.version(number)

    def hash(self, tensor: str, number: int) -> str | None:
        """Of a version, or None if the recording does not have it."""
        row = self.db.execute(
            "select hash from versions where tensor = ? and number = ?", (tensor, number)
        ).fetchone()
        return row[0] if row else None

    @property
    def run_folder(self) -> Path | None:
        """The run that this is a step of, if the recording lies in its trace/."""
        run = self.folder.resolve().parent.parent
        return run if (run / "run.json").is_file() else None

    def damaged(self) -> Iterator[Version]:
        """Versions whose stored values are not what was written."""
        rows = self.db.execute(
            "select min(versions.id) from versions join tensors using (hash) group by hash"
        )
        for (number,) in rows.fetchall():
            v = self.version(number)
            try:
                if digest_of(self.values(v)) != v.hash:
                    yield v
            except UserError:
                yield v

    def values(self, v: Version) -> np.ndarray:
        """The tensor.  Raises NotStored if neither it nor a checkpoint with it is there."""
        dtype = DTYPES[v.dtype]
        if v.constant:
            return np.full(v.shape, v.statistics["min"], dtype)
        row = self.db.execute("select file from tensors where hash = ?", (v.hash,)).fetchone()
        if row:
            return self._stored(row[0], v.hash).view(dtype).reshape(v.shape)
        if v.event is None and (found := self._before(v)) is not None:
            return found.astype(dtype)
        raise NotStored(
            f"{v.tensor} (version {v.number}) was not stored: the step was recorded at level "
            f"{self.manifest['level']}, which keeps statistics. Record it with --level 3, or "
            f"--level 2 --tensors '{v.tensor}'."
        )

    def _stored(self, file: str, key: str) -> np.ndarray:
        from safetensors import SafetensorError, safe_open

        path = self.folder / "t" / f"{file}.safetensors"
        try:
            with safe_open(path, "np") as f:
                return f.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is damaged: {error}. Record the step again.") from None

    def _before(self, v: Version) -> np.ndarray | None:
        """A parameter or moment as the checkpoint has it from which the step was taken."""
        group = {"param": "p"}.get(v.kind, v.tensor.rpartition("/")[2])
        group, name = ("p" if group == "master" else group), v.tensor.partition("/")[0]
        slots = [s for s in self.layout.slots if s.name == name]
        if not slots or group not in self._state:
            return None
        slot = slots[0]
        return self._state[group][slot.offset : slot.offset + slot.size].reshape(slot.shape)

    @cached_property
    def config(self) -> gpt2.Config:
        return gpt2.Config(**self.manifest["config"])

    @cached_property
    def layout(self) -> Layout:
        return Layout(gpt2.PARAMS, self.config.sizes(1, 1), "fp32")

    @cached_property
    def _state(self) -> dict[str, np.ndarray]:
        from backglass.training import checkpoint

        named = self.manifest["before"].get("checkpoint")
        folder = self.folder / named if named else None
        if folder is None or not folder.is_dir():
            return {}
        return checkpoint.load(folder, self.layout, self.config.vocab_size)[0]


def _version(row: tuple) -> Version:
    number, tensor, count, event, shape, dtype, kind, digest, constant, *rest = row
    *statistics, bad = rest
    return Version(
        number, tensor, count, event, tuple(json.loads(shape)), dtype, kind, digest,
        bool(constant), dict(zip(STATISTICS, statistics, strict=True)), json.loads(bad),
    )  # fmt: skip


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{path} has format {manifest['format']}, this backglass reads {FORMAT}. Record "
                "the step again."
            )
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no recording of a step: there is no manifest.json in it. "
            "`backglass trace PATH` makes one."
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}. Record the step again.") from None
    return manifest
