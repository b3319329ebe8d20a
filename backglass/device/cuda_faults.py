"""What a failing GPU says, as one paragraph instead of a traceback.

The errors of CUDA arrive as exceptions of CuPy, of Triton, of Numba, or of our calls of cuBLASLt.
They are recognised without importing any of these: what nobody has imported cannot have failed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from backglass.errors import UserError

TRITON_SAYS = "Triton Error [CUDA]"


class LibraryError(RuntimeError):
    """A library of NVIDIA's refused a call."""


@contextmanager
def gpu_errors(more: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Makes an error of the GPU inside a UserError; more: a sentence to end it with."""
    try:
        yield
    except Exception as error:
        if (said := explain(error)) is None:
            raise
        _hush()
        raise UserError(f"{said} {more()}".rstrip()) from None


def explain(error: BaseException) -> str | None:
    """What happened and what to do; None for an error that is not the GPU's."""
    text = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, known("triton.runtime.errors", "OutOfResources")):
        return (
            f"A kernel needs more of a multiprocessor than this GPU has: {text}. It was written "
            f"for larger ones; please report it with the output of `backglass doctor`. --device "
            f"cpu runs everything."
        )
    if not from_cuda(error, text):
        return None
    if "out of memory" in text.lower():
        return (
            f"The GPU's memory ran out: {text}. `nvidia-smi` lists who holds it. A smaller "
            f"--batch-size takes less, and when training --recompute does; `backglass plan` tells "
            f"how much."
        )
    return (
        f"The GPU failed: {text}. After that nothing of this process can use it. If `nvidia-smi` "
        f"no longer lists it, only a reset or a reboot brings it back (`sudo dmesg | grep -i xid` "
        f"tells why it left); if it does, start again."
    )


def from_cuda(error: BaseException, text: str) -> bool:
    """Whether CuPy, Numba, Triton's launcher or one of our own calls raised it."""
    theirs = (
        *known("cupy", "cuda.runtime.CUDARuntimeError"),
        *known("cupy", "cuda.driver.CUDADriverError"),
        *known("cupy", "cuda.memory.OutOfMemoryError"),
        *known("numba.cuda.cudadrv.error", "CudaDriverError"),
    )
    return isinstance(error, (LibraryError, *theirs)) or (
        isinstance(error, RuntimeError) and text.startswith(TRITON_SAYS)
    )


def known(module: str, path: str) -> tuple[type, ...]:
    """(the class,) if its module has been imported, else ()."""
    found: Any = sys.modules.get(module)
    for name in path.split("."):
        found = getattr(found, name, None)
    return (found,) if isinstance(found, type) else ()


def _hush() -> None:
    """After a fault CuPy cannot free anything either.  Each of its destructors would print a
    traceback, and bury the paragraph."""
    told = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if explain(unraisable.exc_value) is None:
            told(unraisable)

    sys.unraisablehook = hook
