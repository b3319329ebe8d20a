"""bench train --from-start: whole processes, from their start to step N of a preset's training.

Ours is `backglass train PRESET`: it reads and tokenises its text, validates before the first step,
logs.  The rival is PyTorch, eager, the same shape on random tokens, and does none of that.  Our
first process finds an empty kernel cache and compiles; it is told apart.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

from backglass.bench import measured
from backglass.bench.measured import TIME, Measured, watch
from backglass.bench.train import Say, case_of, training_job
from backglass.errors import UserError, wrong_use
from backglass.training.settings import Settings

RUNS = 3  # warm ones; the median is told


def compare(
    s: Settings, threads: int, rivals: bool, say: Say
) -> tuple[list[Measured], list[Measured]]:
    """(ours: warm, then cold; rivals) to step s.steps."""
    if s.micro_batches > 1:
        raise wrong_use(
            f"bench train {s.preset} --from-start: the rival has no micro-batches, and the preset "
            f"makes a step of {s.micro_batches}; choose tiny"
        )
    case = f"{case_of(s.preset, s.batch_size, s.seq_len)}-start-to-step-{s.steps}"
    with tempfile.TemporaryDirectory(prefix="backglass-start-") as scratch:
        runs = [package(s, threads, Path(scratch), k) for k in range(1 + RUNS)]
    cold = median("backglass, cold", f"{case}-cold", runs[:1])
    warm = median("backglass", case, runs[1:])
    say(warm)
    say(cold)
    if not rivals:
        return [warm, cold], []
    eager = pytorch(s, threads, case)
    say(eager)
    return [warm, cold], [eager]


def package(s: Settings, threads: int, scratch: Path, run: int) -> measured.Watched:
    """`backglass train`, with a kernel cache that the first run finds empty."""
    env = measured.environment(threads) | {"BACKGLASS_CACHE": str(scratch / "cache")}
    env.pop("NUMBA_CACHE_DIR", None)
    command = [
        *measured.python("backglass.cli"), "train", s.preset, "--steps", str(s.steps),
        "--batch-size", str(s.batch_size), "--seq-len", str(s.seq_len), "--threads", str(threads),
        "--out", str(scratch / f"run-{run}"),
    ]  # fmt: skip
    seen = watch(command, lambda line: is_step(line, s.steps), env)
    if not seen.reached:
        raise UserError(
            f"bench train --from-start: backglass train {s.preset} ended before step {s.steps}; "
            f"it said: {(seen.lines or ['nothing'])[-1]}"
        )
    return seen


def is_step(line: str, step: int) -> bool:
    """Is it the line that backglass train prints when it has done its last step?"""
    return line.split()[:3] == ["step", f"{step}/{step}", "loss"]


def pytorch(s: Settings, threads: int, case: str) -> Measured:
    """The eager rival; it prints its result right after the last step."""
    name = "torch.eager"
    job = training_job(s, s.batch_size, s.seq_len, s.steps, threads) | {"compile": False}
    command, missing = measured.rival_command("torch_gpt2.py", ("torch",))
    if missing:
        return Measured(name, case, missing=missing)
    env = measured.environment(threads)
    command.append(json.dumps(job))
    runs = [watch(command, lambda line: line.startswith("{"), env) for _ in range(RUNS)]
    for seen in runs:
        if not seen.reached:
            return Measured(name, case, missing=f"failed: {(seen.lines or ['no message'])[-1]}")
    return median(name, case, runs)


def median(name: str, case: str, runs: list[measured.Watched]) -> Measured:
    seconds = [seen.seconds for seen in runs]
    return Measured(
        name, case, statistics.median(seconds), TIME, min(seconds),
        max(seen.peak_bytes for seen in runs), len(runs),
    )  # fmt: skip
