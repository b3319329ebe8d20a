"""The attention rival: PyTorch's scaled_dot_product_attention, causal, bf16, forward and backward.
The package never imports this.

    python bench/rivals/torch_sdpa.py '{"batch_size": 64, "heads": 12, "seq_len": 1024,
    "head_size": 64, "backend": "cudnn", "device": "cuda", "threads": 0}'

q, k and v are tensors of their own, (B, NH, T, HS) and contiguous, so nothing is spent on taking a
packed qkv apart or on packing its gradient.  The backward is timed alone, on the graph that one
forward has left.  On the GPU both are replayed CUDA graphs, as ours are.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def main(job: dict) -> dict:
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    torch.set_default_device(job["device"])
    shape = tuple(job[name] for name in ("batch_size", "heads", "seq_len", "head_size"))
    q, k, v, dy = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()

    def forward():
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    with sdpa_kernel(BACKENDS[job["backend"]]):
        y = forward()

        def backward():
            return torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)

        return {"forward_ms": ms_of(forward), "backward_ms": ms_of(backward)}


def ms_of(run) -> float:
    """Of one call: the median over replays of several, after three to warm up."""
    for _ in range(3):
        run()
    repeats = max(1, min(50, int(5 / max(elapsed_ms(run), 0.01))))

    def several():
        for _ in range(repeats):
            run()

    replay = several
    if torch.get_default_device().type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            several()
        replay = graph.replay
    replay()
    return statistics.median(elapsed_ms(replay) for _ in range(5)) / repeats


def elapsed_ms(run) -> float:
    if torch.get_default_device().type != "cuda":
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if torch.device(job["device"]).type == "cuda":
        torch.cuda.set_device(torch.device(job["device"]).index or 0)
        # Only a stream that is not the default one can be captured.
        torch.cuda.set_stream(torch.cuda.Stream())
    print(json.dumps(main(job)))
