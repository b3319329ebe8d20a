"""backglass data"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Literal

import numpy as np
from tyro.conf import FlagCreatePairsOff, Positional, arg

from backglass.errors import UserError, wrong_use

if TYPE_CHECKING:
    from backglass.data.documents import Blocks
    from backglass.data.sources import Source
    from backglass.data.tokenizer import Tokenizer

BLOCK = 1 << 20  # tokens copied at a time
MOST_SHARD_TOKENS = 1 << 30  # llm.c reads a shard with 32-bit offsets: 2 GiB


@dataclass
class Data:
    """Prepare text once: tokenise it into the shards that llm.c reads, and --data here too.

    DIR gets train_000000.bin, train_000001.bin, …, val_000000.bin, … (a header of 1 KiB, then
    uint16) and tokenizer.json, all of them or nothing.  Each document (a file, a line of a .jsonl,
    a row of a .parquet) starts with the tokenizer's end-of-text token, if it has one; the last
    tenth of all tokens is for validation.

    The text may be larger than memory: it is read and tokenised in pieces, with bytes, gpt2 and
    bpe:N into the tokens of the whole text.  Where another tokenizer.json splits a text is not
    known, so a document must fit in memory with it.

    For example:
      backglass data prepare book.txt --tokenizer bytes --out book
      backglass data prepare 'texts/*.txt' --tokenizer bpe:8192 --out texts-bpe
      backglass train tiny --data book --tokenizer book/tokenizer.json
    """

    action: Annotated[Positional[Literal["prepare"]], arg(help="what to do", metavar="prepare")]
    source: Annotated[
        Positional[str],
        arg(
            help="python-docs, shakespeare, a text, jsonl or parquet file, folder, glob, hf:NAME, "
            "or - for standard input",
            metavar="SOURCE",
        ),
    ]
    out: Annotated[
        str, arg(help="folder to write, new or empty unless --force is given", metavar="DIR")
    ]
    tokenizer: Annotated[
        str,
        arg(help="bytes, bpe:N (trained on the text), gpt2, or a tokenizer.json", metavar="NAME"),
    ] = "bytes"
    shard_tokens: Annotated[int, arg(help="tokens in a shard", metavar="N")] = 100_000_000
    force: Annotated[
        FlagCreatePairsOff[bool], arg(help="replace what data prepare wrote to DIR before")
    ] = False
    json: Annotated[bool, arg(help="what was written as JSON")] = False

    def run(self) -> int:
        from backglass.data import encode, sources, tokenizer
        from backglass.training.files import new_folder, write_text

        if not 1 <= self.shard_tokens <= MOST_SHARD_TOKENS:
            raise wrong_use(
                f"--shard-tokens must be from 1 to {MOST_SHARD_TOKENS:,}, got {self.shard_tokens}"
            )
        out = Path(self.out).resolve()
        refuse_used(out, self.out, self.force)
        source = sources.read(self.source)
        if source.is_tokens:
            raise wrong_use(f"{self.source} holds token shards already; give the text itself")
        encoder = tokenizer.build(self.tokenizer, encode.lessons(watched(source, "learning")))
        try:
            with new_folder(out) as part:
                everything = part / "tokens.part"
                count = write_tokens(everything, watched(source, "tokenising"), encoder)
                rows = write_shards(everything, count, part, self.shard_tokens)
                everything.unlink()
                write_text(part / "tokenizer.json", encoder.to_json())
        except OSError as error:
            raise UserError(
                f"--out {self.out} could not be written: {error.strerror or error}. Nothing was "
                "kept."
            ) from None
        self.report(rows, encoder.vocab_size)
        return 0

    def report(self, rows: list[dict], vocab_size: int) -> None:
        if self.json:
            print(json.dumps({"out": self.out, "vocab_size": vocab_size, "rows": rows}))
            return
        for split in ("train", "val"):
            counts = [row["tokens"] for row in rows if row["split"] == split]
            print(f"{split:5s} {sum(counts):,} tokens in {len(counts)} shards")
        print(f"vocabulary {vocab_size:,}; everything is in {self.out}. Train on it with:")
        print(f"  backglass train --data {self.out} --tokenizer {self.out}/tokenizer.json")


def refuse_used(out: Path, asked: str, force: bool) -> None:
    """Raises UserError (wrong use) for a file, and for a folder with something in it; with `force`
    only if something else than `data prepare` wrote it."""
    if out.is_file():
        raise wrong_use(f"--out {asked} is a file; give a folder to write")
    found = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    others = [n for n in found if not re.fullmatch(r"(train|val)_\d+\.bin|tokenizer\.json", n)]
    if found and not force:
        raise wrong_use(
            f"--out {asked} is not empty; choose a new folder, or add --force to replace what data "
            "prepare wrote there"
        )
    if others:
        raise wrong_use(
            f"--force: --out {asked} holds {others[0]!r}, which data prepare did not write; choose "
            "a new folder, or empty this one yourself"
        )


class Progress:
    """A line on standard error while a source is read: live in a terminal, every ten seconds
    elsewhere."""

    def __init__(self, what: str, source: Source):
        self.what, self.source = what, source
        self.live = sys.stderr.isatty()
        self.every_s = 0.1 if self.live else 10.0

    def documents(self) -> Iterator[Blocks]:
        """The source's documents, counted as they are read."""
        self.read_bytes, self.said_s = 0, time.monotonic()
        for document in self.source.documents():
            yield self._counted(document)
        if self.live:
            self._say("\n")

    def _counted(self, document: Blocks) -> Blocks:
        for block in document:
            yield block
            self.read_bytes += len(block.encode())
            if time.monotonic() - self.said_s >= self.every_s:
                self._say("" if self.live else "\n")

    def _say(self, end: str) -> None:
        self.said_s = time.monotonic()
        of = f"{self.read_bytes / 1e6:,.1f} MB of text, of {self.source.size_bytes / 1e6:,.1f} MB"
        start = "\r" if self.live else ""
        print(f"{start}{self.what}: {of}", end=end, file=sys.stderr, flush=True)


def watched(source: Source, what: str) -> Source:
    """The source, with a line of progress while it is read."""
    return dataclasses.replace(source, documents=Progress(what, source).documents)


def write_tokens(path: Path, source: Source, tokenizer: Tokenizer) -> int:
    """All tokens as headerless uint16, piece by piece; returns their number.  Raises UserError for
    an id over 65535, and if there is no text."""
    from backglass.data.encode import encoded

    count = 0
    with path.open("wb") as f:
        for ids in encoded(source, tokenizer):
            count += _put(f, ids, count)
    if not count:
        raise UserError(f"{source.name} holds no text; there is nothing to prepare")
    return count


def _put(f, ids: np.ndarray, at: int) -> int:
    if ids.size and int(ids.max()) > 65535:
        raise UserError(
            f"token {ids.max()} at position {at + int(ids.argmax())} does not fit llm.c's shards, "
            "which hold uint16. Use a tokenizer of at most 65,536 tokens, such as bpe:32768."
        )
    f.write(ids.astype(np.uint16).tobytes())
    return ids.size


def write_shards(everything: Path, count: int, folder: Path, shard_tokens: int) -> list[dict]:
    """Cut the token file into train and val shards; one row per shard."""
    held_out = count // 10
    rows = []
    with everything.open("rb") as tokens:
        for split, first, last in (
            ("train", 0, count - held_out),
            ("val", count - held_out, count),
        ):
            for i, start in enumerate(range(first, last, shard_tokens)):
                path = folder / f"{split}_{i:06d}.bin"
                size = min(shard_tokens, last - start)
                _write_shard(path, size, _next(tokens, size))
                rows.append({"split": split, "file": path.name, "tokens": size})
    return rows


def _next(tokens: BinaryIO, count: int) -> Iterator[bytes]:
    """The next `count` tokens of the file, a block at a time."""
    for start in range(0, count, BLOCK):
        yield tokens.read(2 * min(BLOCK, count - start))


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """llm.c's shard of these tokens."""
    _write_shard(path, len(tokens), [tokens.astype(np.uint16).tobytes()])


def _write_shard(path: Path, count: int, blocks: Iterable[bytes]) -> None:
    """256 int32 (magic, version 1, count), then the tokens as uint16."""
    from backglass.data.sources import SHARD_HEADER_BYTES, SHARD_MAGIC

    header = np.zeros(SHARD_HEADER_BYTES // 4, np.int32)
    header[:3] = SHARD_MAGIC, 1, count
    with path.open("wb") as f:
        f.write(header.tobytes())
        f.writelines(blocks)
