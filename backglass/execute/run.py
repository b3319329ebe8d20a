"""Run: a program bound to memory once; a step is then a walk over a list of calls with fixed
arguments."""

from __future__ import annotations

from collections.abc import Callable

from backglass.device import Device
from backglass.execute.memory import Memory
from backglass.program.record import Program


class Run:
    """run() executes the program.  Everything it touches was allocated when it was made."""

    def __init__(self, program: Program, device: Device, memory: Memory):
        self.program = program
        self.lines: list[Callable[[], None]] = device.bind(program, memory)

    def __call__(self) -> None:
        for line in self.lines:
            line()
