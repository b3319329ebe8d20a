"""What a benchmark measures and how it is written down: each implementation in a process of its
own, because peak memory is a property of a process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backglass.errors import UserError

RIVALS = Path(__file__).parent.parent.parent / "bench" / "rivals"
RATE, TIME = "tokens/s", "s"


@dataclass(frozen=True)
class Measured:
    """One implementation at one shape: a rate (more is better) or a time (less is better).

    value: of the median measurement; best: of the best; count: how many there were.  first_s: the
    first step, which compiles or warms up and is not among them.  step_ms: the median step; by_op:
    where it goes (by_op.py).  missing: why there is no value.
    """

    name: str
    case: str
    value: float = 0.0
    unit: str = RATE
    best: float = 0.0
    peak_bytes: int = 0
    count: int = 0
    first_s: float = 0.0
    missing: str = ""
    step_ms: float = 0.0
    by_op: dict[str, Any] = field(default_factory=dict)

    def ratio(self, rival: Measured) -> float:
        """Above 1: this one is better."""
        faster, slower = (self, rival) if self.unit == RATE else (rival, self)
        return faster.value / slower.value

    def row(self, rival: Measured | None = None) -> dict[str, Any]:
        """A row of bench/results/*.json."""
        row: dict[str, Any] = {
            "case": self.case, "implementation": self.name, "value": self.value,
            "unit": self.unit, "best": self.best, "peak_bytes": self.peak_bytes,
            "measurements": self.count,
        }  # fmt: skip
        if rival:
            row |= {
                "rival": rival.name, "rival_value": rival.value,
                "rival_peak_bytes": rival.peak_bytes, "ratio": self.ratio(rival),
            }  # fmt: skip
        return row

    def __str__(self) -> str:
        if self.missing:
            return f"{self.name:30} {self.missing}"
        peak = f"   peak {self.peak_bytes / 2**30:.2f} GiB" if self.peak_bytes else ""
        first = f"   first step {self.first_s:.1f} s" if self.first_s else ""
        return f"{self.name:30} {self.value:9,.1f} {self.unit} (best {self.best:,.1f}){peak}{first}"


def rate(
    name: str, case: str, tokens: int, ms: list[float], peak_bytes: int, warmup: int = 0,
    prepare_ms: float = 0.0,
) -> Measured:  # fmt: skip
    """tokens/s of the median after warm-up, each of ms for so many tokens.  With no more than
    `warmup` of them the last one counts.  prepare_ms: what else was spent before the first."""
    counted = ms[warmup:] or ms[-1:]
    per_s, median = tokens * 1e3, statistics.median(counted)
    return Measured(
        name, case, per_s / median, RATE, per_s / min(counted), peak_bytes, len(counted),
        (prepare_ms + ms[0]) / 1e3 if warmup else 0.0, step_ms=median,
    )  # fmt: skip


def rows(ours: list[Measured], rivals: list[Measured]) -> list[dict[str, Any]]:
    """Each of ours beside each rival, then the rivals alone; nothing of what is missing."""
    theirs = [m for m in rivals if not m.missing]
    found = []
    for m in ours:
        if not m.missing:
            found += [m.row(rival) for rival in theirs] or [m.row()]
    return found + [m.row() for m in theirs]


def verdicts(ours: list[Measured], rivals: list[Measured]) -> list[str]:
    """A sentence for each of ours beside each rival."""
    found = []
    for m in ours:
        for r in rivals:
            if not (m.missing or r.missing):
                memory = f", with {m.peak_bytes / r.peak_bytes:.2f}x its memory" * bool(
                    m.peak_bytes and r.peak_bytes
                )
                found.append(f"{m.name} is {m.ratio(r):.2f}x {r.name}{memory}")
    return found


def python(module: str) -> list[str]:
    """The command that runs main() of a module of this package: with -m, a clone in the working
    directory would come before the installed package."""
    start = f"import sys; sys.path[:] = {sys.path!r}; from {module} import main; sys.exit(main())"
    return [sys.executable, "-c", start]


def environment(threads: int) -> dict[str, str]:
    """So many threads for everyone (0: all cores); how they wait is each one's own choice."""
    return dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """The result of bench/worker.py.  Raises UserError if it fails."""
    found = in_process(python("backglass.bench.worker"), job)
    if "error" in found:
        raise UserError(f"bench: our own {job['kind']} worker {found['error']}")
    return found


def rival(script: str, needs: tuple[str, ...], job: dict[str, Any]) -> dict[str, Any]:
    """The result of a script in bench/rivals, or {"error": why there is none}."""
    command, missing = rival_command(script, needs)
    return {"error": missing} if missing else in_process(command, job)


def rival_command(script: str, needs: tuple[str, ...]) -> tuple[list[str], str]:
    """(how a script in bench/rivals is started, why it cannot be).  It takes a job as its last
    argument."""
    if not (RIVALS / script).exists():
        return [], "needs a checkout of the repository (bench/rivals)"
    if absent := [name for name in needs if importlib.util.find_spec(name) is None]:
        return [], f"not installed: pip install {' '.join(absent)}"
    return [sys.executable, str(RIVALS / script)], ""


def in_process(command: list[str], job: dict[str, Any]) -> dict[str, Any]:
    """A JSON job in, a JSON result out: the last line of standard output.  {"error": …} with the
    last line of what it said if it fails."""
    done = subprocess.run(
        [*command, json.dumps(job)], capture_output=True, text=True,
        env=environment(job["threads"]),
    )  # fmt: skip
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or ["no message"]
        last = done.stderr.strip().splitlines()[-1:] or said[-1:]
        return {"error": f"failed with exit code {done.returncode}: {last[0]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


@dataclass(frozen=True)
class Watched:
    """A process up to the line that was waited for.  seconds: from its start to that line;
    reached: whether it came."""

    lines: list[str]
    seconds: float
    reached: bool
    peak_bytes: int


def watch(
    command: list[str], last: Callable[[str], bool], env: dict[str, str],
    folder: Path | None = None, terminal: bool = False,
) -> Watched:  # fmt: skip
    """Start a process, read what it prints until a line is `last`, and kill it.

    terminal: C programs print line by line only to a terminal, so give them one (not on Windows).
    """
    start = time.perf_counter()
    read, write = os.openpty() if terminal else os.pipe()
    child = subprocess.Popen(
        command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=write, stderr=write
    )
    os.close(write)
    lines: list[str] = []
    reached = False
    try:
        with open(read, encoding="utf-8", errors="replace") as output:  # noqa: PTH123
            for line in output:
                lines.append(line.rstrip())
                if reached := last(line):
                    break
    except OSError:  # how Linux tells that nobody writes to the terminal any more
        pass
    finally:
        seconds = time.perf_counter() - start
        peak_bytes = stop(child)
    return Watched(lines, seconds, reached, peak_bytes)


def stop(child: subprocess.Popen) -> int:
    """Kill a process if it still runs; its peak memory in bytes, 0 where the system does not
    say.

    On Linux a peak is never below the one its parent had when it started the child: whoever
    watches must stay small.
    """
    if not hasattr(os, "wait4"):  # Windows
        child.kill()
        child.wait()
        return 0
    os.kill(child.pid, signal.SIGKILL)  # Popen.kill might collect it, and its peak with it
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
