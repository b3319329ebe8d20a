"""bench table: what an article about hand-written training puts on one page, measured here and
now."""

from __future__ import annotations

import importlib
from typing import Any

from backglass import presets
from backglass.bench import llmc, measured, train
from backglass.bench.measured import Measured
from backglass.bench.train import Say
from backglass.tools import lines

PRESET = "gpt2-124m"
NAIVE = "backglass, naive rungs"
NAIVE_RUNGS = "matmul=v1,layernorm=v1"


def columns(
    threads: int, steps: int, rivals: bool, llmc_folder: str | None, say: Say
) -> tuple[list[Measured], list[Measured]]:
    """(ours: all kernels, BLAS, naive rungs; rivals: PyTorch, llm.c) at llm.c's shape; the naive
    rungs take one step of a shorter batch."""
    B, T = train.LLMC_SHAPE
    s = presets.get(PRESET)
    job, case = train.training_job(s, B, T, steps, threads), train.case_of(PRESET, B, T)
    short = train.training_job(s, 1, T, 1, threads) | {"rung": NAIVE_RUNGS}

    def told(name: str, run: Any) -> Measured:
        say(f"measuring {name} …")
        return run()

    ours = [
        told("backglass", lambda: train.package(job, case)),
        told("BLAS", lambda: train.package(job | {"matmul": "blas"}, case, "backglass, BLAS")),
        told(
            "the naive rungs",
            lambda: train.package(short, train.case_of(PRESET, 1, T), NAIVE, warmup=0),
        ),
    ]
    return ours, [
        told("torch.compile", lambda: train.pytorch(True, job, case))
        if rivals
        else Measured("torch.compile", case, missing=how_to_ask()),
        told("llm.c", lambda: llmc.measure(llmc_folder, job, case))
        if llmc_folder
        else Measured("llm.c", case, missing=llmc.MISSING),
    ]


def how_to_ask() -> str:
    """For PyTorch, where --rivals was not given."""
    missing = measured.rival_command("torch_gpt2.py", ("torch",))[1]
    return f"{missing}, then --rivals" if missing else "not asked for: --rivals"


def rows(
    ours: list[Measured], rivals: list[Measured], llmc_folder: str | None
) -> list[dict[str, Any]]:
    """Of the results file, with the lines of code one reads to know what was measured."""
    *same_shape, naive = ours
    found = [*measured.rows(same_shape, rivals), naive.row()]
    to_read = code_lines(llmc_folder)
    return [r | {"code_lines": to_read[r["implementation"]]} for r in found]


def code_lines(llmc_folder: str | None) -> dict[str, int]:
    """Implementation -> lines on its reading path.  Of PyTorch only those that call it."""
    calls, paths = measured.RIVALS / "torch_gpt2.py", lines.rows()
    return {
        "backglass": our_lines(paths, ""), "backglass, BLAS": our_lines(paths, "matmul=blas"),
        NAIVE: our_lines(paths, NAIVE_RUNGS),
        "torch.compile": lines.count(calls) if calls.exists() else 0,
        "llm.c": llmc.code_lines(llmc_folder) if llmc_folder else 0,
    }  # fmt: skip


def our_lines(paths: list[dict[str, Any]], rungs: str) -> int:
    """The maths and the CPU kernels, where a rung takes the place of its op's cpu.py."""
    of_file = {name: count for r in paths for name, count in r["files"].items()}
    total = sum(r["lines"] for r in paths if r["path"] in ("maths", "cpu"))
    for op, rung in (pair.split("=") for pair in rungs.split(",") if pair):
        module = importlib.import_module(f"backglass.ops.{op}.ladder").VERSIONS[rung]
        total -= of_file[f"backglass/ops/{op}/cpu.py"]
        total += of_file[f"{module.replace('.', '/')}.py"]
    return total


def print_table(ours: list[Measured], rivals: list[Measured], llmc_folder: str | None) -> None:
    """A Markdown table, columns as rows because screens are narrow."""
    B, T = train.LLMC_SHAPE
    to_read, (first, blas, naive) = code_lines(llmc_folder), ours
    print(f"\n{PRESET} on this machine, fp32, B={B}, T={T}: forward, backward, clipping, AdamW\n")
    print("| | tokens/s | peak memory | code lines |")
    print("|---|--:|--:|--:|")
    for m in (*rivals, naive, first, blas):
        if m.missing:
            print(f"| {m.name} | {m.missing} | | |")
            continue
        note = f" (one step at B=1, T={T})" if m.name == NAIVE else ""
        count = f"{to_read[m.name]:,}" + " and PyTorch's own" * m.name.startswith("torch")
        print(f"| {m.name}{note} | {m.value:,.1f} | {m.peak_bytes / 2**30:.2f} GiB | {count} |")
    print(
        "\ncode lines: of ours the maths and the CPU kernels (backglass lines); of llm.c "
        "train_gpt2.c and its headers"
    )
