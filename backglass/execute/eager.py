"""Eager: an `ops` object that executes each call at once.

With it the model file is an ordinary Python program: `python -m pdb` stops on its lines, `p a.ln1`
prints a tensor, `n` executes one op.  The arithmetic is the same as Run's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backglass.device import Device
from backglass.execute.memory import Memory
from backglass.ops import signature
from backglass.program.record import Call, caller, make_call


class Eager:
    """ops.layernorm(y, mean, rstd, x, w, b) computes now.  after(call) is called when a line is
    done."""

    def __init__(self, device: Device, memory: Memory, after: Callable[[Call], None] | None = None):
        self._device, self._memory, self._after = device, memory, after

    def __getattr__(self, op: str):
        sig = signature(op)

        def call(*operands: Any, **attrs: Any) -> None:
            line = make_call(sig, operands, attrs, caller())
            self._device.bind([line], self._memory)[0]()
            if self._after:
                self._after(line)

        return call
