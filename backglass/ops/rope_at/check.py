"""rope_at against rope: each sequence's piece of the whole."""

import numpy as np

from backglass.checks.inference import HS, STARTS, B, P, pieces
from backglass.checks.update import call, relative
from backglass.ops import Op, table

H, KV = 4, 1


def closed_forms(op: Op) -> dict[str, float]:
    rng = np.random.default_rng(14)
    qkv = rng.standard_normal((B, P, H, HS))
    tables = dict(zip(("cos", "sin"), rng.standard_normal((2, P, HS // 2)), strict=True))
    whole = call(table()["rope"], dict(qkv=qkv) | tables, dict(T=P), kv_heads=KV)[0]
    found = {}
    for T in (1, 3, P):
        values = dict(qkv=pieces(qkv, T), start=STARTS) | tables
        made = call(op, values, dict(T=T, P=P), kv_heads=KV)[0]
        found[f"pieces of {T}"] = relative(made, pieces(whole, T))
    ones = call(op, dict(qkv=qkv, start=STARTS) | tables, dict(T=P, P=P), kv_heads=KV)[0]
    return found | {"v is carried": relative(ones[:, :, -KV:], qkv[:, :, -KV:])}
