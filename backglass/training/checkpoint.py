"""Checkpoints: a Hugging Face folder that transformers loads as it is, plus what a resume needs.

step-00001000/  config.json  generation_config.json  tokenizer.json  model.safetensors
                state.safetensors (AdamW's m and v)   meta.json (step, data position, settings)
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backglass.data.tokenizer import Tokenizer
from backglass.errors import UserError
from backglass.formats import hf, hf_config
from backglass.layout import Layout
from backglass.training.files import new_folder, write_json, write_text
from backglass.training.settings import Settings


@dataclass
class State:
    """What a run carries from step to step besides its parameters and moments."""

    step: int = 0
    position: int = 0
    tokens: int = 0
    best_val_loss: float | None = None
    best_step: int = 0


def save(
    folder: Path, c: Any, layout: Layout, flats: dict[str, np.ndarray], tokenizer: Tokenizer,
    state: State, settings: Settings,
) -> None:  # fmt: skip
    """Write folder, atomically.  flats: the buffers p, m and v."""
    from safetensors.numpy import save_file

    with new_folder(folder) as part:
        write_json(part / "config.json", hf_config.write(c, tokenizer.end_of_text))
        write_json(part / "generation_config.json", generation_config(tokenizer))
        write_text(part / "tokenizer.json", tokenizer.to_json())
        tensors = hf.tensors_out(layout, flats["p"])
        save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
        moments = {
            f"{group}/{s.name}": flats[group][s.offset : s.offset + s.size].reshape(s.shape)
            for group in ("m", "v")
            for s in layout.slots
        }
        save_file(moments, part / "state.safetensors")
        write_json(part / "meta.json", {"state": asdict(state), "settings": asdict(settings)})


def load(folder: Path, layout: Layout) -> tuple[dict[str, np.ndarray], State]:
    """(p, m, v) buffers and the state.  Raises UserError if anything is missing or does not fit."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    flats = {"p": hf.tensors_in(layout, folder)}
    try:
        moments = load_file(folder / "state.safetensors")
        state = State(**json.loads((folder / "meta.json").read_text(encoding="utf-8"))["state"])
        if not all(isinstance(n, int) for n in (state.step, state.position, state.tokens)):
            raise ValueError("meta.json: step, position and tokens are whole numbers")
        for group in ("m", "v"):
            flats[group] = np.zeros_like(flats["p"])
            for s in layout.slots:
                target = flats[group][s.offset : s.offset + s.size].reshape(s.shape)
                target[...] = moments[f"{group}/{s.name}"]
    except FileNotFoundError as error:
        name = Path(error.filename).name if error.filename else "state.safetensors"
        raise UserError(
            f"{folder} cannot be resumed: {name} is missing. To start from its parameters alone: "
            f"--init {folder}"
        ) from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is damaged: {error}") from None
    return flats, state


def settings_of(folder: Path) -> Settings:
    """The settings a checkpoint was trained with."""
    try:
        return Settings(**json.loads((folder / "meta.json").read_text())["settings"])
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no meta.json, so it is no checkpoint that could be resumed. To start "
            f"from its parameters alone: --init {folder}"
        ) from None
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"{folder / 'meta.json'} is damaged: {error}") from None


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "bos_token_id": tokenizer.end_of_text,
        "eos_token_id": tokenizer.end_of_text,
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 40,
    }


def step_folder(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def steps_in(run: Path) -> list[int]:
    """Steps with a checkpoint, ascending."""
    names = (p.name.removeprefix("step-") for p in (run / "checkpoints").glob("step-*"))
    return sorted(int(name) for name in names if name.isdecimal())


def mark_best(run: Path, step: int, val_loss: float) -> None:
    """Name the checkpoint that `prune` never deletes."""
    write_json(run / "checkpoints" / "best.json", {"step": step, "val_loss": val_loss})


def best_step(run: Path) -> int | None:
    """The step of the best checkpoint; None before there is one.  Raises UserError if best.json is
    damaged."""
    path = run / "checkpoints" / "best.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: {error!r}. Delete it; the next best checkpoint writes it again."
        ) from None


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints and the best."""
    for step in steps_in(run)[:-keep]:
        if step != best_step(run):
            shutil.rmtree(step_folder(run, step))


def find(path: Path) -> Path:
    """The model folder meant by a run, a checkpoints folder or a model folder: the newest
    checkpoint."""
    if (path / "config.json").exists():
        return path
    run = path.parent if path.name == "checkpoints" else path
    steps = steps_in(run)
    if not steps:
        raise UserError(f"{path} holds no model: neither a config.json nor checkpoints/step-…")
    return step_folder(run, steps[-1])
