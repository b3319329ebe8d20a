"""An op's maths for the page, from the maths.py that was recorded: nothing is imported or run.

The docstring's headings stand at the margin, as in every maths.py: Forward, Backward, Derivation,
Saved, Source; the steps of the derivation are numbered.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from backglass.debugger.problem import Problem, damaged
from backglass.debugger.reading import Reading
from backglass.tools.catalogue import sentence

HEADING = re.compile(
    r"^(Forward|Backward|Derivation|Why|In words|Saved|Source|Nothing is)\b", re.MULTILINE
)
STEP = re.compile(r"^ {4,5}\d+  (.+(?:\n {8,}.+)*)", re.MULTILINE)


def formulas(reading: Reading, call: str) -> dict[str, Any]:
    """Of the op that has this call: sentence, formulas, derivation, NumPy lines."""
    for name in reading.manifest.get("sources") or installed():
        if re.fullmatch(r"ops/\w+/maths\.py", name, re.ASCII):
            text = source_text(reading, name)
            tree = parsed(text, name)
            functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
            if call in {f.name for f in functions}:
                doc = inspect.cleandoc(ast.get_docstring(tree, clean=False) or "")
                parts = [ast.get_source_segment(text, f) or "" for f in functions]
                return described(doc) | {"numpy": "\n\n\n".join(parts)}
    raise Problem(404, f"no op of this recording has a call {call!r}")


def source_text(reading: Reading, name: str) -> str:
    """As recorded; of a recording that was cut off before that, as installed."""
    if reading.manifest.get("sources") is None:
        return (Path(__file__).parent.parent / name).read_text(encoding="utf-8")
    return reading.source(name).decode("utf-8", "replace")


def installed() -> list[str]:
    from backglass.ops import table

    return [f"ops/{op}/maths.py" for op in table()]


def parsed(text: str, name: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise damaged(name, error) from None


def described(doc: str) -> dict[str, Any]:
    """The parts of a docstring.  Without a Forward heading the formula follows the sentence."""
    first, _, rest = doc.partition("\n\n")
    marks = [*HEADING.finditer(rest)]
    found = {"Forward": rest[: marks[0].start()] if marks else rest}
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        text = rest[mark.end() : after.start() if after else len(rest)]
        found[mark[1]] = text if mark[1] != "Forward" else f"{found['Forward']}\n{text}"
    steps = STEP.findall(found.get("Derivation") or found.get("Why", ""))
    return {
        "sentence": sentence(first),
        "forward": body(found["Forward"]), "backward": body(found.get("Backward", "")),
        "derivation": [" ".join(step.split()) for step in steps],
        "saved": one_line(found.get("Saved", "")), "source": one_line(found.get("Source", "")),
    }  # fmt: skip


def body(text: str) -> str:
    """What follows a heading: the rest of its line without the colon, then the formulas."""
    line, _, below = text.strip("\n").partition("\n\n")
    if line.startswith(" "):  # no heading: a formula at once
        return inspect.cleandoc("\n" + text.strip("\n"))
    line = " ".join(line.strip(",: \n").split())
    return "\n\n".join(filter(None, [line, inspect.cleandoc("\n" + below)]))


def one_line(text: str) -> str:
    return " ".join(text.removeprefix(":").split())
