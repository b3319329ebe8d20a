"""backglass data"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from tyro.conf import Positional, arg

from backglass.errors import UserError, wrong_use

if TYPE_CHECKING:
    from backglass.data.tokenizer import Tokenizer

CHUNK = 1 << 20  # characters encoded at a time
BLOCK = 1 << 22  # tokens copied at a time
MOST_SHARD_TOKENS = 1 << 30  # llm.c reads a shard with 32-bit offsets: 2 GiB


@dataclass
class Data:
    """Prepare text once: tokenise it into the shards that llm.c reads, and --data here too.

    DIR gets train_000000.bin, train_000001.bin, …, val_000000.bin, … (a header of 1 KiB, then
    uint16) and tokenizer.json.  Each text starts with the tokenizer's end-of-text token, if it has
    one; the last tenth of all tokens is for validation.

    For example:
      backglass data prepare book.txt --tokenizer bytes --out book
      backglass data prepare 'texts/*.txt' --tokenizer bpe:8192 --out texts-bpe
      backglass train tiny --data book --tokenizer book/tokenizer.json
    """

    action: Annotated[Positional[Literal["prepare"]], arg(help="what to do", metavar="prepare")]
    source: Annotated[
        Positional[str],
        arg(
            help="python-docs, shakespeare, a text file, folder, glob, hf:NAME, or - for standard "
            "input",
            metavar="SOURCE",
        ),
    ]
    out: Annotated[str, arg(help="folder to write, new or empty", metavar="DIR")]
    tokenizer: Annotated[
        str,
        arg(help="bytes, bpe:N (trained on the text), gpt2, or a tokenizer.json", metavar="NAME"),
    ] = "bytes"
    shard_tokens: Annotated[int, arg(help="tokens in a shard", metavar="N")] = 100_000_000
    json: Annotated[bool, arg(help="what was written as JSON")] = False

    def run(self) -> int:
        from backglass.data import sources, tokenizer
        from backglass.training.files import new_folder, write_text

        if not 1 <= self.shard_tokens <= MOST_SHARD_TOKENS:
            raise wrong_use(
                f"--shard-tokens must be from 1 to {MOST_SHARD_TOKENS:,}, got {self.shard_tokens}"
            )
        out = Path(self.out).resolve()
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise wrong_use(f"--out {self.out} is not empty; choose a new folder or delete it")
        source = sources.read(self.source)
        if source.is_tokens:
            raise wrong_use(f"{self.source} holds token shards already; give the text itself")
        encoder = tokenizer.build(self.tokenizer, source.texts)
        try:
            with new_folder(out) as part:
                everything = part / "tokens.part"
                write_tokens(everything, source.texts, encoder)
                rows = write_shards(everything, part, self.shard_tokens)
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


def write_tokens(path: Path, texts: tuple[str, ...], tokenizer: Tokenizer) -> None:
    """All tokens as headerless uint16, chunk by chunk.  Raises UserError for an id over 65535."""
    total, done, count = sum(len(t) for t in texts), 0, 0
    show = sys.stderr.isatty()
    with path.open("wb") as f:
        for text in texts:
            if tokenizer.end_of_text is not None:
                count += _put(f, np.array([tokenizer.end_of_text]), count)
            for chunk in chunks(text, tokenizer):
                count += _put(f, tokenizer.encode(chunk), count)
                done += len(chunk)
                if show:
                    line = f"\rtokenised {done / max(total, 1):4.0%} of {total:,} characters, "
                    print(line + f"{count:,} tokens", end="", file=sys.stderr, flush=True)
    if show:
        print(file=sys.stderr)


def _put(f, ids: np.ndarray, at: int) -> int:
    if ids.size and int(ids.max()) > 65535:
        raise UserError(
            f"token {ids.max()} at position {at + int(ids.argmax())} does not fit llm.c's shards, "
            "which hold uint16. Use a tokenizer of at most 65,536 tokens, such as bpe:32768."
        )
    f.write(ids.astype(np.uint16).tobytes())
    return ids.size


def chunks(text: str, tokenizer: Tokenizer) -> Iterator[str]:
    """Pieces of about CHUNK characters whose tokens, one after the other, are the whole text's.

    GPT-2's pattern never joins a character with a newline right of it, so a cut between the two
    changes nothing.  Of other tokenizers that is not known, and the text stays whole.
    """
    if not (tokenizer.is_bytes or splits_like_gpt2(tokenizer)):
        yield text
        return
    start = 0
    while start < len(text):
        cut = re.compile(r"(?<=\S)\n").search(text, start + CHUNK)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end


def splits_like_gpt2(tokenizer: Tokenizer) -> bool:
    """Is the pattern of GPT-2 all that happens before the merges?"""
    j = json.loads(tokenizer.to_json())
    how = j.get("pre_tokenizer") or {}
    return (
        not j.get("normalizer")
        and how.get("type") == "ByteLevel"
        and how.get("use_regex", True)
        and not how.get("add_prefix_space")
    )


def write_shards(everything: Path, folder: Path, shard_tokens: int) -> list[dict]:
    """Cut the token file into train and val shards; one row per shard."""
    tokens = np.memmap(everything, np.uint16, "r")
    held_out = len(tokens) // 10
    rows = []
    for split, first, last in (
        ("train", 0, len(tokens) - held_out),
        ("val", len(tokens) - held_out, len(tokens)),
    ):
        for i, start in enumerate(range(first, last, shard_tokens)):
            path = folder / f"{split}_{i:06d}.bin"
            shard = tokens[start : min(start + shard_tokens, last)]
            write_shard(path, shard)
            rows.append({"split": split, "file": path.name, "tokens": len(shard)})
    return rows


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """llm.c's shard: 256 int32 (magic, version 1, count), then uint16."""
    from backglass.data.sources import SHARD_HEADER_BYTES, SHARD_MAGIC

    header = np.zeros(SHARD_HEADER_BYTES // 4, np.int32)
    header[:3] = SHARD_MAGIC, 1, len(tokens)
    with path.open("wb") as f:
        f.write(header.tobytes())
        for start in range(0, len(tokens), BLOCK):
            f.write(tokens[start : start + BLOCK].tobytes())
