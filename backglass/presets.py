"""Presets: complete settings by name.  bg.presets.tiny(steps=200) is tiny with 200 steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from backglass.errors import wrong_use
from backglass.training.settings import Settings

_TINY = Settings(preset="tiny")
_GPT2_124M = Settings(
    preset="gpt2-124m", layers=12, heads=12, channels=768, vocab_size=50257, seq_len=1024,
    tokenizer="gpt2", steps=18865, schedule_steps=18865, batch_size=4, total_batch_tokens=524288,
    lr=6e-4, warmup_steps=700, final_lr=0.0, val_every=250, save_every=5000,
)  # fmt: skip

ALL: dict[str, Settings] = {
    "tiny": _TINY,
    "gpt2-124m": _GPT2_124M,
    "gpt2-355m": _GPT2_124M.replace(
        preset="gpt2-355m", layers=24, heads=16, channels=1024, lr=3e-4
    ),
    "gpt2-774m": _GPT2_124M.replace(
        preset="gpt2-774m", layers=36, heads=20, channels=1280, lr=2.5e-4
    ),
    "gpt2-1558m": _GPT2_124M.replace(
        preset="gpt2-1558m", layers=48, heads=25, channels=1600, lr=2e-4
    ),
}


def get(name: str) -> Settings:
    """The settings of a preset.  Raises UserError (wrong use) for an unknown one."""
    if name not in ALL:
        raise wrong_use(f"there is no preset {name!r}; there are {', '.join(ALL)}")
    return ALL[name]


def __getattr__(name: str) -> Callable[..., Settings]:
    preset = name.replace("_", "-")
    if preset not in ALL:
        raise AttributeError(f"there is no preset {name!r}; there are {', '.join(ALL)}")
    return partial(_with, preset)


def _with(preset: str, **changes) -> Settings:
    return get(preset).replace(**changes)
