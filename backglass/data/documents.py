"""Files of text as documents, and a document as blocks, so that no text need fit in memory.

FILE             one document, UTF-8
FILE.jsonl       a document a line: the field `text`, or `content`, of its object
FILE.parquet     a document a row: the column `text`, or `content`; needs pyarrow

A document of a jsonl or parquet file that does not end in a newline gets one.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from backglass.errors import UserError, wrong_use

FIELDS = ("text", "content")
BLOCK_BYTES = 1 << 20

Blocks = Iterator[str]  # the text of one document, in order


def documents(path: Path) -> Iterator[Blocks]:
    """The documents of a file.  Raises UserError if it cannot be read or is not what its suffix
    says."""
    try:
        if path.suffix == ".parquet":
            yield from _rows(path)
            return
        with path.open("rb") as file:
            if path.suffix == ".jsonl":
                yield from _lines(file, str(path))
            else:
                yield blocks(file, str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def blocks(file: BinaryIO, name: str) -> Blocks:
    """The text of an open file.  Raises UserError at the first byte that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = 0  # bytes behind the block
    while True:
        block = file.read(BLOCK_BYTES)
        waiting = len(decoder.getstate()[0])  # of a character that the last block cut off
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            at = read - waiting + error.start
            raise not_utf8(name, error.object[error.start], at) from None
        if text:
            yield text
        if not block:
            return
        read += len(block)


def not_utf8(name: str, byte: int, at: int) -> UserError:
    return UserError(
        f"{name} is not UTF-8 text: byte 0x{byte:02x} at position {at}. "
        "Convert it (iconv -t UTF-8), or if it holds tokens of nanoGPT add --format nanogpt."
    )


def _lines(file: BinaryIO, name: str) -> Iterator[Blocks]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{name} is not JSON in line {number}: {error}. Mend it, or rename the file to "
                ".txt to learn from it as it stands."
            ) from None
        found = [row[field] for field in FIELDS if isinstance(row, dict) and field in row]
        if not found or not isinstance(found[0], str):
            fields = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
            raise UserError(
                f"{name}, line {number}: expected an object with a field `text` or `content` that "
                f"is a string, found {fields or 'an empty object'}. Rename the field, or the file "
                "to .txt to learn from it as it stands."
            )
        yield _ended(found[0])


def _rows(path: Path) -> Iterator[Blocks]:
    parquet = _pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((field for field in FIELDS if field in names), None)
            if column is None:
                raise UserError(
                    f"{path} has no column `text` or `content`; it has {', '.join(names)}"
                )
            for batch in file.iter_batches(batch_size=256, columns=[column]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str | None):
                        raise UserError(f"{path}: its column `{column}` holds no text")
                    if text:
                        yield _ended(text)
    except (ValueError, OSError) as error:  # pyarrow's own errors are one or the other
        raise UserError(f"{path} is damaged, or no parquet file: {error}") from None


def _pyarrow(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise wrong_use(
            f"{path}: reading parquet needs pyarrow, which is not installed. Install it with: "
            "python -m pip install pyarrow"
        ) from None
    return parquet


def _ended(text: str) -> Blocks:
    yield text if text.endswith("\n") else text + "\n"
