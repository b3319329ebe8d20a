"""Starting a run: everything that happens, and everything that can be wrong, before the first
step."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

import backglass
from backglass import device, models
from backglass.data import encode, loader, sources, tokenizer
from backglass.errors import UserError, wrong_use
from backglass.formats import hf
from backglass.training import checkpoint, loggers
from backglass.training.checkpoint import State
from backglass.training.files import write_json, write_text
from backglass.training.session import Session, device_options
from backglass.training.settings import Settings


@dataclass
class Start:
    """What a run begins with."""

    c: Any
    tokenizer: tokenizer.Tokenizer
    loader: loader.Loader
    val_windows: np.ndarray  # (n, T + 1)
    session: Session
    state: State
    loggers: list[loggers.Logger] = field(default_factory=list)


def prepare(s: Settings, out: Path | None, resume: bool = False, at: Path | None = None) -> Start:
    """Data, model and state of a run; opens its directory.  Raises UserError for any bad input.

    at: the checkpoint to start from; when a run is resumed, its newest.
    """
    if out and not resume:
        _refuse_used(out)
    if out and resume:
        at = checkpoint.find(out)
        checkpoint.best_step(out)  # now, not when the first checkpoint is deleted
    loggers.require(s, out)
    source = sources.read(s.data, s.format)
    tok = _tokenizer(s, source, at)
    train_tokens, val_tokens = _tokens(s, source, tok)
    try:
        c = s.model_config(tok.vocab_size)
    except ValueError as error:
        raise wrong_use(str(error)) from None
    for part in (train_tokens, val_tokens):
        loader.check_range(part, c.vocab_size, s.data)
    windows = loader.Loader(val_tokens, s.seq_len, s.seed).spread(s.val_batches * s.batch_size)
    on = device.get(s.device, **device_options(s))
    if on.name == "cuda" and s.dtype not in on.dtypes:
        raise wrong_use(
            f"--dtype {s.dtype}: {s.device} has {', '.join(on.dtypes)} (tensor cores for bf16 and "
            f"tf32 came with Ampere); add --dtype fp32"
        )
    session = Session(c, s, on)
    start = Start(c, tok, loader.Loader(train_tokens, s.seq_len, s.seed), windows, session, State())
    _load_parameters(start, s, at)
    if out:
        with disk_errors(out):
            start.loggers = loggers.start(s, out, start.state.step)
            _open(out, s, start.state)
    return start


def _refuse_used(out: Path) -> None:
    if out.is_file():
        raise wrong_use(f"--out {out} is a file; give a run directory")
    if out.is_dir() and any(out.iterdir()):
        raise wrong_use(
            f"--out {out} is not empty. Add --resume to continue that run, or choose another."
        )


def _tokenizer(s: Settings, source: sources.Source, at: Path | None) -> tokenizer.Tokenizer:
    if at:
        return tokenizer.load(at / "tokenizer.json")
    if s.init and (found := _init_folder(s) / "tokenizer.json").exists():
        return tokenizer.load(found)
    if source.is_tokens and s.tokenizer.startswith("bpe:"):
        raise wrong_use(
            f"--tokenizer {s.tokenizer} learns from text, but {s.data} holds tokens. Give the "
            "tokenizer.json that they were made with."
        )
    return tokenizer.build(s.tokenizer, encode.lessons(source))


def _init_folder(s: Settings) -> Path:
    from backglass.infer.model import find

    return find(s.init)


def _tokens(
    s: Settings, source: sources.Source, tok: tokenizer.Tokenizer
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(training shards, validation shards)."""
    if source.is_tokens and source.val:
        return list(source.train), list(source.val)
    if source.is_tokens:
        *rest, last = source.train
        train_part, val_part = loader.split(last, s.seq_len)
        return [*rest, train_part], [val_part]
    tokens = [np.empty(0, np.int32), *encode.encoded(source, tok)]
    train_part, val_part = loader.split(np.concatenate(tokens), s.seq_len)
    return [train_part], [val_part]


def _load_parameters(start: Start, s: Settings, at: Path | None) -> None:
    """Random, or from --init, or with moments and position from a checkpoint of a run."""
    layout = start.session.t.layout
    if at:
        _must_match(start.c, at, "--resume")
        found, start.state = checkpoint.load(at, layout)
        start.session.load_state(found)
        start.loader.position = start.state.position
    elif s.init:
        folder = _init_folder(s)
        _must_match(start.c, folder, "--init")
        start.session.load_state({"p": hf.tensors_in(layout, folder)})
    else:
        start.session.init()


def _must_match(c: Any, folder: Path, flag: str) -> None:
    """The folder's config.json must describe this run's model."""
    found = hf.read_config(folder)
    if type(found) is not type(c):
        theirs, ours = (models.title(config) for config in (found, c))
        raise wrong_use(f"{flag}: {folder} is a {theirs}, this run trains a {ours}")
    for name in (f.name for f in fields(c) if f.name not in ("dropout", "attention")):
        theirs, ours = getattr(found, name), getattr(c, name)
        if theirs != ours:
            option = {"max_seq_len": "seq_len"}.get(name, name).replace("_", "-")
            raise wrong_use(
                f"{flag}: {folder} has {name} {theirs}, this run has {ours}; "
                f"give --{option} {theirs}"
            )


def _open(out: Path, s: Settings, state: State) -> None:
    """Make the run directory, or forget what a resumed one logged after its checkpoint."""
    (out / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_json(out / "run.json", run_json(s))
    drop_later_events(out / "log.jsonl", state.step)


@contextmanager
def disk_errors(out: Path | None) -> Iterator[None]:
    """Makes an OSError inside a UserError that says what could not be written, and what is safe."""
    try:
        yield
    except BrokenPipeError:  # standard output, not the disk
        raise
    except OSError as error:
        steps = checkpoint.steps_in(out) if out else []
        what = f"{error.filename or out} could not be written: {error.strerror or error}"
        if not steps:
            raise UserError(
                f"{what}; there is no checkpoint yet. Free some space, mend the rights, or choose "
                "another --out."
            ) from None
        raise UserError(
            f"{what}; the last good checkpoint is step {steps[-1]}. Free some space or mend the "
            "rights, then add --resume."
        ) from None


def drop_later_events(path: Path, step: int) -> None:
    """Steps after the checkpoint will be done again: forget what they logged, and any line that a
    crash cut off."""

    def kept(line: str) -> bool:
        try:
            return json.loads(line)["step"] <= step
        except (ValueError, TypeError, KeyError):
            return False

    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if kept(line)))


def run_json(s: Settings) -> dict[str, Any]:
    """What run.json holds: enough to do the run again."""
    return {
        "settings": asdict(s),
        "versions": {
            "backglass": backglass.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }
