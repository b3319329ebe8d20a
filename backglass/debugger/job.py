"""Work that the page has started: in a thread of its own, its progress told line by line."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

from backglass.errors import UserError

Progress = Callable[[int, int], None]


class Stopped(Exception):
    """Nobody listens any more."""


class Job:
    """Starts at once.  work: told of a function for progress, returns the last row; a UserError in
    it becomes {"error"}.  busy: a held lock, released when the work has ended."""

    def __init__(self, work: Callable[[Progress], dict[str, Any]], busy: threading.Lock):
        self.work, self.busy = work, busy
        self.loop, self.found = asyncio.get_running_loop(), asyncio.Queue()
        self.stop = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    async def rows(self) -> AsyncIterator[dict[str, Any]]:
        """{"done", "total"} …, at last what the work returned."""
        try:
            while (row := await self.found.get()) is not None:
                yield row
        finally:
            self.stop.set()

    def _run(self) -> None:
        with contextlib.suppress(Stopped, RuntimeError):  # RuntimeError: the loop is closed
            try:
                row = self._outcome()
            finally:
                self.busy.release()  # before anybody knows, who may ask for the next at once
            self._put(row)
            self._put(None)

    def _outcome(self) -> dict[str, Any]:
        try:
            return self.work(lambda done, total: self._put({"done": done, "total": total}))
        except Stopped:
            raise
        except UserError as error:
            return {"error": str(error)}
        except Exception as error:  # whatever a manifest from elsewhere brings about
            return {"error": f"This cannot be done with this recording: {error!r}"}

    def _put(self, row: dict[str, Any] | None) -> None:
        if self.stop.is_set():
            raise Stopped
        self.loop.call_soon_threadsafe(self.found.put_nowait, row)
