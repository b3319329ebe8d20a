"""Verifying a recording while the page looks on: the stored bytes first, then the step once more.

In a thread of its own, so that it can be left alone when nobody listens any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

import xxhash

from backglass.debugger.matrix import Cache, matrix_of
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.errors import UserError

BAND_BYTES = 8 << 20


class Stopped(Exception):
    """Nobody listens any more."""


async def verification(reading: Reading, busy: threading.Lock) -> AsyncIterator[dict[str, Any]]:
    """{"done", "total"} …, at last {"agreed", "diverged", "damaged"} or {"error"}.

    busy: held, and released when the work has ended.
    """
    loop, found = asyncio.get_running_loop(), asyncio.Queue()
    stop = threading.Event()

    def put(row: dict[str, Any] | None) -> None:
        if stop.is_set():
            raise Stopped
        loop.call_soon_threadsafe(found.put_nowait, row)

    def work() -> None:
        try:
            put(outcome(reading, lambda done, total: put({"done": done, "total": total})))
            put(None)
        except (Stopped, RuntimeError):  # the loop was closed
            pass
        finally:
            busy.release()

    threading.Thread(target=work, daemon=True).start()
    try:
        while (row := await found.get()) is not None:
            yield row
    finally:
        stop.set()


def outcome(reading: Reading, progress: Any) -> dict[str, Any]:
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
    found = []
    for number in reading.stored():
        v = reading.version(number)
        try:
            if v["constant"] or digest(reading, v) == v["hash"]:
                continue
        except Problem:
            pass
        found.append(v)
    return found


def digest(reading: Reading, v: dict[str, Any]) -> str:
    """Of a tensor's bytes, a band of rows at a time."""
    m, made = matrix_of(reading, v, Cache()), xxhash.xxh3_128()
    rows = max(1, BAND_BYTES // (m.columns * m.dtype.itemsize))
    for r in range(0, m.rows, rows):
        made.update(m.read((r, min(m.rows, r + rows), 0, m.columns)).tobytes())
    return made.hexdigest()
