"""found: what `backglass inspect` says about a file or folder, and careful ways to read one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_JSON_BYTES = 40 << 20
LARGEST_TOKENIZER_BYTES = 16 << 20
BLOCK_BYTES = 8 << 20
END_OF_TEXT = 50256  # GPT-2's, and its largest token


@dataclass
class Found:
    """kind: what it is.  facts: what it holds.  problems: what is wrong with it.  notes: what could
    not be verified, and why.  parts: what is inside a folder."""

    path: str
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: list[Found] = field(default_factory=list)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict, repr=False)

    @property
    def sound(self) -> bool:
        return not self.problems and all(p.sound for p in self.parts)

    def row(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "path": self.path, "kind": self.kind, "ok": self.sound, "facts": self.facts,
            "problems": self.problems, "notes": self.notes,
            "parts": [p.row() for p in self.parts],
        }  # fmt: skip

    def text(self, indent: str = "") -> str:
        """A line for the kind, one for each fact, note and problem, then the parts."""
        rows = [f"{indent}{self.path}: {self.kind}"]
        rows += [f"{indent}  {k:18s} {shown(v)}" for k, v in self.facts.items()]
        rows += [f"{indent}  {'note':18s} {note}" for note in self.notes]
        rows += [f"{indent}  {'PROBLEM':18s} {problem}" for problem in self.problems]
        return "\n".join([*rows, *(p.text(indent + "    ") for p in self.parts)])

    def expect_size(self, size: int, expected: int, why: str) -> None:
        """A problem if the file is not as long as its header says."""
        if size != expected:
            verb = "cut off" if size < expected else "too long"
            self.problems.append(
                f"{verb}: {why} needs {expected:,} bytes, the file has {size:,}. "
                f"Copy or download it again."
            )


def shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{printable(str(k))} {shown(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    return printable(str(value))


def printable(text: str, most: int = 200) -> str:
    """Text from a file, safe for a terminal and not longer than a few lines."""
    clean = "".join(c if c.isprintable() else "·" for c in text[: most + 1])
    return clean if len(clean) <= most else clean[:most] + "…"


def read_json(path: Path) -> Any:
    """A JSON file.  Raises ValueError with a reason if it is too large, not UTF-8 or not JSON."""
    size = path.stat().st_size
    if size > LARGEST_JSON_BYTES:
        raise ValueError(f"{size:,} bytes of JSON; more than {LARGEST_JSON_BYTES:,} are not read")
    return parse_json(path.read_bytes())


def parse_json(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None


def blocks(path: Path, dtype: Any, offset: int, count: int) -> Iterator[np.ndarray]:
    """`count` numbers from byte `offset` on, a few megabytes at a time; fewer if the file ends."""
    item = np.dtype(dtype).itemsize
    for start in range(0, count, BLOCK_BYTES // item):
        wanted = min(BLOCK_BYTES // item, count - start)
        block = np.fromfile(path, dtype, wanted, offset=offset + start * item)
        if not block.size:
            return
        yield block


def token_facts(path: Path, dtype: Any, offset: int, count: int) -> dict[str, Any]:
    """Smallest and largest token, and how often GPT-2's end of text occurs."""
    low, high, ends = None, None, 0
    for block in blocks(path, dtype, offset, count):
        low = int(block.min()) if low is None else min(low, int(block.min()))
        high = int(block.max()) if high is None else max(high, int(block.max()))
        ends += int((block == END_OF_TEXT).sum())
    return {"tokens": count, "smallest": low, "largest": high, "documents": ends}
