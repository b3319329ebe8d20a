"""An op's maths for the page, from the maths.py that was recorded: nothing is imported or run.

The docstring's headings stand at the margin, as in every maths.py: Forward, Backward, Derivation,
Saved, Source; the steps of the derivation are numbered.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading
from backglass.tools.catalogue import sentence

MATHS = re.compile(r"ops/\w+/maths\.py", re.ASCII)
DOCSTRING = re.compile(r'\s*[rR]?"""(.*?)"""', re.DOTALL)
FUNCTION = re.compile(r"^def (\w+)\(.*(?:\n(?:[ )].*)?)*", re.MULTILINE)
HEADING = re.compile(
    r"^(Forward|Backward|Derivation|Why|In words|Saved|Source|Nothing is)\b", re.MULTILINE
)
STEP = re.compile(r"^ {4,5}\d+  (.+(?:\n {8,}.+)*)", re.MULTILINE)


def formulas(reading: Reading, call: str) -> dict[str, Any]:
    """Of the op that has this call: sentence, formulas, derivation, NumPy lines."""
    for name in filter(MATHS.fullmatch, reading.sources()):
        text = reading.source(name).decode("utf-8", "replace").replace("\r\n", "\n")
        functions = {f[1]: f[0].rstrip() for f in FUNCTION.finditer(text)}
        if call in functions:
            doc = DOCSTRING.match(text)
            numpy = "\n\n\n".join(functions.values())
            return described(inspect.cleandoc(doc[1]) if doc else "") | {"numpy": numpy}
    if (found := fused(call)) is not None:
        return found
    raise Problem(404, f"No op of this recording has a call {call!r}.")


def fused(call: str) -> dict[str, Any] | None:
    """Of a fused op, which has no formulas of its own: the lines that it stands for."""
    from backglass.ops import signature

    try:
        equals = inspect.cleandoc(signature(call).equals)
    except AttributeError:  # an op of a user's, not loaded here
        return None
    if not equals:
        return None
    return {
        "sentence": f"{call} is a fused op: one kernel that does what these lines do.",
        "forward": equals, "backward": "", "derivation": [], "saved": "", "source": "",
        "numpy": equals,
    }  # fmt: skip


def described(doc: str) -> dict[str, Any]:
    """The parts of a docstring.  Without a Forward heading the formula follows the sentence."""
    first, _, rest = doc.partition("\n\n")
    marks = [*HEADING.finditer(rest)]
    parts = {"Forward": rest[: marks[0].start()] if marks else rest}
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        parts[mark[1]] = rest[mark.end() : after.start() if after else len(rest)]
    steps = STEP.findall(parts.get("Derivation") or parts.get("Why", ""))
    return {
        "sentence": sentence(first),
        "forward": body(parts["Forward"]), "backward": body(parts.get("Backward", "")),
        "derivation": [" ".join(step.split()) for step in steps],
        "saved": one_line(parts.get("Saved", "")), "source": one_line(parts.get("Source", "")),
    }  # fmt: skip


def body(text: str) -> str:
    """What follows a heading: the rest of its line, then the formulas."""
    line, _, below = text.strip("\n").partition("\n\n")
    if line.startswith("    "):  # no heading: a formula at once
        return inspect.cleandoc("\n" + text.strip("\n"))
    line = " ".join(line.strip(",: \n").split())
    return "\n\n".join(filter(None, [line, inspect.cleandoc("\n" + below)]))


def one_line(text: str) -> str:
    return " ".join(text.removeprefix(":").split())
