"""The cpu device: Numba kernels on host memory."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from backglass.device import compile, host
from backglass.device.process import HostMemory
from backglass.device.reference import operands
from backglass.errors import wrong_use
from backglass.execute.memory import Memory, aligned_zeros
from backglass.ops import known_rungs, rungs_of, signature, table
from backglass.program.fuse import fused_ops, parse
from backglass.program.record import Call

numba = host.numba  # imported there, after its environment was set


class Cpu(HostMemory):
    """Binds calls to ops/<op>/cpu.py, or to the rung chosen for an op: rungs={"matmul":
    "v2_blocked"}."""

    name = "cpu"
    dtypes = ("fp32",)
    captures = False

    def __init__(self, threads: int | None = None, rungs: dict[str, str] | None = None):
        self.threads = threads or numba.config.NUMBA_NUM_THREADS
        numba.set_num_threads(self.threads)
        self.rungs = rungs or {}
        for name, rung in self.rungs.items():
            if rung not in rungs_of(name, "cpu"):
                raise wrong_use(f"--rung {name}={rung}: {known_rungs(name, 'cpu')}")
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self.work = aligned_zeros(0, np.dtype(np.float32))

    def bind(self, calls: Iterable[Call], memory: Memory) -> list[Callable[[], None]]:
        calls = list(calls)
        self._grow(calls)
        return [self._line(c, memory) for c in calls]

    def _grow(self, calls: list[Call]) -> None:
        need = self.workspace_bytes(calls) // 4
        if need > self.work.size:
            self.work = aligned_zeros(need, np.dtype(np.float32))

    def workspace_bytes(self, calls: Iterable[Call]) -> int:
        return 4 * max((self.workspace(c) for c in calls), default=0)

    def prepare(self, calls: Iterable[Call], memory: Memory) -> None:
        """Compile what is not in the kernel cache yet, in parallel processes."""
        calls = list(calls)
        self._grow(calls)
        if numba.config.DISABLE_JIT:
            return
        tasks = []
        for c in calls:
            types = tuple(numba.typeof(a) for a in self.arguments(c, memory))
            tasks.append((self.module(c.op).__name__, c.op, types))
        if todo := compile.missing(tasks):
            compile.compile_all(todo, self.progress)

    def _line(self, c: Call, memory: Memory) -> Callable[[], None]:
        return functools.partial(self.kernel(c.op), *self.arguments(c, memory))

    def arguments(self, c: Call, memory: Memory) -> list[Any]:
        """What the kernel is called with: outs, ins, attrs, add and, if it asks for one, its
        workspace."""
        outs, ins, _ = operands(c, memory)
        args = [*outs, *ins, *c.attrs.values(), c.add]
        if n := self.workspace(c):
            args.append(self.work[:n])
        return args

    def fusable(self) -> list[str]:
        """Fused ops this device has a kernel for, where no slower rung was asked for."""
        found = []
        for call in fused_ops():
            parts = {_op_of(line.op) for line in parse(signature(call).equals)}
            if hasattr(table()[_op_of(call)].tier("cpu"), call) and not parts & set(self.rungs):
                found.append(call)
        return found

    def workspace(self, c: Call) -> int:
        """Floats of scratch memory the kernel of this call declares; a rung takes what cpu.py's
        takes."""
        name, module = f"{c.op}_workspace", self.module(c.op)
        if not hasattr(module, name):
            module = table()[_op_of(c.op)].tier("cpu")
        size = getattr(module, name, None)
        return size(**c.sizes, **c.attrs, threads=self.threads) if size else 0

    def kernel(self, call: str) -> Callable:
        return getattr(self.module(call), call)

    def module(self, call: str) -> Any:
        op = table()[_op_of(call)]
        if op.name in self.rungs:
            return importlib.import_module(rungs_of(op.name, "cpu")[self.rungs[op.name]])
        module = op.tier("cpu")
        if module is None or not hasattr(module, call):
            raise ValueError(f"{call} has no CPU kernel; --device numpy runs every op")
        return module


@functools.cache
def _op_of(call: str) -> str:
    return signature(call).op
