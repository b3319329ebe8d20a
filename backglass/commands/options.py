"""How options are declared, the same in every command."""

from __future__ import annotations

from typing import Annotated, Any

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec


def opt(text: str, metavar: str = "N", hint: str = "(default: the preset's)") -> Any:
    return arg(help=text, metavar=metavar, help_behavior_hint=hint)


def _or_none(kind: type, called: str) -> PrimitiveConstructorSpec:
    """Reads one value; where none is given it stays None.  tyro's own reader of `kind | None`
    complains that the text is not 'None' either."""

    def read(given: list[str]) -> Any:
        try:
            return kind(given[0])
        except ValueError:
            raise ValueError(f"expected {called}, got {given[0]!r}") from None

    return PrimitiveConstructorSpec(
        nargs=1, metavar="N", instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )  # fmt: skip


Count = Annotated[int | None, _or_none(int, "a whole number")]
Number = Annotated[float | None, _or_none(float, "a number")]
Text = str | None
