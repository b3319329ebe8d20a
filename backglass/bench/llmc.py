"""llm.c as a rival: its CPU program train_gpt2, built by the user, on files that we write.

    scratch folder     gpt2_124M.bin              random weights, fp32
                       gpt2_tokenizer.bin         every token is a full stop
                       dev/data/tinyshakespeare/  tiny_shakespeare_{train,val}.bin, random tokens

The program has no options: batches of 4 x 64 tokens, 41 steps, validation before every tenth step
and a sample before every twentieth.  It times its steps without those, and we stop it when we have
seen enough of them.  Source: train_gpt2.c of https://github.com/karpathy/llm.c.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from backglass.bench.measured import Measured, environment, ours, rate, watch
from backglass.errors import wrong_use

B, T = 4, 64
BATCHES = 64  # in each of the two shards
TOKENIZER_MAGIC, END_OF_TEXT = 20240328, 50256
STEP = re.compile(r"step \d+: train loss \S+ \(took ([\d.]+) ms\)")
COUNTED = re.compile(r"train dataset num_batches: (\d+)")
MISSING = (
    "not installed: git clone https://github.com/karpathy/llm.c && make -C llm.c train_gpt2, "
    "then --llmc llm.c"
)


def program(folder: str) -> Path:
    """train_gpt2 in a checkout.  Raises UserError (wrong use) if it is not there."""
    found = Path(folder).resolve() / "train_gpt2"
    if not Path(folder).is_dir():
        raise wrong_use(
            f"--llmc {folder}: there is no such folder; git clone "
            "https://github.com/karpathy/llm.c makes one"
        )
    if not os.access(found, os.X_OK):
        raise wrong_use(
            f"--llmc {folder}: there is no program train_gpt2 in it; make -C {folder} train_gpt2 "
            "builds it"
        )
    return found


def measure(folder: str, job: dict[str, Any], case: str) -> Measured:
    """job["steps"] steps of llm.c, the first of them dropped."""
    command, name = [str(program(folder))], "llm.c"
    if not hasattr(os, "openpty"):
        return Measured(name, case, missing="llm.c is measured on Linux and macOS only")
    with tempfile.TemporaryDirectory(prefix="backglass-llmc-") as scratch:
        ours(job | {"kind": "llm.c files", "folder": scratch})
        ms: list[float] = []

        def last(line: str) -> bool:
            if found := STEP.search(line):
                ms.append(float(found[1]))
            return len(ms) == job["steps"]

        env = environment(job["threads"])
        seen = watch(command, last, env, Path(scratch), terminal=True)
    batches = [int(m[1]) for line in seen.lines if (m := COUNTED.search(line))]
    if not ms:
        said = [line for line in seen.lines if line] or ["nothing"]
        return Measured(name, case, missing=f"failed before its first step; it said: {said[-1]}")
    if batches != [BATCHES]:
        why = f"built for another B or T than {B} and {T}: it counts {batches} batches of {BATCHES}"
        return Measured(name, case, missing=why)
    return rate(name, case, B * T, ms, seen.peak_bytes, warmup=1)


def write_files(folder: Path, c: Any, layout: Any, parameters: np.ndarray) -> None:
    """All that train_gpt2 opens, below `folder`."""
    from backglass.commands.data import write_shard
    from backglass.formats import llmc

    llmc.write_model(folder / "gpt2_124M.bin", c, layout, parameters)
    write_tokenizer(folder / "gpt2_tokenizer.bin", c.vocab_size)
    data = folder / "dev" / "data" / "tinyshakespeare"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        tokens = rng.integers(0, c.vocab_size, BATCHES * B * T + 1).astype(np.uint16)
        write_shard(data / f"tiny_shakespeare_{split}.bin", tokens)


def write_tokenizer(path: Path, vocab_size: int) -> None:
    """llm.c's tokenizer: 256 uint32 (magic, version 2, tokens, end-of-text), then each token's
    length and bytes."""
    header = np.zeros(256, np.uint32)
    header[:4] = TOKENIZER_MAGIC, 2, vocab_size, min(END_OF_TEXT, vocab_size - 1)
    path.write_bytes(header.tobytes() + b"\1." * vocab_size)


def code_lines(folder: str) -> int:
    """Lines of train_gpt2.c and of the headers it includes that are neither comment nor blank."""
    todo, seen = [Path(folder) / "train_gpt2.c"], set()
    count = 0
    while todo:
        file = todo.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        text = file.read_text(encoding="utf-8", errors="replace")
        for name in re.findall(r'^\s*#include\s+"([^"]+)"', text, re.M):
            todo += [file.parent / name, Path(folder) / "llmc" / Path(name).name]
        code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
        count += sum(bool(line.strip()) for line in code.splitlines())
    return count
