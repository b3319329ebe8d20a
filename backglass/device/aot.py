"""The aot device: kernels are compiled for a GPU that need not be there, and nothing is run.

Its lines launch into a driver that only compiles, so whatever a program would launch on the GPU, at
the same shapes and with the same specialisation, is compiled: registers, spills, shared memory and
PTX can be looked at, and a kernel that the interpreter accepts and the compiler refuses is found.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import JITFunction

from backglass.device.gpu import Gpu
from backglass.execute.memory import Memory
from backglass.program.record import Call
from backglass.view import View

ARCHS = (80, 90)  # A100, H100


@dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for one call."""

    kernel: str
    op: str
    arch: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    tensor_cores: str  # the matrix instruction it uses, or ""


class Aot(Gpu):
    """Compiles for sm_{arch}; `compiled` is what it has found so far."""

    name = "aot"

    def __init__(self, arch: int, rungs: dict[str, str] | None = None):
        self.arch, self.compiled = arch, []
        self.seen: set[tuple[str, str]] = set()
        super().__init__(rungs)
        triton.runtime.driver.set_active(_Driver(arch))

    def memory(self) -> Memory:
        return Nowhere()

    def bind(self, calls: Iterable[Call], memory: Memory) -> list[Callable[[], None]]:
        calls = list(calls)
        lines = super().bind(calls, memory)
        return [self._compiling(c, line) for c, line in zip(calls, lines, strict=True)]

    def _compiling(self, c: Call, line: Callable[[], None]) -> Callable[[], None]:
        def compile_line() -> None:
            made: list[Any] = []
            run = JITFunction.run

            def only_compile(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any):
                made.append(run(kernel, *args, grid=grid, warmup=True, **options))

            triton.runtime.driver.set_active(_Driver(self.arch))
            JITFunction.run = only_compile
            try:
                with self._threads(c.op):
                    line()
            finally:
                JITFunction.run = run
            for kernel in made:
                if (c.op, kernel.hash) not in self.seen:
                    self.seen.add((c.op, kernel.hash))
                    self.compiled.append(resources(kernel, c.op, self.arch))

        return compile_line

    @contextlib.contextmanager
    def _threads(self, op: str) -> Iterator[None]:
        """Kernels in the CUDA thread model, which only rungs have, are compiled as well."""
        if not self.rungs:
            yield
            return
        from backglass.device import aot_threads, cuda_threads

        def only_compile(kernel: Any, threads: Any, operands: tuple) -> None:
            key = (op, aot_threads.name(kernel, operands))
            if key not in self.seen:
                self.seen.add(key)
                found = aot_threads.resources(kernel, threads, operands, self.arch)
                self.compiled.append(Compiled(kernel.__name__, op, self.arch, *found, ""))

        cuda_threads.instead = only_compile
        try:
            yield
        finally:
            cuda_threads.instead = None


class Nowhere(Memory):
    """Addresses without memory behind them."""

    def address(self, view: View) -> int:
        return 1 << 40

    def allocate(self, flat: View, values: Any = None) -> Any:
        return None


class _Driver:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, arch: int):
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # kernels are remembered by device

    def get_current_stream(self, device: int) -> int:
        return 0


def resources(kernel: Any, op: str, arch: int) -> Compiled:
    """Read off what the kernel takes; the spills are ptxas's own count."""
    ptx = kernel.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        suffix = "a" if arch == 90 else ""
        command = [
            get_ptxas(arch).path,
            "-v",
            f"-arch=sm_{arch}{suffix}",
            source,
            "-o",
            f"{source}.cubin",
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = max(map(int, re.findall(r"Used (\d+) registers", said)), default=0)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", said)))
    cores = re.search(r"wgmma\.mma_async|mma\.sync", ptx)
    return Compiled(
        kernel.name, op, arch, registers, spills, kernel.metadata.shared,
        kernel.metadata.num_warps, cores[0].partition(".")[0] if cores else "",
    )  # fmt: skip
