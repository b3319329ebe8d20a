"""The sentences a run says: at its start, beside its validation losses and samples, at its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from backglass import models
from backglass.data.loader import Loader
from backglass.training import checkpoint
from backglass.training.settings import Settings


def headline(s: Settings, c: Any, count: int, loader: Loader) -> str:
    """The model, its data and its step; count: its parameters."""
    return (
        f"{models.title(c)}, {s.layers} layers, {s.channels} channels, {count:,} parameters "
        f"on {s.device} ({s.dtype}); {s.data}, {loader.windows * s.seq_len:,} training tokens, "
        f"vocabulary {c.vocab_size:,}; {s.tokens_per_step:,} tokens a step"
    )


def validated(s: Settings, step: int, loss: float, note: str) -> str:
    return f"step {step:5d}/{s.steps}   val loss {loss:.4f}   {note}".rstrip()


def chance(vocab_size: int) -> str:
    """The loss of guessing."""
    return f"(knowing nothing is ln {vocab_size} = {math.log(vocab_size):.4f})"


def sampled(step: int, prompt: str, text: str) -> str:
    return f"--- step {step}: the model continues {prompt!r} ---\n{text}"


def stopped(s: Settings, step: int, out: Path | None) -> str:
    how = f"Resume with: backglass train {s.preset} --out {out} --resume" if out else ""
    return f"stopped after step {step}; everything is saved. {how}"


def after_a_fault(s: Settings, out: Path | None) -> str:
    """What a run that the GPU ended has left."""
    steps = checkpoint.steps_in(out) if out else []
    if not steps:
        return "Nothing was saved yet; --save-every N saves a checkpoint every N steps."
    return (
        f"The last checkpoint is step {steps[-1]}; go on from there with: backglass train "
        f"{s.preset} --out {out} --resume"
    )


def farewell(s: Settings, best_val_loss: float | None, out: Path) -> str:
    """What was saved, and what to try next."""
    train = f"backglass train {s.preset}"
    return (
        f"\nsaved in {out} (best validation loss {best_val_loss:.4f} at step "
        f"{checkpoint.best_step(out)}). What next?\n"
        f"  {train} --data FILE                your own text\n"
        f"  backglass check                                  prove every gradient\n"
        f"  backglass program {s.preset}                           the step as a list of op calls\n"
        f"  {train} --debug --steps 1          stop in its forward and backward"
    )
