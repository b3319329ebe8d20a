"""bench train and bench table: training steps of GPT-2, ours beside rivals, one process each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

RIVALS = Path(__file__).parent.parent.parent / "bench" / "rivals"
GPT2_124M = dict(layers=12, heads=12, channels=768, vocab_size=50257)


@dataclass(frozen=True)
class Measured:
    """One implementation at one shape.  tokens_per_s is from the median step after warm-up."""

    name: str
    case: str
    tokens_per_s: float = 0.0
    best_tokens_per_s: float = 0.0
    peak_bytes: int = 0
    steps: int = 0
    first_ms: float = 0.0
    missing: str = ""

    def row(self, rival: Measured | None = None) -> dict:
        """A row of bench/results/*.json."""
        beside = {}
        if rival is not None and rival.tokens_per_s:
            beside = {
                "rival": rival.name,
                "rival_value": rival.tokens_per_s,
                "rival_peak_bytes": rival.peak_bytes,
                "ratio": self.tokens_per_s / rival.tokens_per_s,
            }
        return {
            "case": self.case,
            "implementation": self.name,
            "value": self.tokens_per_s,
            "unit": "tokens/s",
            "best": self.best_tokens_per_s,
            "peak_bytes": self.peak_bytes,
            "steps": self.steps,
            **beside,
        }


def measure(name: str, command: list[str], job: dict, case: str, warmup: int = 2) -> Measured:
    """Run one worker and read its result; a worker that fails is reported as missing, with its last
    line."""
    done = subprocess.run(
        [*command, json.dumps(job)], capture_output=True, text=True, env=environment()
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Measured(name, case, missing=last)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    ms = result["ms"]
    after = ms[warmup:] if len(ms) > warmup else ms[-1:]
    tokens = job["batch_size"] * job["seq_len"] * 1e3
    return Measured(
        name, case, tokens / float(np.median(after)), tokens / min(after), result["peak_bytes"],
        len(after), ms[0],
    )  # fmt: skip


def environment() -> dict[str, str]:
    """The same for everyone: threads that wait sleep instead of spinning."""
    return {"OMP_WAIT_POLICY": "passive", **os.environ}


def ours(name: str, job: dict, case: str, warmup: int = 2) -> Measured:
    return measure(name, [sys.executable, "-m", "backglass.bench.worker"], job, case, warmup)


def torch_rival(compiled: bool, job: dict, case: str) -> Measured:
    """PyTorch, eager or compiled; missing with the command that installs it where it is not
    there."""
    name = "torch.compile" if compiled else "torch.eager"
    script = RIVALS / "torch_gpt2.py"
    if not script.exists():
        return Measured(name, case, missing="needs a checkout of the repository (bench/rivals)")
    probe = [sys.executable, "-c", "import importlib.util as u; exit(u.find_spec('torch') is None)"]
    if subprocess.run(probe).returncode:
        return Measured(name, case, missing="not installed: pip install torch")
    return measure(name, [sys.executable, str(script)], job | {"compile": compiled}, case)


def compare(
    B: int, T: int, steps: int, threads: int, sizes: dict, case: str,
    rivals: bool, say: Callable[[Measured], None],
) -> list[Measured]:  # fmt: skip
    """Ours, then ours with BLAS, then the rivals; `say` is told each result as it comes."""
    job = dict(sizes, batch_size=B, seq_len=T, steps=steps, threads=threads)
    found = []
    todo: list[Callable[[], Measured]] = [
        lambda: ours("backglass", job, case),
        lambda: ours("backglass, BLAS", job | {"matmul": "blas"}, case),
    ]
    if rivals:
        todo += [lambda: torch_rival(False, job, case), lambda: torch_rival(True, job, case)]
    for run in todo:
        found.append(run())
        say(found[-1])
    return found
