"""A training looked at while it goes on: what its log.jsonl has grown by, and its recordings.

A *cursor* says how much of a run somebody has seen: which file (a resumed run writes its log anew),
how many bytes of it, and which recordings.  Only what is new after it is read and sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from backglass.debugger.problem import Problem
from backglass.debugger.shelf import Run, Shelf, id_of, is_file, row_of, run_at, state_of
from backglass.errors import UserError
from backglass.tools import runlog
from backglass.tools.found import read_json

LOOK_SECONDS = 0.1  # between two looks at the files
MOST_SECONDS = 20  # that an answer waits for something new
MOST_LINES = 20_000  # of a log in one answer; the next answer has the rest
MOST_RUNS = 32
CURSOR = re.compile(r"(\d{1,20})-(\d{1,15})-([0-9a-f]{16})", re.ASCII)

Cursor = tuple[int, int, str]
NOTHING: Cursor = (0, 0, "0" * 16)  # seen


def parse_cursor(text: str) -> Cursor:
    """Anything that is none means: nothing was seen."""
    match = CURSOR.fullmatch(text)
    return (int(match[1]), int(match[2]), match[3]) if match else NOTHING


async def news(
    shelf: Shelf, asked: list[tuple[str, Cursor]], wait: float, ending: Callable[[], bool]
) -> list[dict[str, Any]]:
    """What is new of these runs; nothing after `wait` seconds without anything, or when the server
    ends.  Raises Problem for the id of no run."""
    until = time.monotonic() + wait

    places = {id_of(run.folder): folder for run, folder in await run_in_threadpool(shelf.places)}
    if missing := [given for given, _ in asked if given not in places]:
        raise Problem(404, f"There is no run {missing[0][:32]}. /api/runs lists those there are.")

    def look() -> list[dict[str, Any]]:
        runs = ((run_at(places[given]), seen) for given, seen in asked)
        return [row for run, seen in runs if run and (row := new_of(run, seen))]

    while not (found := await run_in_threadpool(look)):
        if ending() or time.monotonic() >= until:
            break
        await asyncio.sleep(LOOK_SECONDS)
    return found


def new_of(run: Run, seen: Cursor) -> dict[str, Any] | None:
    """What one run has that was not seen, with the cursor after it; None: nothing."""
    file, offset, shown = seen
    now, size = identity(run.folder / "log.jsonl")
    again = now != file or size < offset  # another file, or this one was cut
    start, marked = 0 if again else offset, recordings_mark(run)
    log = runlog.read(run.folder / "log.jsonl", start, MOST_LINES) if size > start else None
    if not (again or marked != shown or (log and log.end > start)):
        return None
    row: dict[str, Any] = {"id": id_of(run.folder), "again": again}
    if log:
        row["step"] = {k: list(column) for k, column in log.step.items()}
        row["val"] = {k: list(column) for k, column in log.val.items()}
        row["damaged"] = log.problems
    if marked != shown or again:
        row["recordings"] = [row_of(p) for p in run.recordings]
        row["steps"] = planned_steps(run.folder)
    row["age_s"] = age(run.folder / "log.jsonl")
    row["cursor"] = f"{now}-{log.end if log else start}-{marked}"
    return row


def identity(path: Path) -> tuple[int, int]:
    """(a number that another file of this name does not have, its bytes); zeros: it is not there
    yet."""
    if not is_file(path):
        return 0, 0
    found = path.stat()
    return found.st_ino, found.st_size


def age(path: Path) -> float | None:
    """Seconds since a log has grown."""
    return max(0.0, time.time() - path.stat().st_mtime) if is_file(path) else None


def recordings_mark(run: Run) -> str:
    """Another one when a recording has begun, was finished, made again or deleted."""
    states = []
    for path in run.recordings:
        try:
            states.append((path.name, state_of(path)))
        except UserError:  # between its manifest and its index
            states.append((path.name, ()))
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]


def planned_steps(folder: Path) -> int | None:
    """Where the run will end, as it said at its start."""
    try:
        return int(read_json(folder / "run.json")["settings"]["steps"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
