"""Presets: complete settings by name.  bg.presets.tiny(steps=200) is tiny with 200 steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from backglass.errors import wrong_use
from backglass.training.settings import Settings

_TINY = Settings(preset="tiny")
_LLAMA_TINY = _TINY.replace(preset="llama-tiny", model="llama", kv_heads=2)
_LLAMA_15M = _LLAMA_TINY.replace(
    preset="llama-15m", layers=6, heads=6, kv_heads=0, channels=288, hidden=768, vocab_size=32000,
    seq_len=256, tokenizer="bpe:32000", batch_size=4, lr=5e-4, warmup_steps=1000, steps=100000,
    schedule_steps=100000, total_batch_tokens=131072, save_every=5000,
)  # fmt: skip
_LLAMA_110M = _LLAMA_15M.replace(
    preset="llama-110m", layers=12, heads=12, channels=768, hidden=2048, seq_len=1024, lr=6e-4,
    steps=18865, schedule_steps=18865, warmup_steps=700, total_batch_tokens=524288,
)  # fmt: skip
_LLAMA_1B = _LLAMA_15M.replace(
    preset="llama-1b", layers=16, heads=32, kv_heads=8, channels=2048, hidden=8192,
    vocab_size=128256, seq_len=2048, rope_theta=500000.0, rope_scaling="32 1 4 8192", lr=3e-4,
    warmup_steps=2000, total_batch_tokens=524288,
)  # fmt: skip
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
    "llama-tiny": _LLAMA_TINY,
    "llama-15m": _LLAMA_15M,
    "llama-110m": _LLAMA_110M,
    "llama-1b": _LLAMA_1B,
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
