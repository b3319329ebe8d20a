"""Devices: where the lines of a program execute.

numpy      the maths files, in float32 or float64.  Slow, obvious.
cpu        the Numba kernels.
cuda       the Triton kernels on an NVIDIA GPU; cuda:1 on the second.
interpret  the Triton kernels in Triton's interpreter, on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from backglass.execute.memory import Memory
from backglass.program.record import Call

NAMES = ("cpu", "numpy", "cuda", "interpret")


class Device(Protocol):
    """Turns calls into functions without arguments, all operands bound."""

    name: str
    dtypes: tuple[str, ...]  # that its kernels compute in
    captures: bool  # whether it can replay lines as one graph
    progress: Callable[[int, int], None]  # told (done, total) while kernels are compiled

    def memory(self) -> Memory:
        """Memory its kernels can work on."""
        ...

    def free_bytes(self) -> int | None:
        """Memory that a run may take; None where the operating system decides."""
        ...

    def used_bytes(self) -> int:
        """Memory in use: the process's peak, or what the GPU's driver reports."""
        ...

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of a large matrix product by the vendor's library: what `of peak` refers to."""
        ...

    def workspace_bytes(self, calls: Iterable[Call]) -> int:
        """Scratch memory that these calls' kernels share."""
        ...

    def prepare(self, calls: Iterable[Call], memory: Memory) -> None:
        """Compile what these calls need, before they are bound."""
        ...

    def fusable(self) -> list[str]:
        """Fused ops it has kernels for."""
        ...

    def bind(self, calls: Iterable[Call], memory: Memory) -> list[Callable[[], None]]: ...

    def wait(self) -> None:
        """Until every line called so far is done."""
        ...

    def capture(self, lines: list[Callable[[], None]]) -> Callable[[], None]:
        """The lines as one graph; only where it `captures`."""
        ...


def kind_of(name: str) -> str:
    """cuda of cuda:1: what is true of every GPU is asked of it, never of the name."""
    return name.partition(":")[0]


def get(name: str, **options) -> Device:
    """The device called `name`.  Raises ValueError for an unknown one."""
    if name == "numpy":
        from backglass.device.reference import Reference

        return Reference()
    if name == "cpu":
        from backglass.device.cpu import Cpu

        return Cpu(**options)
    if name == "interpret":
        from backglass.device.interpret import Interpret

        return Interpret(**options)
    if kind_of(name) == "cuda":
        from backglass.device.cuda import Cuda

        return Cuda(name, **options)
    raise ValueError(f"there is no device {name!r}; there are {', '.join(NAMES)}")
