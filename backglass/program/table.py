"""table: a program as text, one line a call, repeated layers printed once."""

from __future__ import annotations

import re
from collections.abc import Callable

from backglass.program.record import Program

LAYER = re.compile(r"\bh(\d+)\.")
SHORT = {"forward": "for", "backward": "bac", "recompute": "rec", "update": "upd"}


def table(program: Program, fold: bool = True, note: Callable[[int], str] = lambda i: "") -> str:
    """The program as text; note(i) is put before line i.  fold: consecutive layers with equal lines
    become one loop."""
    rows, i = [], 0
    texts = [str(c) for c in program]
    layers = [int(m[1]) if (m := LAYER.search(t)) else None for t in texts]
    while i < len(texts):
        period, count = longest_repeat(texts, layers, i) if fold else (1, 1)
        if count > 1:
            first, step = layers[i], (layers[i + period] or 0) - (layers[i] or 0)
            rows.append(f"{'':12}for l = {first} .. {(first or 0) + step * (count - 1)}:")
        for j in range(i, i + period):
            text = relative(texts[j], layers[i]) if count > 1 else texts[j]
            indent = "    " if count > 1 else ""
            rows.append(f"{j:5d}  {note(j)}{SHORT[program[j].phase]}  {indent}{text}")
        i += period * count
    return "\n".join(rows)


def longest_repeat(texts: list[str], layers: list[int | None], i: int) -> tuple[int, int]:
    """(period, count): lines i .. i+period repeat count times with the layer number going up or
    down by one."""
    best = (1, 1)
    if layers[i] is None:
        return best
    for period in range(1, min(64, (len(texts) - i) // 2) + 1):
        step = (layers[i + period] or 0) - layers[i] if layers[i + period] is not None else 0
        if step not in (1, -1):
            continue
        count = 1
        while repeats(texts, layers, i, period, count, step):
            count += 1
        if count > 1 and period * count > best[0] * best[1]:
            best = (period, count)
    return best


def repeats(texts: list[str], layers: list, i: int, period: int, count: int, step: int) -> bool:
    at = i + period * count
    if at + period > len(texts) or layers[at] is None:
        return False
    base, shifted = layers[i], layers[i] + step * count
    return all(
        relative(texts[i + k], base) == relative(texts[at + k], shifted) for k in range(period)
    )


def relative(text: str, layer: int | None) -> str:
    """h3.ln1 seen from layer 3 is h{l}.ln1, h4.ln1 is h{l+1}.ln1."""
    if layer is None:
        return text

    def name(m: re.Match) -> str:
        offset = int(m[1]) - layer
        return f"h{{l{offset:+d}}}." if offset else "h{l}."

    return re.sub(r"site=\d+", "site=…", LAYER.sub(name, text))
