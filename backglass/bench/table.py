"""bench table: what an article about hand-written training puts on one page, measured here and
now."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from backglass.bench import llmc, measured, train
from backglass.bench.measured import Measured
from backglass.bench.provenance import gpu_name
from backglass.bench.train import Say
from backglass.device import kind_of
from backglass.ops import rungs_of, table
from backglass.tools import lines
from backglass.training.settings import Settings, parse_rungs

PRESET = "gpt2-124m"
KERNELS = {"cpu": "cpu", "cuda": "gpu"}  # device -> an op's file, and the reading path
RAW = {"cpu": "backglass, naive rungs", "cuda": "backglass, v2 rungs"}
RAW_OPS = ("matmul", "layernorm", "attention")
# who, tokens/s of one GPU, on what, where that was published: a step of 524,288 tokens on 8 GPUs
PUBLISHED = (
    (
        "llm.c", 524_288 / 8 / 0.140, "8 H100 SXM, 140 ms a step",
        "github.com/KellerJordan/modded-nanogpt, records/track_1_short/2024-10-13_llmc/README.md",
    ),
    (
        "llm.c", 524_288 / 8 / 0.300, "8 A100 80GB SXM, about 300 ms a step",
        "github.com/karpathy/llm.c, scripts/run_gpt2_124M.sh",
    ),
)  # fmt: skip


def columns(
    job: dict[str, Any], rivals: bool, llmc_folder: str | None, say: Say
) -> tuple[list[Measured], list[Measured]]:
    """(ours: slow rungs, then what bench train compares; rivals: PyTorch, on the CPU llm.c).  The
    CPU's slow rungs take one step at B=1."""
    device, T, dtype = kind_of(job["device"]), job["seq_len"], job["dtype"]
    case = train.case_of(PRESET, job["batch_size"], T, device, dtype)
    slow, slow_case = job | {"rung": raw_rungs(device), "steps": 3}, case
    if device == "cpu":
        slow |= {"batch_size": 1, "steps": 1}
        slow_case = train.case_of(PRESET, 1, T, device, dtype)

    def told(name: str, run: Callable[..., Measured], *args: Any) -> Measured:
        say(f"measuring {name} …")
        return run(*args)

    ours = [told(RAW[device], train.package, slow, slow_case, RAW[device])]
    for name, more in train.VARIANTS[device].items():
        ours.append(told(name, train.package, job | more, case, name))
    if rivals:
        others = [told("torch.compile", compiled, job, case)]
    else:
        others = [Measured("torch.compile", case, missing=how_to_ask())]
    if llmc_folder:
        others.append(told("llm.c", llmc.measure, llmc_folder, job, case))
    elif device == "cpu":
        others.append(Measured("llm.c", case, missing=llmc.MISSING))
    return ours, others


def raw_rungs(device: str) -> str:
    """The slow rungs there are: on the CPU the naive ones, on the GPU those with shared memory."""
    version = {"cpu": "v1", "cuda": "v2"}[device]
    found = [op for op in RAW_OPS if version in rungs_of(op, KERNELS[device])]
    return ",".join(f"{op}={version}" for op in found)


def compiled(job: dict[str, Any], case: str) -> Measured:
    """torch.compile in the fastest of its modes."""
    found = [train.pytorch(True, job, case, mode) for mode in train.modes(job)]
    return max(found, key=lambda m: m.value)


def how_to_ask() -> str:
    """For PyTorch, where --rivals was not given."""
    missing = measured.rival_command("torch_gpt2.py", ("torch",))[1]
    return f"{missing}, then --rivals" if missing else "not asked for: --rivals"


def rows(
    job: dict[str, Any], ours: list[Measured], rivals: list[Measured], llmc_folder: str | None
) -> list[dict[str, Any]]:
    """Of the results file, with the lines of code one reads to know what was measured."""
    same = [m for m in ours if m.case == rivals[0].case]
    found = measured.rows(same, rivals) + measured.rows([m for m in ours if m not in same], [])
    to_read = code_lines(job, [*ours, *rivals], llmc_folder)
    return [r | {"code_lines": to_read[r["implementation"]]} for r in found]


def code_lines(
    job: dict[str, Any], found: list[Measured], llmc_folder: str | None
) -> dict[str, int]:
    """Implementation -> lines on its reading path.  Of PyTorch only those that call it."""
    calls, paths = measured.RIVALS / "torch_gpt2.py", lines.rows()
    device = kind_of(job["device"])
    default = Settings(device=job["device"], dtype=job["dtype"]).matmul
    rungs = {RAW[device]: raw_rungs(device)} | {
        name: f"matmul={more.get('matmul', default)}"
        for name, more in train.VARIANTS[device].items()
    }
    theirs = llmc.code_lines(llmc_folder) if llmc_folder else 0
    of_torch = lines.count(calls) if calls.exists() else 0
    return {
        m.name: our_lines(paths, device, rungs[m.name]) if m.name in rungs
        else of_torch if m.name.startswith("torch") else theirs
        for m in found
    }  # fmt: skip


def our_lines(paths: list[dict[str, Any]], device: str, rungs: str) -> int:
    """The maths and the device's kernels, a rung in the place of its op's own; kernels that import
    others of their op bring them along."""
    kernels, asked = KERNELS[device], parse_rungs(rungs)
    of_file = {name: count for r in paths for name, count in r["files"].items()}
    total = sum(r["lines"] for r in paths if r["path"] in ("maths", kernels))
    for op in table():
        rung, home = asked.get(op, "own"), f"backglass.ops.{op}.{kernels}"
        if file_of(home) in of_file:
            files = files_of(home if rung == "own" else rungs_of(op, kernels)[rung])
            total += sum(of_file[f] for f in files) - of_file[file_of(home)]
    return total


def files_of(module: str) -> set[str]:
    """The file of some kernels, and those of the op's other kernels that it imports."""
    op = ".".join(module.split(".")[:3])
    text = (lines.ROOT / file_of(module)).read_text(encoding="utf-8")
    others = re.findall(rf"^from ({op}\.(?:cpu|gpu|ladder\.\w+)) import", text, re.M)
    return {file_of(module)}.union(*map(files_of, others))


def file_of(module: str) -> str:
    return module.replace(".", "/") + ".py"


def print_table(
    job: dict[str, Any], ours: list[Measured], rivals: list[Measured], llmc_folder: str | None
) -> None:
    """A Markdown table, columns as rows because screens are narrow."""
    B, T, device = job["batch_size"], job["seq_len"], kind_of(job["device"])
    to_read = code_lines(job, [*ours, *rivals], llmc_folder)
    where = gpu_name(job["device"]) if device == "cuda" else "this machine"
    print(
        f"\n{PRESET} on {where}, {job['dtype']}, B={B}, T={T}: forward, backward, clipping, AdamW\n"
    )
    print("| | tokens/s | peak memory | code lines |")
    print("|---|--:|--:|--:|")
    for m in (*rivals, *ours):
        if m.missing:
            print(f"| {m.name} | {m.missing} | | |")
            continue
        note = f" (one step at B=1, T={T})" if m.name == RAW["cpu"] else ""
        count = f"{to_read[m.name]:,}" + " and PyTorch's own" * m.name.startswith("torch")
        print(f"| {m.name}{note} | {m.value:,.1f} | {m.peak_bytes / 2**30:.2f} GiB | {count} |")
    kernels = {"cpu": "CPU", "cuda": "GPU"}[device]
    also = "; of llm.c train_gpt2.c and its headers" if device == "cpu" else ""
    print(f"\ncode lines: of ours the maths and the {kernels} kernels (backglass lines){also}")
    if device == "cuda":
        print("\nPublished elsewhere, on other machines, not measured here; a GPU's share:\n")
        for name, value, what, source in PUBLISHED:
            print(
                f"- {name}: {round(value, -3):,.0f} tokens/s, bf16, B=64, T=1024, {what} ({source})"
            )
