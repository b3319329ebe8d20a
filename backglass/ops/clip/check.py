"""clip against closed forms: what it leaves is min(norm, max_norm) long."""

import numpy as np

from backglass.checks.update import call, relative
from backglass.ops import Op


def closed_forms(op: Op) -> dict[str, float]:
    hyper = np.full(8, 0.5)
    found = {}
    for norm, max_norm, want in (
        (4.0, 0.5, 0.125),
        (0.25, 0.5, 1.0),
        (4.0, 0.0, 1.0),
        (0.0, 0.5, 1.0),
    ):
        hyper[5] = max_norm
        scale = call(op, dict(norm=np.array([norm]), hyper=hyper))[0]
        found[f"norm {norm:g}, max {max_norm:g}"] = relative(scale, np.array([want]))
    for bad in (np.nan, np.inf):
        scale = call(op, dict(norm=np.array([bad]), hyper=hyper))[0]
        found[f"norm {bad}"] = 0.0 if np.isnan(scale).all() and scale.shape == (1,) else np.inf
    return found
