"""bench train: full optimizer steps of GPT-2, ours beside rivals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backglass.bench import llmc, measured
from backglass.bench.measured import Measured, rate
from backglass.tools.lines import ROOT
from backglass.training.settings import Settings

Say = Callable[[Any], None]
LLMC_SHAPE = (llmc.B, llmc.T)


def job_of(s: Settings, threads: int, **more: Any) -> dict[str, Any]:
    """What workers and rivals are told of a preset's model."""
    return {
        "layers": s.layers, "heads": s.heads, "channels": s.channels,
        "vocab_size": s.vocab_size or 256, "max_seq_len": s.seq_len, "threads": threads, **more,
    }  # fmt: skip


def training_job(s: Settings, B: int, T: int, steps: int, threads: int) -> dict[str, Any]:
    longest = max(s.seq_len, T)
    more = dict(batch_size=B, seq_len=T, steps=steps, device=s.device, dtype=s.dtype)
    return job_of(s, threads, **more) | {"max_seq_len": longest}


def case_of(preset: str, B: int, T: int, device: str = "cpu", dtype: str = "fp32") -> str:
    return f"train-{preset}-{device}-{dtype}-b{B}-t{T}"


def compare(
    job: dict[str, Any], preset: str, rivals: bool, llmc_folder: str | None, say: Say
) -> tuple[list[Measured], list[Measured]]:
    """(ours, rivals); `say` is told each result as it comes."""
    shape = (job["batch_size"], job["seq_len"])
    device = job.get("device", "cpu")
    case = case_of(preset, *shape, device, job.get("dtype", "fp32"))
    if job.get("recompute"):
        case += "-recompute-" + job["recompute"].replace(",", "-")
    library, its_name = {"cpu": ("blas", "BLAS"), "cuda": ("cublaslt", "cuBLASLt")}[device]
    own: list[Callable[[], Measured]] = [
        lambda: package(job | {"matmul": "own"}, case),
        lambda: package(job | {"matmul": library}, case, f"backglass, {its_name}"),
    ]
    if device == "cpu":
        own.append(lambda: one_file(job, case))
    else:
        own.insert(0, lambda: package(job, case, "backglass, fastest"))
    others: list[Callable[[], Measured]] = []
    if rivals:
        others += [lambda: pytorch(False, job, case), lambda: pytorch(True, job, case)]
    if rivals and device == "cuda" and job["batch_size"] <= 8:  # where launches cost most
        others.append(lambda: pytorch(True, job, case, "reduce-overhead"))
    if llmc_folder:
        others.append(lambda: llmc.measure(llmc_folder, job, case))
    elif rivals and shape == LLMC_SHAPE and device == "cpu":
        others.append(lambda: Measured("llm.c", case, missing=llmc.MISSING))

    def told(run: Callable[[], Measured]) -> Measured:
        found = run()
        say(found)
        return found

    return [told(run) for run in own], [told(run) for run in others]


def package(job: dict[str, Any], case: str, name: str = "backglass", warmup: int = 2) -> Measured:
    return steps_of(name, case, job, measured.ours(job | {"kind": "train"}), warmup)


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
