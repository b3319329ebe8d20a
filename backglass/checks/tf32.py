"""What TF32 may do to a result: the error that a kernel check allows where products are cut short.

Tensors of dtype tf32 are fp32 numbers.  Only matrix products differ: a tensor core reads the first
10 of the 23 bits of a mantissa, and sums in fp32.

 1  cut off or rounded, an operand is off by at most:   |δ| ≤ u = 2⁻¹⁰ of its size
 2  so one product is:                                  a(1 + δ_a)·b(1 + δ_b) ≈ ab·(1 + δ_a + δ_b)
 3  and a sum of products is off by at most:            2u·Σ|a||b|
 4  which is more than 2u·|Σ ab| where terms cancel, here or with what a `+` adds to.  How much more
    depends on the numbers: it has to be evaluated.
 5  naive does: the maths in float32, each product reading its operands cut off after 10 bits.
 6  a kernel that rounds instead errs less: to the nearer neighbour it is at most as far as to the
    one below.  A kernel that cuts errs as much.
 7  so the rule for every dtype, 2 × naive, holds here too.  Its other half, for errors that are
    small by chance, is 4 ulp with ulp = u: two operands (2), each perhaps a product's result
    itself, as P is in P·v (twice that).
 8  an output that stays what it was when products are cut hangs on no product, whatever it is
    called: it keeps fp32's bound.  One that changes has TF32's, although it may be held wide:
    attention's lse, the loss of linear_xent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

CUT = np.uint32(0xFFFFFFFF << 13 & 0xFFFFFFFF)  # sign, exponent, 10 bits of mantissa


def cut(x: np.ndarray) -> np.ndarray:
    """float32 numbers without the last 13 bits of their mantissa."""
    return (x.view(np.uint32) & CUT).view(np.float32)


class Tf32(np.ndarray):
    """A float32 array whose matrix products read their operands cut; so do those of what is
    computed from it."""

    reads: Callable[[np.ndarray], np.ndarray] = staticmethod(cut)

    def __array_ufunc__(self, ufunc: Any, method: str, *ins: Any, **named: Any) -> Any:
        return self._do(getattr(ufunc, method), ufunc is np.matmul, ins, named)

    def __array_function__(self, func: Any, types: Any, args: Any, named: Any) -> Any:
        return self._do(func, func is np.einsum, args, named)

    def _do(self, function: Any, is_product: bool, ins: tuple, named: dict) -> Any:
        given = [_plain(x) for x in ins]
        if is_product:
            given = [self.reads(x) if isinstance(x, np.ndarray) else x for x in given]
        made = function(*given, **{k: _plain(v) for k, v in named.items()})
        return made.view(type(self)) if getattr(made, "dtype", None) == np.float32 else made


def _plain(x: Any) -> Any:
    """Without the class, also inside a tuple or list, as `out` and np.concatenate have it."""
    if isinstance(x, (tuple, list)):
        return type(x)(_plain(y) for y in x)
    return x.view(np.ndarray) if isinstance(x, Tf32) else x
