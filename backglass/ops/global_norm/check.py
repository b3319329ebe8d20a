"""global_norm against closed forms: a norm obeys Pythagoras."""

import numpy as np

from backglass.checks.update import call, relative
from backglass.ops import Op


def closed_forms(op: Op) -> dict[str, float]:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal(50), rng.standard_normal(30)

    def norm(z: np.ndarray) -> np.ndarray:
        return call(op, dict(dp=z), dict(N=z.size))[0]

    return {
        "3, 4 -> 5": relative(norm(np.array([3.0, -4.0])), np.array([5.0])),
        "Pythagoras": relative(norm(np.concatenate([x, y])) ** 2, norm(x) ** 2 + norm(y) ** 2),
        "scales": relative(norm(-2.5 * x), 2.5 * norm(x)),
    }
