"""The PyTorch rival: a GPT-2 as nanoGPT writes it, fused AdamW, SDPA.  The package never imports
this.

    python bench/rivals/torch_gpt2.py '{"batch_size": 4, "seq_len": 64, "steps": 8, "threads": 0,
    "compile": false, "layers": 12, ...}'

With "device": "cuda" and "dtype": bf16 is autocast, tf32 the matmuls' precision; "mode" is
torch.compile's.
"""

import json
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, C: int, NH: int):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.proj = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.fc, self.fcproj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.NH = NH

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln1(x)).split(C, 2)
        q, k, v = (z.view(B, T, self.NH, C // self.NH).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).contiguous().view(B, T, C))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, L: int, C: int, NH: int, V: int, P: int):
        super().__init__()
        self.V = -(-V // 128) * 128
        self.wte, self.wpe = nn.Embedding(self.V, C), nn.Embedding(P, C)
        self.blocks = nn.ModuleList([Block(C, NH) for _ in range(L)])
        self.lnf, self.head = nn.LayerNorm(C), nn.Linear(C, self.V, bias=False)
        self.head.weight = self.wte.weight
        self.apply(self.init)

    @staticmethod
    def init(module):
        """As nanoGPT does.  PyTorch's own N(0, 1) embeddings make the softmax underflow into
        denormals, and every step four times slower."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.lnf(x))
        return F.cross_entropy(logits.view(-1, self.V), targets.reshape(-1))


def main(job: dict) -> dict:
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    asked, dtype = job.get("device", "cpu"), job.get("dtype", "fp32")
    device = torch.device(asked).type
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.manual_seed(0)
    torch.set_default_device(asked)
    if device == "cuda":
        torch.cuda.set_device(
            torch.device(asked).index or 0
        )  # whose memory is asked for, and what is waited for
    sizes = ("layers", "channels", "heads", "vocab_size", "max_seq_len")
    model = GPT2(*(job[name] for name in sizes))
    run = torch.compile(model, mode=job.get("mode")) if job["compile"] else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    tokens = torch.randint(0, job["vocab_size"], (job["batch_size"], job["seq_len"] + 1))
    ms, loss = [], torch.zeros(())
    for _ in range(job["steps"]):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()
        ms.append((time.perf_counter() - start) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        peak = total - free
    return {"ms": ms, "peak_bytes": peak, "loss": float(loss.detach())}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))), flush=True)  # bench --from-start waits for it
