"""update check: ops that are not differentiated are held against closed forms.

Under a constant gradient AdamW's running means are geometric sums, so after t updates every weight
is known exactly; a global norm obeys Pythagoras; clipping leaves a vector of length min(norm,
max_norm).
"""

from __future__ import annotations

import numpy as np

from backglass.checks import inference
from backglass.checks.op import Result
from backglass.checks.samples import Sample, call_maths
from backglass.ops import Op

LIMIT = 1e-12


def check_update(op: Op) -> list[Result]:
    """Results for adamw, clip, global_norm and the inference ops; empty for any other op."""
    checks = {"adamw": _adamw, "clip": _clip, "global_norm": _global_norm, **inference.CHECKS}
    if op.name not in checks:
        return []
    return [
        Result("update", op.name, what, "", e, LIMIT) for what, e in checks[op.name](op).items()
    ]


def _call(op: Op, values: dict[str, np.ndarray], sizes: dict | None = None, **attrs) -> tuple:
    sig = op.signatures[op.name]
    return call_maths(sig, Sample(op, sizes or {}, sig.attrs | attrs, values), values)


def _adamw(op: Op) -> dict[str, float]:
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
            p, m, v, dp, moved = _call(op, values, decay_size=decayed)
            master = None if master is None else moved
            left = max(left, float(np.abs(dp).max()) if dp.shape == p.shape else np.inf)
        bad = dict(p=p, m=m, v=v, dp=g, master=master, scale=np.array([np.nan]), hyper=hyper)
        after = _call(op, bad, decay_size=decayed)
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


def _clip(op: Op) -> dict[str, float]:
    hyper = np.full(8, 0.5)
    found = {}
    for norm, max_norm, want in (
        (4.0, 0.5, 0.125),
        (0.25, 0.5, 1.0),
        (4.0, 0.0, 1.0),
        (0.0, 0.5, 1.0),
    ):
        hyper[5] = max_norm
        scale = _call(op, dict(norm=np.array([norm]), hyper=hyper))[0]
        found[f"norm {norm:g}, max {max_norm:g}"] = relative(scale, np.array([want]))
    for bad in (np.nan, np.inf):
        scale = _call(op, dict(norm=np.array([bad]), hyper=hyper))[0]
        found[f"norm {bad}"] = 0.0 if np.isnan(scale).all() and scale.shape == (1,) else np.inf
    return found


def _global_norm(op: Op) -> dict[str, float]:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal(50), rng.standard_normal(30)

    def norm(z: np.ndarray) -> np.ndarray:
        return _call(op, dict(dp=z), dict(N=z.size))[0]

    return {
        "3, 4 -> 5": relative(norm(np.array([3.0, -4.0])), np.array([5.0])),
        "Pythagoras": relative(norm(np.concatenate([x, y])) ** 2, norm(x) ** 2 + norm(y) ** 2),
        "scales": relative(norm(-2.5 * x), 2.5 * norm(x)),
    }


def relative(found: np.ndarray, want: np.ndarray) -> float:
    if np.shape(found) != np.shape(want):
        return np.inf
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))
