"""What if: a recorded step done again with one number changed, as a recording beside the first.

Until the edit it must be the step that was recorded, hash by hash; from there on everything is
computed anew, with every tensor kept.  What became of it is what compare.py says of the two.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from backglass.debugger.edit import (
    Edit,
    Fork,
    fork_of,
    forks_beside,
    is_fork,
    new_folder,
    parse,
    require_token,
)
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.debugger.record import LIMIT_BYTES, Wanted, record_step
from backglass.debugger.replay import before_recorded
from backglass.debugger.store import digest_of
from backglass.debugger.trace import Trace
from backglass.execute.trace import Event, Version

ON = ("cpu", "numpy")  # devices whose steps can be done again here, bit for bit
LARGEST_INDEX = 8  # axes

Progress = Callable[[int, int], None]


def edit_of(reading: Reading, version: Any, index: Any, value: Any) -> tuple[Edit, int | None]:
    """The edit that was asked for, and the event it follows.  Raises Problem for what cannot be
    done, UserError (wrong use) for a literal that is none."""
    if type(version) is not int or type(value) is not str or not is_index(index):
        raise Problem(400, "An edit is {version: a number, index: [a number an axis], value: text}")
    v = reading.version(version)
    shape = v["shape"]
    if len(index) != len(shape) or any(n >= size for n, size in zip(index, shape, strict=True)):
        raise Problem(400, f"{v['tensor']} is {shape}, so it has no cell {index}")
    if reading.manifest.get("program") == "own":
        raise Problem(
            422,
            "This is a recording of level 0, of the program as the run executes it, and a what-if "
            f"is computed by the plain one. Record the step for it: `backglass trace RUN --step "
            f"{reading.manifest['step']} --level 1`.",
        )
    device = reading.manifest["device"]
    if device not in ON:
        raise Problem(
            422,
            f"This step was recorded on {device}, and a what-if is computed on the CPU, whose bits "
            "are others. Record the step there: `backglass trace RUN --step "
            f"{reading.manifest['step']} --device cpu --level 3 --out DIR`.",
        )
    value = value.strip().replace("−", "-")  # as the page prints it
    parse(value, v["dtype"])
    edit = Edit(v["tensor"], v["number"], tuple(index), value)
    require_token(edit, reading.manifest["config"].get("vocab_size", 1 << 31))
    return edit, v["event"]


def is_index(index: Any) -> bool:
    if not isinstance(index, list) or len(index) > LARGEST_INDEX:
        return False
    return all(type(n) is int and n >= 0 for n in index)


def what_if(
    reading: Reading, edit: Edit, event: int | None, progress: Progress, cap: int = LIMIT_BYTES
) -> Path:
    """The folder of the fork.  cap: bytes that all forks of a recording may take together.  It is
    not there if anything goes wrong, or if `progress` raises."""
    folder = new_folder(reading.folder)
    with closing(Trace(reading.folder)) as trace:
        known = fork_of(trace.manifest)
        fork = Fork(reading.folder.name, event, (*(known.edits if known else ()), edit))
        before = before_recorded(trace, progress)
        origin = {k: x for k, x in trace.manifest["before"].items() if k != "by_run"}
        with removed_unless_done(folder), no_room(reading.folder):
            record_step(
                before.start.session, before.batches, before.step, folder,
                Wanted(3, cap=cap - taken(reading.folder)), before.start.tokenizer, origin,
                progress, fork, (Upstream(trace, edit),),
            )  # fmt: skip
    return folder


class Upstream:
    """A sink that holds a step against its recording until the edited version is made."""

    def __init__(self, trace: Trace, edit: Edit):
        self.trace, self.edit, self.passed = trace, edit, False

    def versions(self, found: list[tuple[Version, np.ndarray]], name: str) -> None:
        self._see(found, "before the first event")

    def event(self, e: Event, source: dict[str, Any], made: list[np.ndarray]) -> None:
        self._see(list(zip((o.version for o in e.outs), made, strict=True)), f"at event {e.index}")

    def _see(self, found: list[tuple[Version, np.ndarray]], where: str) -> None:
        if self.passed:
            return
        for v, values in found:
            if (v.tensor, v.number) == (self.edit.tensor, self.edit.number):
                self.passed = True
            elif self.trace.hash(v.tensor, v.number) not in (None, digest_of(values)):
                raise Problem(
                    422,
                    f"This machine does not repeat the recorded step bit for bit: {v.tensor} "
                    f"differs {where}, before the edit. Record the step again here, then edit it.",
                )


@contextmanager
def removed_unless_done(folder: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def no_room(recording: Path) -> Iterator[None]:
    """What a full disk is, in words."""
    try:
        yield
    except OSError as error:
        raise Problem(
            422,
            f"The what-if could not be written beside {recording}: {error.strerror or error}. Free "
            "some space or mend the rights; other what-ifs can be deleted.",
        ) from None


def taken(recording: Path) -> int:
    """Bytes on disk of all forks of a recording."""
    files = (f for folder in forks_beside(recording) for f in folder.rglob("*"))
    return sum(f.stat().st_size for f in files if f.is_file() and not f.is_symlink())


def require_room(recording: Path, cap: int) -> None:
    """Raises Problem unless another fork may be written."""
    if (used := taken(recording)) >= cap:
        raise Problem(
            413,
            f"The what-ifs of this recording take {used / 1e6:,.0f} MB, and {cap / 1e6:,.0f} MB "
            "are allowed (--max-disk). Delete one first.",
        )


def remove(folder: Path) -> None:
    """Delete a fork, and nothing else.  Raises Problem for any other recording."""
    if not is_fork(folder) or folder.is_symlink():
        raise Problem(403, "Only what-ifs can be deleted here; this recording is none.")
    parked = folder.with_name(f".{folder.name}.deleted")  # at once gone for whoever looks
    folder.replace(parked)
    shutil.rmtree(parked, ignore_errors=True)
