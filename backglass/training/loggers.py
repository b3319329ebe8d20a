"""Where a run is logged besides log.jsonl, if asked to: TensorBoard's files, Weights & Biases.

--tensorboard    DIR/tensorboard/, written by tensorboardX; seen with: tensorboard --logdir DIR
--wandb PROJECT  WANDB_MODE=offline keeps it in DIR/wandb/, to be sent later with: wandb sync

Both get what TAGS names, and the samples as text.  Step = updates done, as in log.jsonl.
"""

from __future__ import annotations

import html
import importlib
import secrets
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from backglass.errors import UserError, wrong_use
from backglass.training.settings import Settings

TAGS = {
    ("step", "loss"): "train/loss",
    ("step", "grad_norm"): "train/grad_norm",
    ("step", "lr"): "train/lr",
    ("step", "tokens_per_s"): "train/tokens_per_s",
    ("val", "loss"): "val/loss",
}


class Logger(Protocol):
    """What the report tells of a run."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def text(self, step: int, text: str) -> None: ...

    def close(self) -> None: ...


def require(s: Settings, out: Path | None) -> None:
    """Raises UserError if what was asked for is not installed, or has no directory to write to."""
    for flag, asked, module, entry in (
        ("--tensorboard", s.tensorboard, "tensorboardX", "SummaryWriter"),
        ("--wandb", s.wandb, "wandb", "init"),
    ):
        if not asked:
            continue
        if out is None:
            raise wrong_use(f"{flag} writes into the run directory, but this run keeps none")
        try:
            getattr(importlib.import_module(module), entry)  # any folder of that name imports
        except (ImportError, AttributeError) as error:
            raise wrong_use(
                f"{flag} needs {module}, which cannot be imported here ({error}). Install it with: "
                f"python -m pip install {module}"
            ) from None


def start(s: Settings, out: Path | None, step: int) -> list[Logger]:
    """The loggers of a run that begins, or continues, after `step` updates."""
    found: list[Logger] = []
    if s.wandb and out:
        found.append(Wandb(s, out))
    if s.tensorboard and out:
        found.append(TensorBoard(out / "tensorboard", step))
    return found


def scalars(event: str, values: dict[str, Any]) -> dict[str, float]:
    """Those of an event's values that are logged, under their tags."""
    return {tag: values[key] for (name, key), tag in TAGS.items() if name == event}


class TensorBoard:
    """Event files of tensorboardX.  A resumed run adds a file, which takes back the steps that were
    logged after its checkpoint."""

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter

        # A file's name has the time in seconds only; the step keeps two quick runs apart.
        self.writer = SummaryWriter(
            str(folder), purge_step=step + 1 if step else None, flush_secs=10,
            filename_suffix=f".{step}",
        )  # fmt: skip

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def text(self, step: int, text: str) -> None:
        self.writer.add_text("sample", f"<pre>{html.escape(text)}</pre>", step)  # as it stands

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases.  Its id is kept in the run directory, so a resume continues it.

    Steps that are done again after a resume are ignored by wandb: they have the same values.
    """

    def __init__(self, s: Settings, out: Path):
        import wandb

        kept = out / "wandb-id.txt"
        name = kept.read_text().strip() if kept.exists() else secrets.token_hex(4)
        out.mkdir(parents=True, exist_ok=True)
        try:
            self.run = wandb.init(
                project=s.wandb, name=out.name, id=name, resume="allow", dir=str(out),
                config=asdict(s), settings=wandb.Settings(console="off"),
            )  # fmt: skip
        except wandb.Error as error:
            if not kept.exists():  # a new run: leave no directory that looks used
                shutil.rmtree(out / "wandb", ignore_errors=True)
                with suppress(OSError):
                    out.rmdir()
            raise UserError(
                f"--wandb {s.wandb}: wandb could not start ({' '.join(str(error).split())}). Log "
                "in with `wandb login`, or set WANDB_MODE=offline to keep the log on this machine."
            ) from None
        kept.write_text(name + "\n")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def text(self, step: int, text: str) -> None:
        import wandb

        self.run.log({"sample": wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        self.run.finish()
