"""One file per architecture; nothing is shared between them but the ops."""

from __future__ import annotations

import importlib
from types import ModuleType

NAMES = ("gpt2",)


def get(name: str) -> ModuleType:
    """The module of a model.  Raises ValueError for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f"backglass.models.{name}")
