"""Generation: continue a prompt, one token at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from backglass.data.tokenizer import Tokenizer
from backglass.execute.run import Run
from backglass.models import gpt2
from backglass.program.step import declare, record_logits


def choose(
    logits: np.ndarray,
    rng: np.random.Generator,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
) -> int:
    """Draw a token from logits (V,).  temperature 0: the most likely one."""
    if temperature == 0:
        return int(logits.argmax())
    z = logits.astype(np.float64) / temperature
    if top_k and top_k < z.size:
        z[z < np.partition(z, -top_k)[-top_k]] = -np.inf
    p = np.exp(z - z.max())
    p /= p.sum()
    if top_p < 1:
        order = np.argsort(-p)
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= top_p]] = 0
        p /= p.sum()
    return int(rng.choice(p.size, p=p))


def sample_text(
    c: gpt2.Config, session: Any, tokenizer: Tokenizer, prompt: np.ndarray, count: int, seed: int
) -> str:
    """The model's continuation of prompt.  The whole window is computed for every token."""
    T = c.max_seq_len
    memory = session.memory.sharing("p")
    t = declare(gpt2, c, 1, T, session.s.dtype)
    c = dataclasses.replace(c, dropout=0.0)
    run = Run(record_logits(gpt2, c, 1, T, session.s.dtype), session.device, memory)
    rng, tokens = np.random.default_rng(seed), [int(i) for i in prompt]
    for _ in range(count):
        window = tokens[-T:]
        ids = memory.array(t.io.ids)
        ids[...] = 0
        ids[0, : len(window)] = window
        run()
        logits = memory.array(t.a.logits)[0, len(window) - 1, : c.vocab_size]
        tokens.append(choose(logits, rng, temperature=0.8, top_k=40))
    return tokenizer.decode(tokens[len(prompt) :])
