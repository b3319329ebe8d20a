"""Planted kernel bugs: the numpy device in float32 made to misbehave in one way; the kernel check
must notice."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from backglass.checks.kernel import check_kernel
from backglass.checks.planted import Planted, small_cases
from backglass.device.reference import Reference, operands
from backglass.execute.memory import Memory
from backglass.ops import Op
from backglass.program.record import Call


@dataclass
class Misbehaving:
    """The numpy device in float32 with one defect in every line."""

    defect: str
    name: str = "planted"
    dtypes: tuple[str, ...] = ("fp32",)
    captures: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None
    turn: int = 0

    def fusable(self) -> list[str]:
        return []

    def memory(self) -> Memory:
        return Memory()

    def bind(self, calls: Iterable[Call], memory: Memory) -> list[Callable[[], None]]:
        return [self._line(c, memory) for c in calls]

    def _line(self, c: Call, memory: Memory) -> Callable[[], None]:
        outs, _, _ = operands(c, memory)
        right = Reference().bind([self._altered(c)], memory)[0]
        self.turn += 1
        turn = self.turn

        def line() -> None:
            before = [None if o is None else o.copy() for o in outs]
            right()
            for o, start in zip(outs, before, strict=True):
                if o is not None:
                    DEFECTS[self.defect](o.reshape(-1), start.reshape(-1), turn)

        return line

    def _altered(self, c: Call) -> Call:
        if self.defect == "ignores +":
            return replace(c, outs=tuple(v and replace(v, add=False) for v in c.outs))
        if self.defect == "adds where it should overwrite":
            can = [o.add for o in c.signature.outs]
            outs = zip(c.outs, can, strict=True)
            return replace(c, outs=tuple(v and replace(v, add=v.add or ok) for v, ok in outs))
        return c


# What a defect does to one flat output after the right result is in it: (output, what it held
# before the call, which run).
Defect = Callable[[np.ndarray, np.ndarray, int], None]
DEFECTS: dict[str, Defect] = {
    "ignores +": lambda out, before, turn: None,
    "adds where it should overwrite": lambda out, before, turn: None,
    "leaves the last element": lambda out, before, turn: np.copyto(out[-1:], before[-1:]),
    "never writes": lambda out, before, turn: np.copyto(out, before),
    "writes past the end": lambda out, before, turn: _poke(out, out.size),
    "writes before the start": lambda out, before, turn: _poke(out, -1),
    "rounds to bf16": lambda out, before, turn: np.copyto(
        out, (out.view(np.uint32) & 0xFFFF0000).view(np.float32)
    ),
    "scaled by 0.1 %": lambda out, before, turn: np.copyto(out, out * np.float32(1.001)),
    "differs between runs": lambda out, before, turn: np.copyto(
        out, out * np.float32(1 + turn * 2e-7)
    ),
    "one NaN": lambda out, before, turn: out.__setitem__(out.size // 2, np.nan),
}


def _poke(flat: np.ndarray, index: int) -> None:
    """Write outside an array, as a kernel with a wrong bound would."""
    address = flat.ctypes.data + index * flat.itemsize
    outside = (ctypes.c_char * flat.itemsize).from_address(address)
    np.ndarray((1,), flat.dtype, buffer=outside)[0] = 1


def kernel_bugs(op: Op) -> list[Planted]:
    """Every defect that concerns the op, in every call of it."""
    found = []
    cases = small_cases(op)
    right = all(r.ok for r in check_kernel(op, Reference(), cases=cases))
    for defect in DEFECTS:
        if not _concerned(op, defect):
            continue
        with np.errstate(all="ignore"):
            caught = not all(r.ok for r in check_kernel(op, Misbehaving(defect), cases=cases))
        outcome = "caught" if caught and right else "missed"
        found.append(Planted("kernel", op.name, defect, "every call", outcome))
    return found


def _concerned(op: Op, defect: str) -> bool:
    """A defect about '+' needs an output that may accumulate."""
    if "+" in defect or "adds" in defect:
        return any(o.add for s in op.signatures.values() if not s.equals for o in s.outs)
    return True
