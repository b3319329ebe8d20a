"""Poison: execute a planned program and turn memory into NaN the moment the plan says it is dead.

A result that is still right proves that nothing reads memory after its life, for this program.
"""

from __future__ import annotations

import numpy as np

from backglass.device import Device
from backglass.execute.memory import Memory
from backglass.program.plan import Plan


def run_poisoned(p: Plan, device: Device, memory: Memory) -> None:
    """Execute p's program in memory's arena, filled with NaN before and as lives end."""
    arena = memory.arena(p.peak)
    arena.view(np.float64)[:] = np.nan
    last = [0] * len(p.lives)
    for life in p.lives:
        last[life.slot] = max(last[life.slot], life.end)
    for i, line in enumerate(device.bind(p.placed(), memory)):
        line()
        for life in p.lives:
            if last[life.slot] == i:
                at = p.offsets[life.slot]
                arena[at : at + p.sizes[life.slot]].view(np.float64)[:] = np.nan
