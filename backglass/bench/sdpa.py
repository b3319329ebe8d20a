"""PyTorch's attention as a rival of ours on the GPU: its flash and its cuDNN backend, bf16.

Each in a process of its own (bench/rivals/torch_sdpa.py), before ours takes the GPU.
"""

from __future__ import annotations

from backglass.bench import measured
from backglass.bench.train import Say
from backglass.models import gpt2

BACKENDS = ("flash", "cudnn")
PHASES = {"attention": "forward_ms", "d_attention": "backward_ms"}


def measure(B: int, T: int, gpu: str, say: Say) -> dict[str, tuple[str, float]]:
    """Call -> (the faster backend, its milliseconds); `say` is told both, or why there is none."""
    c = gpt2.Config()
    job = {
        "batch_size": B, "heads": c.heads, "seq_len": T, "head_size": c.channels // c.heads,
        "device": gpu, "threads": 0,
    }  # fmt: skip
    found: dict[str, tuple[str, float]] = {}
    for backend in BACKENDS:
        name = f"torch sdpa, {backend}"
        result = measured.rival("torch_sdpa.py", ("torch",), job | {"backend": backend})
        if "error" in result:
            say(f"{name:30} {result['error']}")
            continue
        phases = {call: result[key] for call, key in PHASES.items()}
        say(f"{name:30} " + ", ".join(f"{call} {ms:.3f} ms" for call, ms in phases.items()))
        for call, ms in phases.items():
            found[call] = min(found.get(call, (name, ms)), (name, ms), key=lambda pair: pair[1])
    return found
