"""runlog: a run's log.jsonl as columns of numbers, a line at a time, whatever the file holds."""

from __future__ import annotations

import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEP_FIELDS = ("step", "loss", "grad_norm", "lr", "tokens_per_s", "ms")
VAL_FIELDS = ("step", "loss")
LONGEST_LINE_BYTES = 1 << 20
MOST_PROBLEMS = 5


@dataclass
class Log:
    """Columns of the step and val events, float64; problems name the damaged lines.

    unfinished: the last line has no line end yet, because the run is writing it or was cut off;
    end: how many bytes were taken, up to the end of the last line that has one.
    """

    path: Path
    step: dict[str, array] = field(default_factory=lambda: {k: array("d") for k in STEP_FIELDS})
    val: dict[str, array] = field(default_factory=lambda: {k: array("d") for k in VAL_FIELDS})
    events: dict[str, int] = field(default_factory=dict)
    lines: int = 0
    problems: list[str] = field(default_factory=list)
    unfinished: bool = False
    end: int = 0

    @property
    def steps(self) -> int:
        return len(self.step["step"])


def read(path: Path, start: int = 0, most_lines: float = math.inf) -> Log:
    """Events of a log from byte `start` on.  Raises OSError if it cannot be opened; damage is in
    `problems`."""
    log, bad = Log(path, end=start), 0
    with path.open("rb") as f:
        f.seek(start)
        while log.lines < most_lines and (line := f.readline(LONGEST_LINE_BYTES)):
            log.lines += 1
            whole = line.endswith(b"\n")
            try:
                _take(log, line)
            except (ValueError, RecursionError, OverflowError) as error:
                if not whole and len(line) < LONGEST_LINE_BYTES:  # the end of the file
                    log.unfinished = True
                    break
                bad += 1
                if bad <= MOST_PROBLEMS:
                    log.problems.append(f"line {log.lines}: {_first_line(error)}")
            while not whole and line:  # the rest of a line that was too long
                line = f.readline(LONGEST_LINE_BYTES)
                whole = line.endswith(b"\n")
            if whole:
                log.end = f.tell()
    if bad > MOST_PROBLEMS:
        log.problems.append(f"and {bad - MOST_PROBLEMS} more damaged lines")
    return log


def _take(log: Log, line: bytes) -> None:
    """Add one line.  Raises ValueError if it is not an event."""
    if not line.strip():
        raise ValueError("empty")
    found = json.loads(line)
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        raise ValueError('not an event: a line is {"event": …}')
    columns, fields = {"step": (log.step, STEP_FIELDS), "val": (log.val, VAL_FIELDS)}.get(
        found["event"], ({}, ())
    )
    values = [_number(found, name) for name in fields]
    if values and columns["step"] and not values[0] > columns["step"][-1]:
        raise ValueError(f"step {values[0]:g} comes after step {columns['step'][-1]:g}")
    for name, value in zip(fields, values, strict=True):
        columns[name].append(value)
    if len(log.events) < 100 or found["event"] in log.events:
        log.events[found["event"]] = log.events.get(found["event"], 0) + 1


def _number(found: dict[str, Any], name: str) -> float:
    value = found.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if name in ("step", "loss"):
            raise ValueError(f"{name} is {str(value)[:40]}, not a number")
        return float("nan")
    return float(value)


def _first_line(error: Exception) -> str:
    return f"{error}".partition("\n")[0][:120] or type(error).__name__
