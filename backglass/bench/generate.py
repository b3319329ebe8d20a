"""bench generate: greedy decoding with the key/value cache, ours beside transformers.

prefill    a prompt of P tokens to the first new one; P·B tokens
decode     each further token; B tokens
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backglass import presets
from backglass.bench import measured
from backglass.bench.measured import Measured, rate
from backglass.bench.train import Say, job_of
from backglass.bench.worker import SIZES
from backglass.errors import wrong_use

REPEATS = 3


def job_for(name: str, P: int, N: int, threads: int) -> dict[str, Any]:
    """Of a preset with random weights, or of a model on disk.  Raises UserError (wrong use) if it
    is neither, or if P + N tokens do not fit into its context."""
    path = ""
    if name in presets.ALL:
        job = job_of(presets.get(name), threads)
    else:
        path, job = on_disk(name, threads)
    if P + N > job["max_seq_len"]:
        raise wrong_use(
            f"bench generate {name}: --prompt-tokens {P} and --max-tokens {N} do not fit into its "
            f"context of {job['max_seq_len']} tokens; choose fewer"
        )
    return job | {
        "kind": "generate", "path": path, "prompt_tokens": P, "max_tokens": N, "repeats": REPEATS,
    }  # fmt: skip


def on_disk(name: str, threads: int) -> tuple[str, dict[str, Any]]:
    """(folder, sizes) of a run, a checkpoint, a folder of transformers or hf:NAME."""
    from backglass.formats import hf
    from backglass.infer.model import find

    if not (Path(name).exists() or name.startswith("hf:")):
        raise wrong_use(
            f"bench generate {name}: neither a preset ({', '.join(presets.ALL)}) nor a path; "
            "expected a run, a checkpoint, a folder saved by transformers, or hf:NAME"
        )
    folder = find(name)
    c = hf.read_config(folder)
    return str(folder), {n: getattr(c, n) for n in SIZES} | {"threads": threads}


def compare(
    job: dict[str, Any], name: str, batches: tuple[int, ...], rivals: bool, say: Say
) -> list[tuple[list[Measured], list[Measured]]]:
    """(ours, rivals) of each batch size's prefill and decode; `say` is told each as it comes."""
    found = []
    for B in batches:
        asked = job | {"batch_size": B}
        cases = cases_of(name, asked)
        say(f"B={B}")
        own = phases("backglass", cases, asked, measured.ours(asked), say)
        others: list[list[Measured]] = [[], []]
        if rivals:
            needs = ("torch", "transformers")
            result = measured.rival("transformers_gpt2.py", needs, asked)
            others = [[m] for m in phases("transformers", cases, asked, result, say)]
        found += [([m], r) for m, r in zip(own, others, strict=True)]
    return found


def cases_of(name: str, job: dict[str, Any]) -> tuple[str, str]:
    """(prefill, decode)."""
    model = name if name in presets.ALL else Path(name).name
    shape = f"{model}-cpu-fp32-b{job['batch_size']}-p{job['prompt_tokens']}"
    return f"prefill-{shape}", f"generate-{shape}-n{job['max_tokens']}"


def phases(
    name: str, cases: tuple[str, str], job: dict[str, Any], result: dict[str, Any], say: Say
) -> list[Measured]:
    """[prefill, decode] of a worker's result."""
    if "error" in result:
        missing = [Measured(name, case, missing=result["error"]) for case in cases]
        say(missing[0])
        return missing
    B, P, peak = job["batch_size"], job["prompt_tokens"], result["peak_bytes"]
    prefill = rate(name, cases[0], B * P, result["prefill_ms"], peak)
    decode = rate(name, cases[1], B, result["ms"], peak)
    for phase, m in (("prefill", prefill), ("decode", decode)):
        say(f"{phase:8} {m}")
    return [prefill, decode]
