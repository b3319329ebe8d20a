"""catalogue: what there is, by name, for `backglass list`.  Everything is read from where it is
declared."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backglass.ops import Op, table

TIERS = ("maths", "cpu", "gpu", "fused")


def presets() -> list[dict[str, Any]]:
    """Sizes and parameters (pad rows not counted) of every preset."""
    from backglass import models, presets
    from backglass.layout import Layout

    found = []
    for name, s in presets.ALL.items():
        vocab_size = s.vocab_size or {"bytes": 256}.get(s.tokenizer, 0)
        c = s.model_config(vocab_size)
        count = Layout(models.get(s.model).PARAMS, c.sizes(1, s.seq_len), s.dtype).count
        found.append({
            "name": name, "parameters": count, "layers": s.layers, "heads": s.heads,
            "channels": s.channels, "vocab_size": c.vocab_size, "seq_len": s.seq_len,
            "tokens_per_step": s.tokens_per_step, "schedule_steps": s.schedule_steps,
            "tokenizer": s.tokenizer, "data": s.data,
        })  # fmt: skip
    return found


def ops() -> list[dict[str, Any]]:
    """Sentence, calls, tiers and rungs of every op.  Files are looked for, kernels not imported."""
    return [
        {
            "name": op.name,
            "sentence": sentence(op.maths.__doc__),
            "calls": list(op.signatures),
            "tiers": [t for t in TIERS if (folder(op) / f"{t}.py").exists()],
            "rungs": rungs(op),
        }
        for op in table().values()
    ]


def folder(op: Op) -> Path:
    return Path(op.maths.__file__ or "").parent


def rungs(op: Op) -> list[str]:
    """The files of an op's ladder, slowest first."""
    return sorted(p.stem for p in (folder(op) / "ladder").glob("*.py") if p.stem != "__init__")


def sentence(doc: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((doc or "").strip().partition("\n\n")[0].split())


def models() -> list[dict[str, Any]]:
    from backglass import models

    return [{"name": n, "sentence": sentence(models.get(n).__doc__)} for n in models.NAMES]


def devices() -> list[dict[str, Any]]:
    from backglass import device

    return named_lines(device.__doc__)


def sources() -> list[dict[str, Any]]:
    from backglass.data import sources

    return named_lines(sources.__doc__)


def tokenizers() -> list[dict[str, Any]]:
    from backglass.data import tokenizer

    return named_lines(tokenizer.__doc__)


def named_lines(doc: str | None) -> list[dict[str, Any]]:
    """The lines `NAME   what it is` of a docstring."""
    found = re.findall(r"^(\S+(?:, \S+)?) {2,}(\S.*)$", doc or "", re.MULTILINE)
    return [{"name": name, "sentence": text} for name, text in found]


KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "presets": presets,
    "ops": ops,
    "models": models,
    "devices": devices,
    "data": sources,
    "tokenizers": tokenizers,
}
