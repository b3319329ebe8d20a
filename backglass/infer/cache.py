"""The key/value cache, and the pass that makes a recorded forward use it.

The model file knows nothing of caches. Some of its ops look beyond their own row: embed and rope
(at which position is this?), attention and gqa (what came before?). with_cache replaces these and
leaves the rest of the program as it is:

    embd = embed(ids, wte, wpe)            embd = embed_at(ids, start, wte, wpe)
    h0.atty, h0.lse = attention(h0.qkv)    h0.atty, h0.k, h0.v = attention_cached(h0.qkv, start, …)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from backglass.layout import aligned
from backglass.ops import signature
from backglass.program.record import Call, Program, make_call
from backglass.view import View

GROUP = "cache"
WHOLE_SEQUENCE = ("scores", "causal_softmax", "mix")  # ops without a form for pieces
CACHED = {"attention": "attention_cached", "gqa": "gqa_cached"}


@dataclass(frozen=True)
class Cache:
    """k[l] and v[l] of shape (B, KV, P, HS) for every layer, in one flat buffer."""

    flat: View
    k: tuple[View, ...]
    v: tuple[View, ...]


def declare_cache(c: Any, B: int, dtype: str = "fp32") -> Cache:
    """The cache of B sequences of up to c.max_seq_len tokens; symbolic."""
    z = c.sizes(B, 1)
    shape = (B, z["KV"], z["P"], z["HS"])
    size = aligned(math.prod(shape))

    def view(l: int, part: int) -> View:
        at = (2 * l + part) * size
        return View(f"h{l}.{'kv'[part]}", shape, dtype, "state", GROUP, at)

    layers = range(z["L"])
    return Cache(
        View(GROUP, (2 * z["L"] * size,), dtype, "state", GROUP),
        tuple(view(l, 0) for l in layers),
        tuple(view(l, 1) for l in layers),
    )


def with_cache(program: Program, cache: Cache, start: View) -> Program:
    """The forward for a piece of each sequence, which begins at position start[b].

    Raises ValueError for a program with another number of attention lines than the cache has
    layers, or with an op that cannot work on a piece.
    """
    calls: list[Call] = []
    layer = 0
    for c in program:
        if c.op in WHOLE_SEQUENCE:
            raise ValueError(f"{c.where}: {c}\n    {c.op} cannot continue from a cache")
        if c.op == "embed" and c.ins[2] is not None:
            ids, *tables = c.ins
            c = make_call(signature("embed_at"), (*c.outs, ids, start, *tables), {}, c.where)
        elif c.op == "rope":
            x, *tables = c.ins
            c = make_call(signature("rope_at"), (*c.outs, x, start, *tables), c.attrs, c.where)
        elif c.op in CACHED:
            operands = (c.outs[0], cache.k[layer], cache.v[layer], c.ins[0], start)
            c = make_call(signature(CACHED[c.op]), operands, c.attrs, c.where)
            layer += 1
        calls.append(c)
    if layer != len(cache.k):
        raise ValueError(f"{layer} attention lines, but a cache for {len(cache.k)} layers")
    return Program(tuple(calls))


def only_cache(program: Program) -> Program:
    """The lines that fill the cache: all up to the last attention.  Of a prompt's tokens nothing
    else is wanted, least of all their logits, except of the last."""
    last = max(i for i, c in enumerate(program) if c.op in CACHED.values())
    return Program(program.calls[: last + 1])
