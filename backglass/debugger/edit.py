"""An edit of a step: one number of one version of a tensor, given as a literal, put in its place
when that version has been made and before anything reads it.

A recording of a step that was edited is a *fork*: its manifest says of which recording, and with
which edits, so that it can be made again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backglass.errors import UserError, wrong_use
from backglass.execute.memory import Memory
from backglass.execute.trace import Version
from backglass.view import DTYPES

MARK = ".what-if-"  # between the name of a recording and the number of a fork of it
LONGEST = 64  # characters of a literal
MOST_EDITS = 1000
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
REAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NOT_FINITE = re.compile(r"[+-]?inf|nan", re.ASCII)


@dataclass(frozen=True)
class Edit:
    """tensor, number: the version; index: the cell, a number an axis; value: the literal."""

    tensor: str
    number: int
    index: tuple[int, ...]
    value: str


@dataclass(frozen=True)
class Fork:
    """of: the name of the recording's folder; event: what made the version of the newest edit, None
    if it was there before the step, or an input."""

    of: str
    event: int | None
    edits: tuple[Edit, ...]

    def row(self) -> dict[str, Any]:
        """As the manifest has it."""
        return asdict(self)


def parse(text: str, dtype: str) -> np.generic:
    """The number that a literal means, of that dtype.  Raises UserError (wrong use)."""
    kind = DTYPES[dtype].type
    if len(text) > LONGEST:
        raise wrong_use(f"a number of {len(text)} characters; {LONGEST} are enough for any {dtype}")
    if np.dtype(kind).kind in "iu":
        return _whole(text, dtype)
    if NOT_FINITE.fullmatch(text):
        return kind(float(text))
    if not REAL.fullmatch(text):
        raise wrong_use(f"{text!r} is no number: write 0.5, -3, 1e-4, inf or nan")
    with np.errstate(over="ignore"):
        value = kind(float(text))
    if not np.isfinite(np.float64(value)):
        raise wrong_use(f"{text} is too large for {dtype}; inf means infinity")
    return value


def _whole(text: str, dtype: str) -> np.generic:
    limits = np.iinfo(DTYPES[dtype])
    if not INTEGER.fullmatch(text):
        raise wrong_use(f"{text!r} is no whole number, and this tensor is {dtype}")
    if not limits.min <= int(text) <= limits.max:
        raise wrong_use(f"{text} does not fit {dtype}: {limits.min} to {limits.max}")
    return DTYPES[dtype].type(int(text))


def require_token(edit: Edit, vocab_size: int) -> None:
    """A token id names a row of the embedding; among targets −1 is one that does not count."""
    least = {"ids": 0, "targets": -1}.get(edit.tensor)
    if least is not None and not least <= int(edit.value) < vocab_size:
        raise wrong_use(f"{edit.tensor} can be {least} to {vocab_size - 1}, got {edit.value}")


def apply(edits: Iterable[Edit], versions: Iterable[Version], memory: Memory) -> None:
    """Put the numbers in the place of those that these versions were made with."""
    wanted = {(e.tensor, e.number) for e in edits}
    for v in versions:
        if (v.tensor, v.number) not in wanted:
            continue
        values = memory.read(v.view)
        for e in edits:
            if (e.tensor, e.number) == (v.tensor, v.number):
                values[e.index] = parse(e.value, v.view.dtype)
        memory.write(v.view, values)


def fork_of(manifest: dict[str, Any]) -> Fork | None:
    """What a manifest says about edits; None: it is of a step as it was.  Raises UserError for
    anything that is not what is written."""
    row = manifest.get("fork")
    if row is None:
        return None
    try:
        edits = tuple(
            Edit(e["tensor"], e["number"], tuple(e["index"]), e["value"])
            for e in row["edits"][:MOST_EDITS]
        )
        fork = Fork(row["of"], row["event"], edits)
    except (KeyError, TypeError) as error:
        raise UserError(f"the manifest's fork is damaged: {error!r}") from None
    whole = [fork.event or 0, *(n for e in edits for n in (e.number, *e.index))]
    words = [fork.of, *(w for e in edits for w in (e.tensor, e.value))]
    if not (edits and all(type(n) is int for n in whole) and all(type(w) is str for w in words)):
        raise UserError("the manifest's fork is damaged: its edits are none that are written")
    return fork


def is_fork(folder: Path) -> bool:
    """Whether a folder's name is that of a fork of a recording beside it."""
    name, mark, number = folder.name.rpartition(MARK)
    return bool(name and mark) and number.isascii() and number.isdecimal()


def new_folder(recording: Path) -> Path:
    """Beside a recording, where its next fork goes; the fork of a fork too."""
    root = recording.name.partition(MARK)[0]
    n = 1
    while (folder := recording.with_name(f"{root}{MARK}{n}")).exists():
        n += 1
    return folder


def forks_beside(recording: Path) -> list[Path]:
    """The forks of a recording, and the others of the one that it is a fork of."""
    root = recording.name.partition(MARK)[0]
    beside = (p for p in recording.parent.glob(f"*{MARK}*") if p.is_dir() and not p.is_symlink())
    return sorted(p for p in beside if is_fork(p) and p.name.partition(MARK)[0] == root)
