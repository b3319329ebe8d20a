"""Verifying a recording while the page looks on: its bytes first, then the step once more."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any

import xxhash

from backglass.debugger.job import Progress
from backglass.debugger.matrix import Cache, matrix_of
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading

BAND_NUMBERS = 1 << 21  # hashed in one go, at most
MOST_NAMED = 1000  # damaged versions


def verification(reading: Reading, progress: Progress) -> dict[str, Any]:
    """What became of it: {"agreed", "diverged", "damaged"}."""
    from backglass.debugger.replay import replay
    from backglass.debugger.trace import Trace

    bad = damaged_versions(reading)
    with Trace(reading.folder) as trace:
        agreed, diverged = replay(trace, progress)
    return {"agreed": agreed, "diverged": diverged and asdict(diverged), "damaged": bad}


def damaged_versions(reading: Reading) -> list[dict[str, Any]]:
    """Those whose stored bytes do not have the hash they had."""
    found: list[dict[str, Any]] = []
    for number in reading.stored():
        if len(found) == MOST_NAMED:
            break
        v = reading.version(number)
        with contextlib.suppress(Problem):
            if v["constant"] or digest(reading, v) == v["hash"]:
                continue
        found.append(v)
    return found


def digest(reading: Reading, v: dict[str, Any]) -> str:
    """Of a tensor's bytes, a band at a time."""
    m, made = matrix_of(reading, v, Cache()), xxhash.xxh3_128()
    across = min(m.columns, BAND_NUMBERS)
    down = max(1, BAND_NUMBERS // m.columns)
    for r in range(0, m.rows, down):
        for c in range(0, m.columns, across):
            window = r, min(m.rows, r + down), c, min(m.columns, c + across)
            made.update(m.read(window).tobytes())
    return made.hexdigest()
