"""folders: run directories, checkpoints and Hugging Face models, their parts verified against each
other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from backglass import models
from backglass.errors import UserError
from backglass.formats import hf, hf_config
from backglass.layout import Layout
from backglass.tools.found import Found, printable, read_json

MOST_LAYERS = 1000
MOST_FILES = 64
READ = ("gpt2", *hf_config.ARCHITECTURES)

Reader = Callable[[Path], Found]


def folder(path: Path, file: Reader) -> Found:
    """A run, a model, or whatever known files are in it."""
    if (path / "run.json").is_file() or (path / "log.jsonl").is_file():
        return run(path, file)
    if (path / "config.json").is_file() or (path / "meta.json").is_file():
        return model(path, file)
    found = Found(str(path), "folder")
    names = sorted(islice((p for p in path.iterdir() if not p.name.startswith(".")), 10_000))
    kinds = [file(p) for p in names[:MOST_FILES] if p.is_file()]
    models = [model(p, file) for p in names[:MOST_FILES] if (p / "config.json").is_file()]
    found.parts = [k for k in kinds if k.kind not in ("unknown", "UTF-8 text", "JSON file")]
    found.parts += models
    found.facts = {"entries": len(names), "known": len(found.parts)}
    if len(names) > MOST_FILES:
        found.notes.append(f"only the first {MOST_FILES} entries were looked at")
    if not found.parts:
        found.problems.append("it holds no run, no model and no file that backglass knows")
    return found


def run(path: Path, file: Reader) -> Found:
    """A run directory: settings, log, checkpoints."""
    found = Found(str(path), "run directory")
    settings = _json(found, path / "run.json").get("settings", {})
    if isinstance(settings, dict):
        names = ("preset", "data", "steps", "seed", "device")
        found.facts = {k: printable(str(settings[k]), 60) for k in names if k in settings}
    if (path / "log.jsonl").is_file():
        found.parts.append(file(path / "log.jsonl"))
    else:
        found.notes.append("no log.jsonl: the run has not done a step yet")
    checkpoints = path / "checkpoints"
    folders = sorted(p for p in islice(checkpoints.glob("step-*"), 10_000) if p.is_dir())
    found.facts["checkpoints"] = [p.name for p in folders[-MOST_FILES:]]
    found.parts += [model(p, file) for p in folders[-MOST_FILES:]]
    if (checkpoints / "best.json").is_file():
        best = _json(found, checkpoints / "best.json").get("step")
        found.facts["best"] = best if type(best) is int else printable(str(best), 40)
        if type(best) is not int or not (checkpoints / f"step-{best:08d}").is_dir():
            found.problems.append("best.json names a checkpoint that is not there")
    if left := [p.name for p in islice(checkpoints.glob(".*.part"), 8)]:
        found.notes.append(f"unfinished writes that can be deleted: {', '.join(left)}")
    return found


def model(path: Path, file: Reader) -> Found:
    """A Hugging Face folder; with meta.json a checkpoint of ours."""
    ours = (path / "meta.json").is_file()
    found = Found(str(path), "checkpoint" if ours else "Hugging Face model")
    config = _json(found, path / "config.json")
    kind = config.get("model_type")
    found.facts["model_type"] = printable(str(kind), 40)
    if ours:
        state = _json(found, path / "meta.json").get("state")
        if isinstance(state, dict):
            found.facts |= {k: state[k] for k in ("step", "tokens", "best_val_loss") if k in state}
        else:
            found.problems.append("meta.json is damaged: it has no state")
    weights = sorted(islice(path.glob("*.safetensors"), MOST_FILES))
    found.parts = [file(p) for p in weights]
    if (path / "tokenizer.json").is_file():
        found.parts.append(file(path / "tokenizer.json"))
    elif ours:
        found.problems.append("tokenizer.json is missing")
    if not any(p.name.startswith("model") for p in weights):
        other = ", ".join(p.name for p in islice(path.glob("*.bin"), 3))
        found.problems.append(
            f"model.safetensors is missing{'; there is ' + other if other else ''}"
        )
    if kind in READ:
        _verified(found, path)
    elif config:
        found.notes.append(f"backglass reads {', '.join(READ)}; this one is named, not verified")
    return found


def _verified(found: Found, path: Path) -> None:
    """The names and shapes of the tensors against config.json."""
    try:
        c = hf.read_config(path)
    except (UserError, TypeError, ValueError, OverflowError) as error:
        found.problems.append(f"config.json: {printable(str(error))}")
        return
    found.facts |= {
        "layers": c.layers, "heads": c.heads, "channels": c.channels, "vocab_size": c.vocab_size,
        "max_seq_len": c.max_seq_len,
    }  # fmt: skip
    if c.layers > MOST_LAYERS:
        found.problems.append(f"config.json promises {c.layers:,} layers; that cannot be real")
        return
    layout = Layout(models.of(c).PARAMS, c.sizes(1, 1), "fp32")
    found.facts["parameters"] = layout.count
    _names(found, layout)
    if (path / "meta.json").is_file():
        _moments(found, path, layout)


def _names(found: Found, layout: Layout) -> None:
    want = hf.tensor_shapes(layout)
    have = {
        short: shape
        for part in found.parts
        if Path(part.path).name.startswith("model")
        for name, (_, shape) in part.tensors.items()
        if not hf.is_no_parameter(short := hf.short_name(name), want)
    }
    if have:
        _compare(found, "model.safetensors", have, want)


def _moments(found: Found, path: Path, layout: Layout) -> None:
    parts = [p for p in found.parts if Path(p.path).name == "state.safetensors"]
    if not parts:
        found.problems.append("state.safetensors is missing: the run cannot be resumed from here")
        return
    have = {name: shape for name, (_, shape) in parts[0].tensors.items()}
    want = {f"{group}/{s.name}": s.shape for group in ("m", "v") for s in layout.slots}
    if have:
        _compare(found, "state.safetensors", have, want)


def _compare(found: Found, name: str, have: dict[str, Any], want: dict[str, Any]) -> None:
    if missing := [k for k in want if k not in have]:
        found.problems.append(f"{name} lacks {len(missing)} tensors, among them {missing[0]}")
    if extra := [k for k in have if k not in want]:
        first = printable(extra[0], 60)
        found.problems.append(f"{name} has {len(extra)} tensors too many, among them {first}")
    for k in want:
        if k in have and tuple(have[k]) != tuple(want[k]):
            found.problems.append(f"{name}: {k} is {have[k]}, config.json promises {want[k]}")
            return


def _json(found: Found, path: Path) -> dict[str, Any]:
    """A JSON object that must be there; what is wrong with it becomes a problem."""
    try:
        j = read_json(path)
    except OSError:
        found.problems.append(f"{path.name} is missing")
        return {}
    except ValueError as error:
        found.problems.append(f"{path.name} is damaged: {printable(str(error))}")
        return {}
    if not isinstance(j, dict):
        found.problems.append(f"{path.name} is damaged: not a JSON object")
        return {}
    return j
