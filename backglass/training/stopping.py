"""Ending a run early: Ctrl-C and a polite kill let the step under way finish."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class Stopped(Exception):
    """The run ended early by a signal; everything is saved."""

    def __init__(self, number: int):
        self.number = number


@dataclass
class Signal:
    """The signal that came last; 0: none yet."""

    number: int = 0


@contextmanager
def last_signal(say: Callable[[str], None]) -> Iterator[Signal]:
    """Inside, SIGINT and SIGTERM only leave their number and say so; behind, they act as before."""
    last = Signal()

    def note(number: int, frame: object) -> None:
        last.number = number
        say("stopping after this step")

    handlers = {n: signal.signal(n, note) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield last
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
