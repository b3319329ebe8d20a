"""One cell of an input at a time: what finite differences say about its gradient.

φ(x) = ⟨g, f(x)⟩ is one number, g the gradient that comes from above, and ∂φ/∂x[cell] is what the
backward has to return there.  The difference of f is taken before the product with g, so outputs
that the cell does not reach cancel to the last bit and make no noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from backglass.checks.op import central_difference, differentiated
from backglass.checks.samples import Sample

STEP = 5e-4  # of central_difference, in units of the input's size


def typical_size(x: np.ndarray) -> float:
    """Of the numbers of x, at most 1: a step is to be small beside them.  The median, because a few
    outliers say nothing of the others; the root mean square where most are zero."""
    sizes = np.abs(x)
    found = float(np.median(sizes)) or float(np.sqrt(np.mean(sizes * sizes)))
    return min(1.0, found) if np.isfinite(found) and found > 0 else 1.0


def slopes(sample: Sample, name: str, cells: Iterable[int], eps: float) -> Iterator[float]:
    """∂φ/∂x[cell] of each cell (a flat index) of input `name`, in fourth order."""
    moved, g = mover(sample, name)
    for cell in cells:
        yield float(g @ central_difference(lambda by, cell=cell: moved(cell, by), eps))


def slopes_by_step(
    sample: Sample, name: str, cell: int, steps: Iterable[float]
) -> Iterator[tuple[float, float]]:
    """(h, (φ(x + h) − φ(x − h))/2h) at one cell.  Second order: the truncation error falls with h²
    and the rounding error grows with 1/h, which is the V that is worth looking at."""
    moved, g = mover(sample, name)
    for h in steps:
        yield h, float(g @ (moved(cell, h) - moved(cell, -h)) / (2 * h))


def mover(sample: Sample, name: str) -> tuple[Callable[[int, float], np.ndarray], np.ndarray]:
    """(f with one cell of `name` moved by so much, g)."""
    f, g = differentiated(sample)
    x = sample.values[name].copy()
    flat = x.reshape(-1)

    def moved(cell: int, by: float) -> np.ndarray:
        kept = flat[cell]
        flat[cell] = kept + by
        try:
            return f({name: x})
        finally:
            flat[cell] = kept

    return moved, g
