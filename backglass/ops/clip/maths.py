"""Clipping shortens the whole gradient to max_norm if it is longer, and keeps its direction.

    scale = min(1, max_norm/norm)            max_norm = hyper[5], 0 switches clipping off

The gradient itself is not touched: adamw multiplies by scale as it reads it, which saves a pass
over the buffer. A norm that is not finite gives scale = NaN, on which adamw changes nothing: a bad
step is stopped before the update.

Nothing is differentiated here.
Source: Pascanu, Mikolov and Bengio 2012, arXiv 1211.5063, algorithm 1.
"""

import numpy as np

from backglass.spec import OpSpec

SPEC = OpSpec(
    forward="norm[1] hyper[8] -> scale[1]",
    phase="update",
    wide="norm scale hyper",
    positive="norm hyper",
    flops={"clip": "2"},
    cases=(dict(), dict(), dict(), dict()),  # four draws: norm above and below max_norm
)


def clip(norm, hyper):
    max_norm = hyper[5]
    if not np.isfinite(norm[0]):
        return (np.full_like(norm, np.nan),)
    if max_norm == 0:
        return (np.ones_like(norm),)
    return (max_norm / np.maximum(norm, max_norm),)
