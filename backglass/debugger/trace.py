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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from backglass import models
from backglass.debugger.store import FORMAT, STATISTICS, digest_of
from backglass.errors import UserError, wrong_use
from backglass.layout import Layout
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


EVENT = ", ".join(Event.__dataclass_fields__)  # columns of the index
VERSION = ", ".join(
    ("id", "tensor", "number", "event", "shape", "dtype", "kind", "hash", "constant", *STATISTICS,
     "bad")
)  # fmt: skip


class NotStored(UserError):
    """The values of a version are not in the recording."""


class Trace:
    """A recording, perhaps one that is still being made.  Every method raises UserError if the
    folder is none, or damaged."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.manifest = _manifest(self.folder)
        self.index = self.folder / "index.sqlite"
        if not self.index.is_file():
            raise UserError(f"{self.folder} is no recording: index.sqlite is missing")
        with reading(self.index):
            uri = f"{self.index.resolve().as_uri()}?mode=ro"
            self.db = sqlite3.connect(uri, uri=True, check_same_thread=False)
        self.count = self._rows("select count(*) from events")[0][0]

    def close(self) -> None:
        self.db.close()

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        return bool(self.manifest["complete"])

    def events(self) -> Iterator[Event]:
        """In order of execution."""
        for row in self._rows(f"select {EVENT} from events order by k"):
            yield Event(*row)

    def event(self, k: int) -> Event:
        rows = self._rows(f"select {EVENT} from events where k = ?", k)
        if not rows:
            raise wrong_use(f"event {k}: the recording has events 0 to {self.count - 1}")
        return Event(*rows[0])

    def operands(self, k: int, role: str) -> list[tuple[str, Version, bool]]:
        """(name in the op's spec, version, whether it was added to) of the role `in` or `out`."""
        rows = self._rows(
            "select name, version, adds from operands where event = ? and role = ? "
            "order by position", k, role,
        )  # fmt: skip
        return [(name, self.version(number), bool(adds)) for name, number, adds in rows]

    def outs(self, k: int) -> list[Version]:
        return [version for _, version, _ in self.operands(k, "out")]

    def version(self, number: int) -> Version:
        with reading(self.index):
            row, *_ = self._rows(f"select {VERSION} from versions where id = ?", number)
            return _version(row)

    def versions(self, tensor: str) -> list[Version]:
        """Every version of a tensor, oldest first.  Raises UserError for an unknown name."""
        found = self._rows("select id from versions where tensor = ? order by number", tensor)
        if not found:
            raise wrong_use(f"{self.folder} has no tensor {tensor!r}; names are like h0.qkv, dwte")
        return [self.version(number) for (number,) in found]

    def find(self, tensor: str, number: int) -> Version | None:
        """A version by its name, if there is such."""
        sql = "select id from versions where tensor = ? and number = ?"
        return next((self.version(i) for (i,) in self._rows(sql, tensor, number)), None)

    def given(self) -> Iterator[Version]:
        """Versions that no event made: parameters, moments and inputs before the step."""
        for (number,) in self._rows("select id from versions where event is null order by id"):
            yield self.version(number)

    def hash(self, tensor: str, number: int) -> str | None:
        """Of a version, or None if the recording does not have it."""
        sql = "select hash from versions where tensor = ? and number = ?"
        return next((digest for (digest,) in self._rows(sql, tensor, number)), None)

    def source(self, event: Event) -> list[str]:
        """Lines of the file that the event's kernel was in."""
        name = event.kernel
        if name not in self.manifest["sources"] or ".." in Path(name).parts:
            raise UserError(f"{self.index} is damaged: {name!r} is no source file of it")
        with reading(path := self.folder / "src" / name):
            return path.read_text(encoding="utf-8").splitlines()

    @property
    def run_folder(self) -> Path | None:
        """The run that this is a step of, if it is where it was when this was recorded."""
        inside, named = self.folder.resolve().parent.parent, self.manifest["before"].get("run")
        folders = [inside, *([self.folder / named] if named else [])]
        return next((run for run in folders if (run / "run.json").is_file()), None)

    def damaged(self) -> Iterator[Version]:
        """Versions whose stored values are not what was written."""
        rows = self._rows(
            "select min(versions.id) from versions join tensors using (hash) group by hash"
        )
        for (number,) in rows:
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
        if rows := self._rows("select file from tensors where hash = ?", v.hash):
            return self._stored(rows[0][0], v)
        if v.event is None and (found := self._before(v)) is not None:
            if digest_of(found := found.astype(dtype)) == v.hash:
                return found
        raise NotStored(f"{v.tensor} (version {v.number}) {self._why(v)}")

    def _why(self, v: Version) -> str:
        level, left_out = self.manifest["level"], self.manifest["left_out"]
        if self._checkpoint and v.event is None and v.kind in ("param", "state"):
            return (
                f"is what the step began with, the tensor of {self._checkpoint}, which is not "
                "there any more, or another one"
            )
        if left_out:
            return f"was not stored: {left_out} tensors were left out when --max-disk was reached"
        return (
            f"was not stored: the step was recorded at level {level}, which keeps statistics. "
            f"Record it with --level 3, or --level 2 --tensors '{v.tensor}'."
        )

    def _stored(self, file: str, v: Version) -> np.ndarray:
        from safetensors import safe_open

        path = self.folder / "t" / f"{Path(file).name}.safetensors"
        with reading(path), safe_open(path, "np") as f:
            return f.get_tensor(v.hash).view(DTYPES[v.dtype]).reshape(v.shape)

    def _rows(self, sql: str, *values: Any) -> list[tuple]:
        with reading(self.index):
            return self.db.execute(sql, values).fetchall()

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
    def model(self) -> ModuleType:
        return models.get(self.manifest["settings"].get("model", "gpt2"))

    @cached_property
    def config(self) -> Any:
        return self.model.Config(**self.manifest["config"])

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.model.PARAMS, self.config.sizes(1, 1), "fp32")

    @cached_property
    def _state(self) -> dict[str, np.ndarray]:
        from backglass.training import checkpoint

        if self._checkpoint is None or not self._checkpoint.is_dir():
            return {}
        return checkpoint.load(self._checkpoint, self.layout)[0]

    @property
    def _checkpoint(self) -> Path | None:
        named = self.manifest["before"].get("checkpoint")
        return (self.folder / named).resolve() if named else None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a file of a recording is wrong with is a UserError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, sqlite3.Error, SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}. Record the step again.") from None


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
