"""A progress bar for commands that take a while, on a terminal only."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable


def bar(what: str) -> Callable[[int, int], None]:
    """progress(done, total): a line on standard error that is removed at the end."""
    from rich.progress import Progress

    if not sys.stderr.isatty():
        return lambda done, total: None
    from rich.console import Console

    live = Progress(console=Console(stderr=True), transient=True)
    task = live.add_task(what, total=None)
    atexit.register(live.stop)  # an interrupted command leaves the terminal its cursor

    def progress(done: int, total: int) -> None:
        if done == 0 or not live.live.is_started:
            live.start()
        live.update(task, completed=done, total=total)
        if done >= total:
            live.stop()

    return progress
