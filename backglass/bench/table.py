"""bench table: what an article about hand-written training puts on one page, measured here and
now."""

from __future__ import annotations

from collections.abc import Callable

from backglass.bench import train
from backglass.bench.train import GPT2_124M, Measured

LLMC = "not measured here: git clone https://github.com/karpathy/llm.c && make train_gpt2"


def columns(
    threads: int, rivals: bool, steps: int, say: Callable[[str], None]
) -> dict[str, Measured]:
    """Every column of the table; `say` is told what is being measured."""
    job = dict(GPT2_124M, batch_size=4, seq_len=64, steps=steps, threads=threads)
    naive = job | {"batch_size": 1, "steps": 1, "rung": "matmul=v1,layernorm=v1"}
    case = "train-gpt2-124m-cpu-fp32-b4-t64"
    found: dict[str, Measured] = {}

    def add(column: str, run: Callable[[], Measured]) -> None:
        say(f"measuring {column} …")
        found[column] = run()

    add("ours", lambda: train.ours("backglass", job, case))
    add("ours with BLAS", lambda: train.ours("backglass, BLAS", job | {"matmul": "blas"}, case))
    add(
        "ours, naive rungs",
        lambda: train.ours(
            "backglass, naive rungs", naive, "train-gpt2-124m-cpu-fp32-b1-t64", warmup=0
        ),
    )
    if rivals:
        add("PyTorch eager", lambda: train.torch_rival(False, job, case))
        add("PyTorch compiled", lambda: train.torch_rival(True, job, case))
    else:
        found["PyTorch compiled"] = Measured(
            "torch.compile", case, missing="backglass bench table --rivals"
        )
    found["llm.c"] = Measured("llm.c", case, missing=LLMC)
    return found


def print_table(found: dict[str, Measured]) -> None:
    """A Markdown table, columns as rows because screens are narrow."""
    from backglass.tools.lines import rows

    lines = next(r["lines"] for r in rows() if r["path"] == "maths")
    print("\nGPT-2 124M on this machine, fp32, B=4, T=64: forward, backward, clipping, AdamW\n")
    print("| | tokens/s | peak memory |")
    print("|---|--:|--:|")
    for name, m in found.items():
        if m.missing:
            print(f"| {name} | {m.missing} | |")
        else:
            note = " (one step at B=1)" if "b1" in m.case else ""
            print(f"| {name}{note} | {m.tokens_per_s:,.1f} | {m.peak_bytes / 2**30:.2f} GiB |")
    print(f"\ncode lines on the maths path (model, ops' maths, spec, recording, loop): {lines:,}")
