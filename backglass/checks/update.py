"""update check: ops that are not differentiated are held against closed forms.

Each has them in its own folder: `closed_forms(op)` in ops/<op>/check.py returns what was compared
and how far the maths is off, as a fraction.
"""

from __future__ import annotations

import numpy as np

from backglass.checks.op import Result
from backglass.checks.samples import Sample, call_maths
from backglass.ops import Op

LIMIT = 1e-12


def check_update(op: Op) -> list[Result]:
    """A result for each closed form of the op; empty for an op that has none."""
    own = op.tier("check")
    found = own.closed_forms(op) if own else {}
    return [Result("update", op.name, what, "", e, LIMIT) for what, e in found.items()]


def call(op: Op, values: dict[str, np.ndarray], sizes: dict | None = None, **attrs) -> tuple:
    """The op's maths on values."""
    sig = op.signatures[op.name]
    return call_maths(sig, Sample(op, sizes or {}, sig.attrs | attrs, values), values)


def relative(found: np.ndarray, want: np.ndarray) -> float:
    """‖found − want‖/‖want‖; infinite if the shapes differ."""
    if np.shape(found) != np.shape(want):
        return np.inf
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))
