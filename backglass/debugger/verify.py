"""Verifying a recording while the page looks on: its bytes first, then the step once more."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from typing import Any

import xxhash

from backglass.debugger.matrix import Cache, matrix_of
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.errors import UserError

BAND_NUMBERS = 1 << 21  # hashed in one go, at most
MOST_NAMED = 1000  # damaged versions


class Stopped(Exception):
    """Nobody listens any more."""


class Verification:
    """Starts at once, in a thread of its own.  busy: a held lock, released when that has ended."""

    def __init__(self, reading: Reading, busy: threading.Lock):
        self.reading, self.busy = reading, busy
        self.loop, self.found = asyncio.get_running_loop(), asyncio.Queue()
        self.stop = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    async def rows(self) -> AsyncIterator[dict[str, Any]]:
        """{"done", "total"} …, at last {"agreed", "diverged", "damaged"} or {"error"}."""
        try:
            while (row := await self.found.get()) is not None:
                yield row
        finally:
            self.stop.set()

    def _work(self) -> None:
        with contextlib.suppress(Stopped, RuntimeError):  # RuntimeError: the loop is closed
            try:
                self._put(outcome(self.reading, self._progress))
                self._put(None)
            finally:
                self.busy.release()

    def _progress(self, done: int, total: int) -> None:
        self._put({"done": done, "total": total})

    def _put(self, row: dict[str, Any] | None) -> None:
        if self.stop.is_set():
            raise Stopped
        self.loop.call_soon_threadsafe(self.found.put_nowait, row)


def outcome(reading: Reading, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """The last row: what became of it."""
    from backglass.debugger.replay import replay
    from backglass.debugger.trace import Trace

    try:
        bad = damaged_versions(reading)
        agreed, diverged = replay(Trace(reading.folder), progress)
    except Stopped:
        raise
    except UserError as error:
        return {"error": str(error)}
    except Exception as error:  # whatever a manifest from elsewhere brings about
        return {"error": f"The step cannot be done again from this recording: {error!r}"}
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
