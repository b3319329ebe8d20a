"""The generation rival: transformers' GPT-2, greedy, with its key/value cache.  The package never
imports this.

    python bench/rivals/transformers_gpt2.py '{"path": "", "batch_size": 1, "prompt_tokens": 64,
    "max_tokens": 64, "repeats": 3, "threads": 0, "layers": 12, ...}'
"""

import json
import resource
import sys
import time

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel


def load(job: dict) -> GPT2LMHeadModel:
    """The folder of the job, or random weights."""
    if job["path"]:
        return GPT2LMHeadModel.from_pretrained(job["path"], dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=job["layers"], n_head=job["heads"], n_embd=job["channels"],
        vocab_size=job["vocab_size"], n_positions=job["max_seq_len"],
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@torch.inference_mode()
def continuation(model: GPT2LMHeadModel, prompts: torch.Tensor, count: int):
    """What generate(do_sample=False) computes: (tokens of sequence 0, ms of each)."""
    ids, cache, made, ms = prompts, None, [], []
    for _ in range(count):
        start = time.perf_counter()
        out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids, cache = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
        made.append(int(ids[0, 0]))
        ms.append((time.perf_counter() - start) * 1e3)
    return made, ms


def main(job: dict) -> dict:
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    model = load(job)
    shape = (job["batch_size"], job["prompt_tokens"])
    prompts = torch.from_numpy(np.random.default_rng(0).integers(0, job["vocab_size"], shape))
    prefill_ms, ms, made = [], [], []
    for repeat in range(job["repeats"] + 1):
        made, took = continuation(model, prompts, job["max_tokens"] + 1)
        if repeat:  # the first one warms up
            prefill_ms.append(took[0])
            ms += took[1:]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return {"prefill_ms": prefill_ms, "ms": ms, "tokens": made, "peak_bytes": peak}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
