"""gqa_cached piece by piece against gqa of the whole."""

import numpy as np

from backglass.checks.inference import HS, B, P, attention_in_pieces
from backglass.checks.update import call
from backglass.ops import Op, table

NH, KV = 6, 2


def closed_forms(op: Op) -> dict[str, float]:
    qkv = np.random.default_rng(15).standard_normal((B, P, NH + 2 * KV, HS))
    kv = qkv[:, :, NH:].reshape(B, P, 2, KV, HS).transpose(2, 0, 3, 1, 4)
    found = {}
    for window in (0, 1, 3, P):
        want = call(table()["gqa"], dict(qkv=qkv), dict(NH=NH), window=window)[0]
        made = attention_in_pieces(op, qkv, want, kv, window=window)
        found |= {f"{what}, window {window}": error for what, error in made.items()}
    return found
