"""What the cuda device and its interpreter share: calls bound to the launchers in ops/<op>/gpu.py.

A launcher is called like a CPU kernel, outputs first: layernorm(y, mean, rstd, x, w, b, eps, add).
Its operands are `Tensor`s: an address, a dtype, a shape.  One that needs scratch memory declares
`<call>_workspace(**sizes, **attrs, dtype)` in bytes and is given a Tensor of bytes, `work`.  One
that multiplies matrices asks for `matmul`: the module whose launchers do it here.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backglass.device.process import HostMemory
from backglass.errors import wrong_use
from backglass.execute.memory import Memory
from backglass.ops import known_rungs, rungs_of, signature, table
from backglass.program.fuse import fused_ops, parse
from backglass.program.record import Call
from backglass.spec import Shape
from backglass.view import DTYPES, View


class OutOfBounds(Exception):
    """A kernel touched memory outside its operands; only the interpreter can tell."""


@dataclass(frozen=True)
class Tensor:
    """A kernel's operand.  Triton asks for data_ptr() and dtype; always contiguous."""

    address: int
    dtype: np.dtype
    shape: Shape
    precision: str = "ieee"  # how a matmul may read fp32: ieee, or tf32 with 10 bits of mantissa

    def data_ptr(self) -> int:
        return self.address

    def stride(self) -> Shape:
        """In elements."""
        return tuple(math.prod(self.shape[i + 1 :]) for i in range(len(self.shape)))

    def rows(self, start: int, count: int) -> Tensor:
        """count entries of the first axis, from start on."""
        at = self.address + start * math.prod(self.shape[1:]) * self.dtype.itemsize
        return Tensor(at, self.dtype, (count, *self.shape[1:]), self.precision)

    def part(self, start: int, dtype: str, *shape: int) -> Tensor:
        """A tensor that begins `start` bytes into this one: how a launcher divides its
        workspace."""
        return Tensor(self.address + start, DTYPES[dtype], shape)


class Gpu(HostMemory):
    """Binds calls to ops/<op>/gpu.py, or to the rung chosen for an op."""

    name = ""
    dtypes = ("fp32", "bf16")
    captures = False

    def __init__(self, rungs: dict[str, str] | None = None):
        self.rungs = rungs or {}
        for name, rung in self.rungs.items():
            if rung not in rungs_of(name, "gpu"):
                raise wrong_use(f"--rung {name}={rung}: {known_rungs(name, 'gpu')}")
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self.scratch = View("workspace", (0,), "u8", "state", "workspace")
        self.scratches: list[Memory] = []  # lines bound before the last growth still use theirs

    def prepare(self, calls: Iterable[Call], memory: Memory) -> None:
        """Scratch memory for all of them.  Triton compiles a kernel when it is first launched."""
        self._grow(list(calls))

    def _grow(self, calls: list[Call]) -> None:
        need = self.workspace_bytes(calls)
        if need > self.scratch.size:
            self.scratch = View("workspace", (need,), "u8", "state", "workspace")
            self.scratches.append(self.memory())
            self.scratches[-1].allocate(self.scratch)

    def fusable(self) -> list[str]:
        """Fused ops with a launcher, where no rung was asked for that it would pass over."""
        found = []
        for call in fused_ops():
            own = signature(call).op
            launcher = getattr(self.home(own), call, None)
            parts = {signature(line.op).op for line in parse(signature(call).equals)}
            if launcher and not (parts - {own, *self.asked(launcher)}) & set(self.rungs):
                found.append(call)
        return found

    def bind(self, calls: Iterable[Call], memory: Memory) -> list[Callable[[], None]]:
        calls = list(calls)
        self._grow(calls)
        return [self._line(c, memory) for c in calls]

    def _line(self, c: Call, memory: Memory) -> Callable[[], None]:
        sizes = c.sizes
        args: list[Any] = [
            None if v is None else tensor(memory, v, o.shape(sizes))
            for o, v in zip(c.signature.passed, (*c.outs, *c.ins), strict=True)
        ]
        launcher = getattr(self.module(c.op), c.op)
        named = self.asked(launcher)
        if n := self.workspace(c):
            named["work"] = Tensor(self.scratches[-1].address(self.scratch), DTYPES["u8"], (n,))
        return functools.partial(launcher, *args, *c.attrs.values(), c.add, **named)

    def workspace_bytes(self, calls: Iterable[Call]) -> int:
        return max((self.workspace(c) for c in calls), default=0)

    def workspace(self, c: Call) -> int:
        """Bytes of scratch memory the launcher of this call declares."""
        size = getattr(self.module(c.op), f"{c.op}_workspace", None)
        return size(**c.sizes, **c.attrs, dtype=c.dtype, **self.asked(size)) if size else 0

    def asked(self, function: Callable) -> dict[str, Any]:
        """What a launcher or its workspace wants besides: {"matmul": the module that does it}."""
        wants = "matmul" in inspect.signature(function).parameters
        return {"matmul": self.module("matmul")} if wants else {}

    def module(self, call: str) -> Any:
        """The module with the launcher of a call.  Raises ValueError if there is none."""
        module = self.home(signature(call).op)
        if not hasattr(module, call):
            raise ValueError(f"{call} has no GPU kernel; --device numpy runs every op")
        return module

    def home(self, op: str) -> Any:
        """An op's gpu.py, or the rung chosen for it."""
        if op in self.rungs:
            return importlib.import_module(rungs_of(op, "gpu")[self.rungs[op]])
        return table()[op].tier("gpu")


def tensor(memory: Memory, v: View, shape: Shape) -> Tensor:
    """The operand that `v` becomes, in the shape the spec gives it."""
    precision = "tf32" if v.dtype == "tf32" else "ieee"
    return Tensor(memory.address(v), DTYPES[v.dtype], shape, precision)
