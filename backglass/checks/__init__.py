"""The checks, and the planted bugs that prove the checks can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from backglass.checks.op import Result
from backglass.checks.planted import Planted

__all__ = ["Planted", "Result", "check", "planted"]


def check(
    names: Iterable[str] = (), device: str = "cpu", dtypes: Iterable[str] = (), **options
) -> Iterator[Result]:
    """Check ops and models by name; without names, everything.  Yields results as they come.

    device: whose kernels are held against the maths, in every dtype it computes in unless dtypes
    says which.  Raises ValueError for a name that is neither
    an op nor a model.
    """
    from backglass import models, ops
    from backglass.checks.kernel import check_kernel
    from backglass.checks.model import check_model
    from backglass.checks.op import check_op
    from backglass.checks.update import check_update
    from backglass.device import get

    names = list(names) or [*ops.table(), *models.NAMES]
    for name in names:
        if name not in ops.table() and name not in models.NAMES:
            known = ", ".join([*ops.table(), *models.NAMES])
            raise ValueError(f"there is no op or model called {name!r}; there are {known}")
    on = get(device, **options)
    for name in names:
        if name in models.NAMES:
            yield from check_model(models.get(name), name)
            continue
        op = ops.table()[name]
        yield from check_op(op)
        yield from check_update(op)
        for dtype in tuple(dtypes) or on.dtypes:
            yield from check_kernel(op, on, dtype)


def planted(
    names: Iterable[str] = (), progress: Callable[[str], None] = lambda name: None
) -> list[Planted]:
    """Plant every bug in the named ops and models; without names, in all of them."""
    from backglass import models, ops
    from backglass.checks.planted import maths_bugs
    from backglass.checks.planted_kernel import kernel_bugs
    from backglass.checks.planted_program import program_bugs

    found = []
    for name in list(names) or [*ops.table(), *models.NAMES]:
        progress(name)
        if name in models.NAMES:
            found += program_bugs(models.get(name), name)
        else:
            found += maths_bugs(ops.table()[name]) + kernel_bugs(ops.table()[name])
    return found
