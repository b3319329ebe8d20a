"""How options are declared, the same in every command."""

from __future__ import annotations

from typing import Any

from tyro.conf import arg


def opt(text: str, metavar: str = "N", hint: str = "(default: the preset's)") -> Any:
    return arg(help=text, metavar=metavar, help_behavior_hint=hint)


Count = int | None
Number = float | None
Text = str | None
