"""One file per architecture; nothing is shared between them but the ops."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from types import ModuleType
from typing import Any

NAMES = ("gpt2", "llama")


def get(name: str) -> ModuleType:
    """The module of a model.  Raises ValueError for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f"backglass.models.{name}")


def of(c: Any) -> ModuleType:
    """The module of a config's model."""
    return sys.modules[type(c).__module__]


def title(c: Any) -> str:
    """What a config's model is called: what its file begins with."""
    return (of(c).__doc__ or "").partition(":")[0]


def adapted(c: Any, **changes: Any) -> Any:
    """The config with those of the changes that its model knows: no dropout for a model that never
    has any."""
    return dataclasses.replace(c, **{k: v for k, v in changes.items() if hasattr(c, k)})


def fields(name: str) -> set[str]:
    """What a model's Config says."""
    return {f.name for f in dataclasses.fields(get(name).Config)}
