"""One implementation of ours, measured in its own process: a JSON job in, a JSON result out.

    python -m backglass.bench.worker '{"batch_size": 4, "seq_len": 64, "steps": 8, ...}'

Its own process, because peak memory is a property of a process.  Rivals follow the same protocol.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np


def train_steps(job: dict) -> dict:
    """Full optimizer steps on random tokens: {"ms": [...], "peak_bytes", "loss"}."""
    from backglass import device
    from backglass.models import gpt2
    from backglass.training.report import memory_mib
    from backglass.training.session import Session, device_options
    from backglass.training.settings import Settings

    names = (
        "layers",
        "heads",
        "channels",
        "vocab_size",
        "seq_len",
        "batch_size",
        "matmul",
        "rung",
        "threads",
        "device",
    )
    s = Settings(**{k: v for k, v in job.items() if k in names})
    c = gpt2.Config(
        layers=s.layers, heads=s.heads, channels=s.channels, vocab_size=s.vocab_size,
        max_seq_len=max(1024, s.seq_len),
    )  # fmt: skip
    session = Session(c, s, device.get(s.device, **device_options(s)))
    session.init()
    tokens = np.random.default_rng(0).integers(0, s.vocab_size, (s.batch_size, s.seq_len + 1))
    batch = (tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32))
    ms, loss = [], 0.0
    for step in range(job["steps"]):
        start = time.perf_counter()
        loss = session.gradients([batch], step)
        session.update(step)
        ms.append((time.perf_counter() - start) * 1e3)
    return {"ms": ms, "peak_bytes": int(memory_mib() * 2**20), "loss": loss}


if __name__ == "__main__":
    print(json.dumps(train_steps(json.loads(sys.argv[1]))))
