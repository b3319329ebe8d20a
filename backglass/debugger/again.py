"""Numbers that a recording does not have: the step is done again, and they are caught on the way.

A number is believed only if its tensor has the recorded hash.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from backglass.debugger.matrix import Cache
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.debugger.store import digest_of
from backglass.execute.trace import Event, Version


class Complete(Exception):
    """Ends the step when everything has been caught."""


class Catcher:
    """A sink that keeps the versions it wants: {(tensor, number): row of the index}."""

    def __init__(self, wanted: list[dict[str, Any]]):
        self.wanted = {(v["tensor"], v["number"]): v for v in wanted}
        self.found: dict[int, np.ndarray] = {}

    def versions(self, found: list[tuple[Version, np.ndarray]], name: str) -> None:
        for version, values in found:
            self._take(version, values)

    def event(self, e: Event, source: dict[str, Any], made: list[np.ndarray]) -> None:
        for operand, values in zip(e.outs, made, strict=True):
            self._take(operand.version, values)

    def _take(self, version: Version, values: np.ndarray) -> None:
        v = self.wanted.get((version.tensor, version.number))
        if v is None:
            return
        if digest_of(values) != v["hash"]:
            raise Problem(
                422, f"The step was done again and {v['tensor']} (version {v['number']}) is not "
                "what it was. Verify the recording: its badge names the first line that differs.",
            )  # fmt: skip
        self.found[v["id"]] = values.copy()
        if len(self.found) == len(self.wanted):
            raise Complete


def values_again(
    reading: Reading, versions: list[dict[str, Any]], cache: Cache,
    progress: Callable[[int, int], None],
) -> dict[int, np.ndarray]:  # fmt: skip
    """By version.  Kept in the cache, since who checks one event checks the next."""
    keys = {v["id"]: key_of(reading, v) for v in versions}
    found = {number: cache.peek(key) for number, key in keys.items()}
    missing = [v for v in versions if found[v["id"]] is None]
    if missing:
        caught = _catch(reading, missing, progress)
        for number, values in caught.items():
            found[number] = cache.get(keys[number], values.nbytes, lambda values=values: values)
    return found


def key_of(reading: Reading, v: dict[str, Any]) -> Hashable:
    """Under which the cache keeps what was caught."""
    return "again", reading.folder, v["hash"]


def _catch(
    reading: Reading, versions: list[dict[str, Any]], progress: Callable[[int, int], None]
) -> dict[int, np.ndarray]:
    from backglass.debugger.replay import again
    from backglass.debugger.trace import Trace

    catcher = Catcher(versions)
    with Trace(reading.folder) as trace:
        try:
            again(trace, progress).execute(catcher)
        except Complete:
            return catcher.found
    left = [v["tensor"] for v in versions if v["id"] not in catcher.found]
    raise Problem(422, f"The step was done again and made no {', '.join(left)}.")
