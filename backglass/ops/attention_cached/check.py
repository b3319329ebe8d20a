"""attention_cached piece by piece against attention of the whole."""

import numpy as np

from backglass.checks.inference import HS, B, P, attention_in_pieces
from backglass.checks.update import call
from backglass.ops import Op, table

NH = 3


def closed_forms(op: Op) -> dict[str, float]:
    qkv = np.random.default_rng(11).standard_normal((B, P, 3, NH, HS))
    want = call(table()["attention"], dict(qkv=qkv))[0]
    return attention_in_pieces(op, qkv, want, qkv[:, :, 1:].transpose(2, 0, 3, 1, 4))
