"""Where training text comes from: `--data SOURCE`.

python-docs    the help texts inside CPython: real English on every machine, no download (default)
FILE           a text, jsonl or parquet file, or a token shard (llm.c's; with --format, nanoGPT's)
FOLDER, GLOB   every text file, or every shard, in sorted order
-              standard input
shakespeare    tiny Shakespeare, 1.1 MB, downloaded once
hf:NAME        a data set of the Hugging Face hub: hf:owner/name, or hf:owner/name/PATTERN of it
"""

from __future__ import annotations

import glob
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backglass.data.documents import Blocks, blocks, documents
from backglass.errors import UserError, wrong_use

SHARD_MAGIC = 20240520
SHARD_HEADER_BYTES = 1024
TEXT_SUFFIXES = {
    ".txt", ".md", ".rst", ".py", ".json", ".jsonl", ".csv", ".html", ".tex", ".parquet", "",
}  # fmt: skip
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Source:
    """What was found: texts still to be tokenised, or token shards (memory-mapped) by split.

    documents() starts anew each time, and reads as it goes; size_bytes: of the files it reads.
    """

    name: str
    documents: Callable[[], Iterator[Blocks]] = lambda: iter(())
    size_bytes: int = 0
    train: tuple[np.ndarray, ...] = ()
    val: tuple[np.ndarray, ...] = ()

    @property
    def is_tokens(self) -> bool:
        return bool(self.train)


def read(name: str, shard_format: str = "auto") -> Source:
    """Open a source.  Raises UserError if it is missing, empty or damaged; a text that cannot be
    decoded does so when it is read."""
    try:
        return _open(name, shard_format)
    except OSError as error:
        raise UserError(
            f"{name} cannot be read: {error.strerror or error}"
            f"{f' ({error.filename})' if error.filename else ''}"
        ) from None


def _open(name: str, shard_format: str) -> Source:
    if name == "python-docs":
        text = python_docs()
        return Source(name, lambda: iter([iter([text])]), len(text.encode()))
    if name == "-":
        return _standard_input()
    if name == "shakespeare":
        return _from_files(name, [_shakespeare()], shard_format)
    if name.startswith("hf:"):
        from backglass.data.repositories import data_files

        return _from_files(name, data_files(name), shard_format)
    return _from_files(name, list(_paths(name)), shard_format)


def python_docs() -> str:
    """CPython's help topics, one after the other.  The text differs a little between Python
    versions."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise UserError(
            "--data python-docs: this Python has no pydoc_data (some distributions package it "
            "separately). Give a text file: --data FILE"
        ) from None
    return "\n\n".join(topics[name] for name in sorted(topics))


def read_shard(path: Path, nanogpt: bool = False) -> np.ndarray:
    """Tokens of a shard, memory-mapped.  Raises UserError if size and header disagree."""
    size = path.stat().st_size
    if nanogpt:
        if size == 0 or size % 2:
            raise UserError(f"{path} has {size} bytes; a nanoGPT shard is a whole number of uint16")
        return np.memmap(path, np.uint16, "r")
    header = np.zeros(256, np.int32)
    start = np.fromfile(path, np.int32, 256)
    header[: len(start)] = start
    count = int(header[2])
    if header[1] != 1 or count < 0 or size != SHARD_HEADER_BYTES + 2 * count:
        raise UserError(
            f"{path} is a damaged shard: version {header[1]} and {count} tokens promise "
            f"{SHARD_HEADER_BYTES + 2 * count} bytes, it has {size}. Download or write it again."
        )
    if not count:
        raise UserError(f"{path} is a shard of 0 tokens; there is nothing to learn from")
    return np.memmap(path, np.uint16, "r", offset=SHARD_HEADER_BYTES)


def is_shard(path: Path) -> bool:
    return _magic(path) == SHARD_MAGIC


def _magic(path: Path) -> int:
    """The first integer of a file; 0 if it has none."""
    with path.open("rb") as file:
        return int.from_bytes(file.read(4), "little", signed=True)


def _paths(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_file():
        yield path
        return
    if path.is_dir() and name:
        found = sorted(p for p in path.rglob("*") if p.is_file() and not _is_hidden(p, path))
        shards = [p for p in found if p.suffix == ".bin"]
        yield from shards or (p for p in found if p.suffix.lower() in TEXT_SUFFIXES)
        return
    found = sorted(Path(p) for p in glob.glob(name, recursive=True))  # noqa: PTH207
    yield from (p for p in found if p.is_file())


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether the file, or a folder between it and `folder`, starts with a dot, as .git does."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _from_files(name: str, paths: list[Path], shard_format: str) -> Source:
    if not paths:
        raise wrong_use(
            f"{name!r}: no file found. Give python-docs, shakespeare, a text file, a folder, "
            "a glob such as 'data/*.txt', token shards (.bin), hf:NAME or - for standard input."
        )
    nanogpt = shard_format == "nanogpt"
    shards = [p for p in paths if nanogpt or is_shard(p)]
    if shards and len(shards) < len(paths):
        other = next(p for p in paths if p not in shards)
        raise UserError(
            f"{name}: {shards[0]} is a token shard but {other} is not; name files of one kind"
        )
    if not shards:
        return _from_texts(name, paths)
    val = [p for p in shards if "val" in p.stem.split("_") or p.stem == "val"]
    train = [p for p in shards if p not in val]
    return Source(
        name,
        train=tuple(read_shard(p, nanogpt) for p in train or val),
        val=tuple(read_shard(p, nanogpt) for p in val if train),
    )


def _from_texts(name: str, paths: list[Path]) -> Source:
    filled = [p for p in paths if p.stat().st_size]
    if not filled:
        raise UserError(f"{name} is empty; there is nothing to learn from")
    for path in filled:
        if path.suffix == ".bin":
            raise UserError(
                f"{path} is no token shard of llm.c: it starts with {_magic(path)}, not "
                f"{SHARD_MAGIC}. If it holds tokens of nanoGPT add --format nanogpt; if it is "
                "text, name it .txt."
            )
    return Source(
        name,
        lambda: (document for path in filled for document in documents(path)),
        sum(p.stat().st_size for p in filled),
    )


def _standard_input() -> Source:
    """Copied to a nameless temporary file, because a tokenizer that learns reads it twice."""
    name = "standard input"
    kept = tempfile.TemporaryFile()
    try:
        shutil.copyfileobj(sys.stdin.buffer, kept, 1 << 20)
    except OSError as error:
        raise UserError(f"{name} could not be kept in {tempfile.gettempdir()}: {error}") from None
    if not (size := kept.tell()):
        raise UserError(f"{name} is empty; there is nothing to learn from")

    def again() -> Iterator[Blocks]:
        kept.seek(0)
        yield blocks(kept, name)

    return Source(name, again, size)


def _shakespeare() -> Path:
    from backglass.cache import cache_folder
    from backglass.data.hub import download

    target = cache_folder() / "tinyshakespeare.txt"
    if not target.exists():
        download(SHAKESPEARE_URL, target, "a local one with --data FILE", SHAKESPEARE_SHA256)
    return target
