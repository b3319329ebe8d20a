"""embed_at against embed: each sequence's piece of the whole, 0 past the last position."""

import numpy as np

from backglass.checks.inference import STARTS, B, P, pieces
from backglass.checks.update import call, relative
from backglass.ops import Op, table

V, C = 11, 5


def closed_forms(op: Op) -> dict[str, float]:
    rng = np.random.default_rng(13)
    ids = rng.integers(0, V, (B, P))
    wte, wpe = rng.standard_normal((V, C)), rng.standard_normal((P, C))
    whole = call(table()["embed"], dict(ids=ids, wte=wte, wpe=wpe), dict(T=P))[0]
    found = {}
    for T in (1, 3, P):
        values = dict(ids=pieces(ids, T, rng.integers(0, V, (B, T))), start=STARTS)
        made = call(op, values | dict(wte=wte, wpe=wpe), dict(T=T, P=P))[0]
        found[f"pieces of {T}"] = relative(made, pieces(whole, T))
    return found
