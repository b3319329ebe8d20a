"""bench train: full optimizer steps of GPT-2, ours beside rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from backglass.bench import llmc, measured
from backglass.bench.measured import Measured, rate
from backglass.device import kind_of
from backglass.tools.lines import ROOT
from backglass.training.settings import Settings

Say = Callable[[Any], None]
LLMC_SHAPE = (llmc.B, llmc.T)
# device -> ours: name -> what is asked for, the default first
VARIANTS: dict[str, dict[str, dict[str, str]]] = {
    "cpu": {"backglass": {}, "backglass, BLAS": {"matmul": "blas"}},
    "cuda": {
        "backglass, fastest": {},
        "backglass": {"matmul": "own"},
        "backglass, cuBLASLt": {"matmul": "cublaslt"},
    },
}


def job_of(s: Settings, threads: int, **more: Any) -> dict[str, Any]:
    """What workers and rivals are told of a preset's model."""
    return {
        "layers": s.layers, "heads": s.heads, "channels": s.channels,
        "vocab_size": s.vocab_size or 256, "max_seq_len": s.seq_len, "threads": threads, **more,
    }  # fmt: skip


def training_job(s: Settings, B: int, T: int, steps: int, threads: int) -> dict[str, Any]:
    longest = max(s.seq_len, T)
    more = dict(batch_size=B, seq_len=T, steps=steps, device=s.device, dtype=s.dtype)
    return job_of(s, threads, **more) | {"max_seq_len": longest, "max_autotune": False}


def case_of(preset: str, B: int, T: int, device: str = "cpu", dtype: str = "fp32") -> str:
    return f"train-{preset}-{kind_of(device)}-{dtype}-b{B}-t{T}"


def compare(
    job: dict[str, Any], preset: str, rivals: bool, llmc_folder: str | None, say: Say
) -> tuple[list[Measured], list[Measured]]:
    """(ours, rivals); `say` is told each result as it comes.  Of the first of ours, the default,
    also the time by op."""
    shape = (job["batch_size"], job["seq_len"])
    case = case_of(preset, *shape, job["device"], job["dtype"])
    if job.get("recompute"):
        case += "-recompute-" + job["recompute"].replace(",", "-")
    own = [
        partial(package, job | more | {"by_op": not k}, case, name)
        for k, (name, more) in enumerate(VARIANTS[kind_of(job["device"])].items())
    ]
    if job["device"] == "cpu":
        own.append(partial(one_file, job, case))
    others: list[Callable[[], Measured]] = []
    if rivals:
        others = [partial(pytorch, False, job, case)]
        others += [partial(pytorch, True, job, case, mode) for mode in modes(job)]
    if llmc_folder:
        others.append(partial(llmc.measure, llmc_folder, job, case))
    elif rivals and shape == LLMC_SHAPE and job["device"] == "cpu":
        others.append(lambda: Measured("llm.c", case, missing=llmc.MISSING))

    def told(run: Callable[[], Measured]) -> Measured:
        found = run()
        say(found)
        return found

    return [told(run) for run in own], [told(run) for run in others]


def modes(job: dict[str, Any]) -> list[str]:
    """Of torch.compile: its default, max-autotune if that was asked for, and the one made for small
    batches, where launches cost most."""
    small = kind_of(job["device"]) == "cuda" and job["batch_size"] <= 8
    return ["", *["max-autotune"] * job["max_autotune"], *["reduce-overhead"] * small]


def package(job: dict[str, Any], case: str, name: str, warmup: int = 2) -> Measured:
    result = measured.ours(job | {"kind": "train"})
    found = steps_of(name, case, job, result, warmup)
    return replace(found, by_op=result.get("by_op", {}))


def one_file(job: dict[str, Any], case: str) -> Measured:
    """train_gpt2.py, which an installed package does not have."""
    name, file = "train_gpt2.py", ROOT / "train_gpt2.py"
    case = case.replace("train-", "train_gpt2.py-", 1)
    if not file.exists():
        return Measured(name, case, missing="needs a checkout of the repository (train_gpt2.py)")
    return steps_of(name, case, job, measured.ours(job | {"kind": "one file", "file": str(file)}))


def pytorch(compiled: bool, job: dict[str, Any], case: str, mode: str = "") -> Measured:
    """PyTorch, eager or compiled in a mode; missing, with the command that installs it, where it is
    not there."""
    name = "torch.compile" + f", {mode}" * bool(mode) if compiled else "torch.eager"
    asked = {"compile": compiled} | ({"mode": mode} if mode else {})
    result = measured.rival("torch_gpt2.py", ("torch",), job | asked)
    return steps_of(name, case, job, result)


def steps_of(
    name: str, case: str, job: dict[str, Any], result: dict[str, Any], warmup: int = 2
) -> Measured:
    if "error" in result:
        return Measured(name, case, missing=result["error"])
    tokens = job["batch_size"] * job["seq_len"]
    peak, prepare = result["peak_bytes"], result.get("prepare_ms", 0.0)
    return rate(name, case, tokens, result["ms"], peak, warmup, prepare)
