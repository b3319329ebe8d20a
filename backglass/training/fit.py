"""Does a run fit into a GPU's memory?  Asked before anything is allocated."""

from __future__ import annotations

from typing import Any

from backglass import models
from backglass.device import Device
from backglass.errors import UserError, wrong_use
from backglass.program.budget import (
    CUDA_CONTEXT_BYTES,
    Budget,
    Machine,
    budget,
    frontier,
    largest_batch,
)
from backglass.training.settings import Settings


def budget_of(s: Settings, c: Any, machine: Machine, **rates: float) -> Budget:
    """What a run takes.  Raises UserError (wrong use) for activations that cannot be recomputed."""
    try:
        return budget(
            models.of(c), c, s.batch_size, s.seq_len, s.dtype, recomputed(s), machine=machine,
            micro_batches=s.micro_batches, **rates,
        )  # fmt: skip
    except ValueError as error:
        if not s.recompute:
            raise
        raise wrong_use(f"--recompute {s.recompute}: {error}") from None


def recomputed(s: Settings) -> tuple[str, ...]:
    return tuple(f for f in s.recompute.split(",") if f)


def machine_of(s: Settings, device: Device) -> Machine:
    """What an open device adds.  Of what CUDA takes, part is taken already."""
    context = 0
    if device.free_bytes() is not None:
        context = max(0, CUDA_CONTEXT_BYTES - device.used_bytes())
    return Machine(tuple(device.fusable()) if s.fuse else (), device.workspace_bytes, context)


def require_memory(s: Settings, c: Any, device: Device, b: Budget, machine: Machine) -> None:
    """Raises UserError, with what would fit, if the device has not got what the run needs."""
    free = device.free_bytes()
    if free is None or b.total <= free:
        return
    parts = {
        "for parameters, gradients and moments": b.state_bytes, "for activations": b.arena,
        "of workspace": b.workspace or 0, "that CUDA will take": b.context,
    }  # fmt: skip
    said = ", ".join(f"{gib(n)} {what}" for what, n in parts.items() if n)
    raise UserError(
        f"--batch-size {s.batch_size} --seq-len {s.seq_len} in {s.dtype} needs {gib(b.total)} of "
        f"memory: {said}. {s.device} has {gib(free)} free. {what_fits(s, c, machine, free)}"
    )


def what_fits(s: Settings, c: Any, machine: Machine, memory: int) -> str:
    """A sentence: a smaller batch, or which activations to compute again."""
    model, options = models.of(c), {"machine": machine}
    B = largest_batch(model, c, s.seq_len, s.dtype, memory, recompute=recomputed(s), **options)
    while B and s.total_batch_tokens % (B * s.seq_len):  # a step is whole micro-batches
        B -= 1
    found = [f"--batch-size {B}"] if B else []
    choices = frontier(model, c, s.batch_size, s.seq_len, s.dtype, **options)
    if again := [b for b in choices if b.total <= memory]:
        found.append(f"--recompute {','.join(again[0].recompute)} ({gib(again[0].total)})")
    if found:
        return f"What fits: {', or '.join(found)}."
    return "Nothing of this model fits; a shorter --seq-len or a smaller model might."


def gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
