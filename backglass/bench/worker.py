"""One implementation of ours, measured in its own process: a JSON job in, a JSON result out.

Rivals (bench/rivals) follow the same protocol: sizes, batch_size and threads (0: all cores) in;
milliseconds of each step and the process's peak memory out.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from backglass.device.cuda_faults import gpu_errors
from backglass.device.process import peak_bytes
from backglass.errors import UserError

SIZES = ("layers", "heads", "channels", "vocab_size", "max_seq_len")


def main() -> int:
    job = json.loads(sys.argv[1])
    try:
        with gpu_errors():
            print(json.dumps(KINDS[job["kind"]](job)))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.code
    return 0


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Full optimizer steps of the package on random tokens; "prepare_ms" is spent on compiling
    kernels and binding programs, "by_op" added if the job asks for it."""
    found, lines = train_steps(job)
    if lines:  # the session is gone by now: measuring ceilings takes memory too
        from backglass.bench import by_op

        step, ms = lines
        found["by_op"] = by_op.summary(step, ms, ceilings(job))
    return found


def train_steps(job: dict[str, Any]) -> tuple[dict[str, Any], tuple[Any, list[float]] | None]:
    """(what was measured, the lines of a step and their times where the job asks for them)."""
    from backglass import device
    from backglass.training.session import Session, device_options
    from backglass.training.settings import Settings

    asked = {k: job[k] for k in ("device", "dtype", "matmul", "rung", "recompute") if k in job}
    s = Settings(
        seq_len=job["seq_len"], batch_size=job["batch_size"], threads=job["threads"], **asked
    )
    session = Session(config(job), s, device.get(s.device, **device_options(s)))
    session.init()
    start = time.perf_counter()
    session.bind()
    prepare_ms = (time.perf_counter() - start) * 1e3

    def step(n: int, ids: np.ndarray, targets: np.ndarray) -> float:
        loss = session.gradients([(ids, targets)], n)
        session.update(n)
        return loss

    found = timed(step, job) | {"prepare_ms": prepare_ms}
    found["peak_bytes"] = session.device.used_bytes()
    if not job.get("by_op"):
        return found, None
    from backglass.bench import by_op

    return found, by_op.line_times(session)


def ceilings(job: dict[str, Any]) -> Any:
    from backglass import device

    if device.kind_of(job["device"]) != "cuda":
        from backglass.bench.ops import ceilings

        return ceilings(job["threads"] or None)
    from backglass.bench.gpu import ceilings

    cuda: Any = device.get(job["device"])
    return ceilings(cuda, job["dtype"])


def one_file(job: dict[str, Any]) -> dict[str, Any]:
    """The same steps of train_gpt2.py."""
    one = module_at(Path(job["file"]))
    c = SimpleNamespace(**{name: job[name] for name in SIZES})
    p, dp, m, v = one.init(c, np.random.default_rng(0)), one.zeros(c), one.zeros(c), one.zeros(c)

    def step(n: int, ids: np.ndarray, targets: np.ndarray) -> float:
        loss = one.loss_and_grads(c, p, dp, ids, targets)
        scale, _ = one.clip_scale(dp, 1.0)
        one.adamw(p, dp, m, v, n + 1, 1e-4, scale)
        return float(loss)

    return timed(step, job)


def timed(step: Callable[[int, np.ndarray, np.ndarray], float], job: dict[str, Any]) -> dict:
    """{"ms": of each step, "peak_bytes", "loss": the last}, always on the same batch."""
    shape = (job["batch_size"], job["seq_len"] + 1)
    tokens = np.random.default_rng(0).integers(0, job["vocab_size"], shape).astype(np.int32)
    ms, loss = [], 0.0
    for n in range(job["steps"]):
        start = time.perf_counter()
        loss = step(n, tokens[:, :-1], tokens[:, 1:])
        ms.append((time.perf_counter() - start) * 1e3)
    return {"ms": ms, "peak_bytes": peak_bytes(), "loss": loss}


def generate(job: dict[str, Any]) -> dict[str, Any]:
    """Greedy continuations with the cache: {"prefill_ms": prompt to first token, one for each
    repeat; "ms": one for each further token; "tokens": sequence 0's; "peak_bytes"}.

    The first repeat binds the programs and is not among them.
    """
    from backglass.infer.sampling import Sampling

    g = model(job).generator(job["batch_size"])
    shape = (job["batch_size"], job["prompt_tokens"])
    prompts = list(np.random.default_rng(0).integers(0, job["vocab_size"], shape))
    prefill_ms, ms, made = [], [], []
    for repeat in range(job["repeats"] + 1):
        steps, took, made = g.stream(prompts, job["max_tokens"] + 1, Sampling(0)), [], []
        start = time.perf_counter()
        for tokens in steps:
            took.append((time.perf_counter() - start) * 1e3)
            made.append(tokens[0])
            start = time.perf_counter()
        if repeat:
            prefill_ms.append(took[0])
            ms += took[1:]
    return {"prefill_ms": prefill_ms, "ms": ms, "tokens": made, "peak_bytes": peak_bytes()}


def model(job: dict[str, Any]) -> Any:
    """The one in job["path"], or random weights."""
    from backglass import device
    from backglass.infer.model import Model, load

    name = job.get("device", "cpu")
    if job["path"]:
        return load(job["path"], name, threads=job["threads"] or None)
    options = {"threads": job["threads"] or None} if name == "cpu" else {}
    return Model(*random_weights(job), device.get(name, **options))


def random_weights(job: dict[str, Any]) -> tuple[Any, Any, np.ndarray]:
    """(config, layout, flat buffer) of GPT-2's random start."""
    from backglass.layout import Layout
    from backglass.models import gpt2

    c = config(job)
    layout = Layout(gpt2.PARAMS, c.sizes(1, 1), "fp32")
    return c, layout, layout.initial(0)


def llmc_files(job: dict[str, Any]) -> dict[str, Any]:
    """Write what llm.c's train_gpt2 opens into job["folder"]."""
    from backglass.bench.llmc import write_files

    write_files(Path(job["folder"]), *random_weights(job))
    return {}


def config(job: dict[str, Any]) -> Any:
    from backglass.models import gpt2

    return gpt2.Config(**{name: job[name] for name in SIZES})


def module_at(path: Path) -> Any:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiles(job: dict[str, Any]) -> dict[str, Any]:
    """Compile the candidates of bench ops --tune."""
    from backglass.bench.tune import compile_share

    return compile_share(job)


KINDS = {
    "train": train, "one file": one_file, "generate": generate, "llm.c files": llmc_files,
    "tiles": tiles,
}  # fmt: skip
