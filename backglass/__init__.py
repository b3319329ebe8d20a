"""backglass: llm.c in Python.  GPT-2 trained with every forward and backward pass written by hand.

import backglass as bg
bg.check("layernorm")                           prove an op's gradient
bg.record(bg.presets.tiny())                    the training step as a program
run = bg.train(bg.presets.tiny(steps=200))      train
bg.studio("runs/a")                             look at recorded steps, in a notebook
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pathlib import Path

    from backglass.checks import Result
    from backglass.notebook import Inline
    from backglass.program.record import Program
    from backglass.training.loop import Trainer
    from backglass.training.settings import Settings


def train(settings: Settings, out: str | Path | None = None, quiet: bool = False) -> Trainer:
    """Train; out is the run directory, None keeps nothing on disk.  Raises UserError for bad
    input."""
    from pathlib import Path

    from backglass.training.loop import train as run

    return run(settings, Path(out) if out else None, quiet=quiet)


def check(*names: str, device: str = "cpu") -> list[Result]:
    """Check ops and models by name, all without names.  Raises ValueError for an unknown name."""
    from backglass.checks import check as run

    return list(run(names, device))


def record(settings: Settings) -> Program:
    """The forward and backward of one micro-batch as a program."""
    from backglass import models
    from backglass.program.step import record_micro

    c = settings.model_config(settings.vocab_size or 256)
    model, s = models.of(c), settings
    return record_micro(model, c, s.batch_size, s.seq_len, s.dtype).validate()


def studio(path: str | Path, notebook: str | None = None, height: int = 760) -> Inline:
    """The studio of a run, a folder of runs or a recording, shown below a notebook's cell.

    notebook: the notebook's origin, http://localhost:8888, where it cannot be told; height: of the
    frame, in pixels.  .stop() ends it, .url opens it elsewhere.  Raises UserError for wrong use.
    """
    from pathlib import Path

    from backglass.notebook import Inline

    return Inline(Path(path), notebook, height)


def load(path: str | Path, device: str = "cpu", dtype: str = "fp32") -> Any:
    """A model to generate with, from a run, a checkpoint or a Hugging Face folder; see infer.model.

    model.generate("text"), model.loss(tokens), model.grads(tokens)
    """
    from backglass.infer.model import load as run

    return run(path, device, dtype)


def load_op(path: str | Path) -> Any:
    """Add a user's op folder to the table; see backglass.ops.load_op."""
    from backglass.ops import load_op as run

    return run(path)


def __getattr__(name: str) -> Any:
    if name in ("ops", "presets"):
        return importlib.import_module(f"backglass.{name}")
    raise AttributeError(f"module 'backglass' has no attribute {name!r}")
