"""What a studio shows: the runs under a path and their recordings, by ids that are no paths.

A path that a client sends is never opened: an id is looked up among what was found here.  Symbolic
links inside are passed over, so that a recording from elsewhere cannot point at other files.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from backglass.debugger.edit import forks_beside
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading, manifest_of
from backglass.errors import UserError
from backglass.tools.found import read_json

MOST_ENTRIES = 10_000
OPEN = 8  # recordings kept open


@dataclass(frozen=True)
class Run:
    """A run directory, or what stands for one where a preset's step was recorded."""

    folder: Path
    recordings: tuple[Path, ...]


class Shelf:
    """root: a run, a folder of runs, or a recording."""

    def __init__(self, root: Path):
        self.root = root.resolve()
        self.lock = threading.Lock()
        self.paths: dict[str, Path] = {}
        self.open: OrderedDict[str, tuple[Any, Reading]] = OrderedDict()

    def runs(self) -> list[Run]:
        """As they are on disk now."""
        return [run for run, _ in self.places()]

    def places(self) -> list[tuple[Run, Path]]:
        """Runs, each with the folder that was looked into for it."""
        if run := run_at(self.root):
            return [(run, self.root)]
        return [(run, folder) for folder in folders_in(self.root) if (run := run_at(folder))]

    def rows(self) -> list[dict[str, Any]]:
        return [
            {
                "id": id_of(run.folder), "name": printable_name(run.folder),
                "preset": preset_of(run), "recordings": [row_of(p) for p in run.recordings],
            }
            for run in self.runs()
        ]  # fmt: skip

    def reading(self, given: str) -> Reading:
        """The recording of that id, opened; again if it was written anew since."""
        with self.lock:
            if given not in self.paths:
                self.paths = {id_of(p): p for run in self.runs() for p in run.recordings}
            if given not in self.paths:
                raise Problem(404, "There is no such recording. /api/runs lists those there are.")
            state = state_of(self.paths[given])
            if given not in self.open or self.open[given][0] != state:
                self.open[given] = state, Reading(self.paths[given])
            self.open.move_to_end(given)
            while len(self.open) > OPEN:
                self.open.popitem(last=False)
            return self.open[given][1]

    def forget(self, given: str) -> None:
        """Close a recording that is to be deleted."""
        with self.lock:
            _, reading = self.open.pop(given, (None, None))
            self.paths.pop(given, None)
        if reading:
            reading.close()


def id_of(path: Path) -> str:
    """The same whenever and wherever under it the studio is started."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def state_of(recording: Path) -> tuple[int, ...]:
    """Another one when the recording was finished, or made again."""
    try:
        manifest, index = (recording / n for n in ("manifest.json", "index.sqlite"))
        return manifest.stat().st_mtime_ns, manifest.stat().st_ino, index.stat().st_ino
    except FileNotFoundError as error:
        raise Problem(404, f"{error.filename} is missing: this is no recording any more") from None


def run_at(folder: Path) -> Run | None:
    """The run in this folder; None if it is neither a run nor a recording."""
    if is_file(folder / "manifest.json"):
        run = folder.parent.parent
        inside = folder.parent.name == "trace" and is_file(run / "run.json")
        forks = [p for p in forks_beside(folder) if p != folder and is_file(p / "manifest.json")]
        return Run(run if inside else folder, (folder, *forks))
    recordings = tuple(p for p in folders_in(folder / "trace") if is_file(p / "manifest.json"))
    return Run(folder, recordings) if recordings or is_file(folder / "run.json") else None


def folders_in(folder: Path) -> Iterator[Path]:
    """Real ones, by name."""
    if folder.is_symlink() or not folder.is_dir() or not os.access(folder, os.R_OK):
        return
    with os.scandir(folder) as entries:
        names = [e.name for e in islice(entries, MOST_ENTRIES) if e.is_dir(follow_symlinks=False)]
    yield from (folder / name for name in sorted(names) if not name.startswith("."))


def is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def printable_name(folder: Path) -> str:
    return os.fsencode(folder.name).decode("utf-8", "replace")


def preset_of(run: Run) -> str:
    """From run.json, or from a recording where there is none."""
    try:
        if is_file(path := run.folder / "run.json"):
            settings = read_json(path)["settings"]
        else:
            settings = manifest_of(run.recordings[0])["settings"]
        return str(settings["preset"])
    except (UserError, OSError, ValueError, KeyError, TypeError, IndexError):
        return ""


def row_of(recording: Path) -> dict[str, Any]:
    """A recording in the list; `problem` says why one cannot be opened."""
    row = {
        "id": id_of(recording), "step": 0, "level": 0, "events": 0, "complete": False, "device": "",
        "dtype": "", "name": printable_name(recording),
    }  # fmt: skip
    try:
        manifest = manifest_of(recording)
        row |= {k: manifest[k] for k in row if k in manifest and k not in ("id", "name")}
        row |= {"fork": manifest["fork"]} if "fork" in manifest else {}
        if not manifest["complete"]:
            row["events"] = Reading(recording).count()
    except (UserError, OSError) as error:
        row["problem"] = str(error)
    return row
