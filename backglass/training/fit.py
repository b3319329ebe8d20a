"""Does a run fit into a GPU's memory?  Asked before anything is allocated."""

from __future__ import annotations

from typing import Any

from backglass.device import Device
from backglass.errors import UserError
from backglass.models import gpt2
from backglass.program.budget import frontier, largest_batch
from backglass.program.plan import Plan
from backglass.training.settings import Settings


def require_memory(
    s: Settings, c: Any, device: Device, plans: dict[str, Plan], state_bytes: int
) -> None:
    """Raises UserError, with what would fit, if the device has not got what the run needs."""
    free = device.free_bytes()
    if free is None:
        return
    arena = max(p.peak for p in plans.values())
    work = device.workspace_bytes(call for p in plans.values() for call in p.program)
    need = state_bytes + arena + work
    if need > free:
        raise UserError(
            f"--batch-size {s.batch_size} --seq-len {s.seq_len} in {s.dtype} needs {gib(need)} of "
            f"memory: {gib(state_bytes)} for parameters, gradients and moments, {gib(arena)} for "
            f"activations, {gib(work)} of workspace. {s.device} has {gib(free)} free. "
            f"{what_fits(s, c, device, free - work)}"
        )


def what_fits(s: Settings, c: Any, device: Device, memory: int) -> str:
    """A sentence: a smaller batch, or which activations to compute again."""
    options: dict[str, Any] = {"fused": device.fusable() if s.fuse else []}
    fields = tuple(f for f in s.recompute.split(",") if f)
    B = largest_batch(gpt2, c, s.seq_len, s.dtype, memory, recompute=fields, **options)
    found = [f"--batch-size {B}"] if B else []
    again = [
        b
        for b in frontier(gpt2, c, s.batch_size, s.seq_len, s.dtype, **options)
        if b.total <= memory
    ]
    if again:
        found.append(f"--recompute {','.join(again[0].recompute)} ({gib(again[0].total)})")
    if found:
        return f"What fits: {', or '.join(found)}."
    return "Nothing of this model fits; a shorter --seq-len or a smaller model might."


def gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
