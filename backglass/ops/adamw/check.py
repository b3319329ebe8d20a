"""adamw against closed forms: under a constant gradient its running means are geometric sums."""

import numpy as np

from backglass.checks.update import call, relative
from backglass.ops import Op


def closed_forms(op: Op) -> dict[str, float]:
    """t updates under a constant gradient: m = (1 − β1ᵗ)·g, v = (1 − β2ᵗ)·g², and p a geometric
    series; with a master, p and master are the same series in real numbers."""
    rng = np.random.default_rng(3)
    n, decayed, lr, b1, b2, eps, wd, updates = 9, 4, 0.01, 0.9, 0.95, 1e-3, 0.2, 5
    p0, g = rng.standard_normal(n), rng.standard_normal(n)
    step = lr * g / (np.abs(g) + eps)
    keep = 1 - lr * np.where(np.arange(n) < decayed, wd, 0.0)
    want = p0 * keep**updates - step * sum(keep**k for k in range(updates))
    found = {}
    for title, master in (("", None), (" with master", p0.copy())):
        p = p0.copy() if master is None else rng.standard_normal(n)  # what p held is not read
        m, v, dp, left = np.zeros(n), np.zeros(n), np.zeros(n), 0.0
        for t in range(1, updates + 1):
            hyper = np.array([lr, b1, b2, eps, wd, 1.0, 1 / (1 - b1**t), 1 / (1 - b2**t)])
            values = dict(p=p, m=m, v=v, dp=4 * g, master=master)
            values |= dict(scale=np.array([0.25]), hyper=hyper)
            p, m, v, dp, moved = call(op, values, decay_size=decayed)
            master = None if master is None else moved
            left = max(left, float(np.abs(dp).max()) if dp.shape == p.shape else np.inf)
        bad = dict(p=p, m=m, v=v, dp=g, master=master, scale=np.array([np.nan]), hyper=hyper)
        after = call(op, bad, decay_size=decayed)
        names = "p m v dp master".split()
        untouched = all(np.array_equal(a, bad[k]) for a, k in zip(after, names, strict=True))
        found |= {
            f"p{title}": relative(p, want),
            f"m{title}": relative(m, (1 - b1**updates) * g),
            f"v{title}": relative(v, (1 - b2**updates) * g * g),
            f"dp zeroed{title}": left,
            f"bad scale{title}": 0.0 if untouched else np.inf,
        }
    return found | {"master": relative(master, want)}
