"""Python source as coloured pieces, line by line: [[("keyword", "def"), ("text", " "), …], …].

Done here with the standard library's tokenizer, so that the page needs no highlighter.
"""

from __future__ import annotations

import io
import keyword
import tokenize
from collections.abc import Iterator

Piece = tuple[str, str]
Place = tuple[int, int]  # line from 1, column from 0

# The parts of an f-string have names of their own from Python 3.12 on.
STRINGS = {n for name in ("STRING", "FSTRING_START", "FSTRING_MIDDLE", "FSTRING_END")
           if (n := getattr(tokenize, name, None)) is not None}  # fmt: skip


def highlight(text: str) -> list[list[Piece]]:
    """Lines of pieces: keyword, definition, string, number, comment, operator or text.

    What is no Python comes back as text.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    found: list[list[Piece]] = [[] for _ in lines]
    at: Place = (1, 0)
    for kind, start, end in tokens("\n".join(lines) + "\n"):
        put(found, lines, "text", at, start)
        put(found, lines, kind, start, end)
        at = max(at, end)
    put(found, lines, "text", at, (len(lines) + 1, 0))
    return found


def tokens(text: str) -> Iterator[tuple[str, Place, Place]]:
    """(kind, start, end) of all that is not plain text, until the tokenizer gives up."""
    defining = False
    try:
        for t in tokenize.generate_tokens(io.StringIO(text, newline="\n").readline):
            if t.start == t.end:
                continue
            if kind := kind_of(t, defining):
                yield kind, t.start, t.end
            if t.type == tokenize.NAME:
                defining = t.string in ("def", "class")
    except (tokenize.TokenError, SyntaxError):
        return


def kind_of(t: tokenize.TokenInfo, defining: bool) -> str:
    if t.type in STRINGS:
        return "string"
    if t.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(t.string) else "definition" * defining
    return {tokenize.NUMBER: "number", tokenize.COMMENT: "comment", tokenize.OP: "operator"}.get(
        t.type, ""
    )


def put(found: list[list[Piece]], lines: list[str], kind: str, start: Place, end: Place) -> None:
    """Add lines[start:end] as pieces of this kind, one for each line that it covers."""
    for n in range(start[0], min(end[0], len(lines)) + 1):
        line = lines[n - 1]
        first = start[1] if n == start[0] else 0
        last = end[1] if n == end[0] else len(line)
        if piece := line[first:last]:
            found[n - 1].append((kind, piece))
