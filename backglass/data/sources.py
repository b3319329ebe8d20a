"""Where training text comes from: `--data SOURCE`.

python-docs    the help texts inside CPython: real English on every machine, no download (default)
FILE           a text file, or a token shard (llm.c's; nanoGPT's with --format nanogpt)
FOLDER, GLOB   every text file, or every shard, in sorted order
-              standard input
shakespeare    tiny Shakespeare, 1.1 MB, downloaded once
hf:NAME        text files of a Hugging Face dataset repository: hf:owner/name/file.txt
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backglass.errors import UserError, wrong_use

SHARD_MAGIC = 20240520
SHARD_HEADER_BYTES = 1024
TEXT_SUFFIXES = {".txt", ".md", ".rst", ".py", ".json", ".jsonl", ".csv", ".html", ".tex", ""}
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Source:
    """What was found: texts still to be tokenised, or token shards (memory-mapped) by split."""

    name: str
    texts: tuple[str, ...] = ()
    train: tuple[np.ndarray, ...] = ()
    val: tuple[np.ndarray, ...] = ()

    @property
    def is_tokens(self) -> bool:
        return bool(self.train)


def read(name: str, shard_format: str = "auto") -> Source:
    """Open a source.  Raises UserError if it is missing, empty, undecodable or damaged."""
    if name == "python-docs":
        return Source(name, (python_docs(),))
    if name == "-":
        return Source("standard input", (_decode(sys.stdin.buffer.read(), "standard input"),))
    if name == "shakespeare":
        return Source(name, (_shakespeare(),))
    if name.startswith("hf:"):
        return _from_files(name, [_hub_file(name)], shard_format)
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
    header = np.fromfile(path, np.int32, 256)
    count = int(header[2])
    if header[1] != 1 or count < 0 or size != SHARD_HEADER_BYTES + 2 * count:
        raise UserError(
            f"{path} is a damaged shard: version {header[1]} and {count} tokens promise "
            f"{SHARD_HEADER_BYTES + 2 * count} bytes, it has {size}. Download or write it again."
        )
    return np.memmap(path, np.uint16, "r", offset=SHARD_HEADER_BYTES)


def is_shard(path: Path) -> bool:
    header = np.fromfile(path, np.int32, 1) if path.stat().st_size >= SHARD_HEADER_BYTES else [0]
    return header[0] == SHARD_MAGIC


def _paths(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_file():
        yield path
        return
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        shards = [p for p in found if p.suffix == ".bin"]
        yield from shards or (p for p in found if p.suffix.lower() in TEXT_SUFFIXES)
        return
    found = sorted(Path(p) for p in glob.glob(name, recursive=True))  # noqa: PTH207
    yield from (p for p in found if p.is_file())


def _from_files(name: str, paths: list[Path], shard_format: str) -> Source:
    if not paths:
        raise wrong_use(
            f"--data {name}: no file found. Give python-docs, shakespeare, a text file, a folder, "
            f"a "
            "glob such as 'data/*.txt', token shards (.bin), hf:NAME or - for standard input."
        )
    nanogpt = shard_format == "nanogpt"
    shards = [p for p in paths if nanogpt or is_shard(p)]
    if shards and len(shards) < len(paths):
        other = next(p for p in paths if p not in shards)
        raise UserError(
            f"--data {name}: {shards[0]} is a token shard but {other} is not; train on one kind"
        )
    if not shards:
        return Source(name, tuple(_decode(p.read_bytes(), str(p)) for p in paths))
    val = [p for p in shards if "val" in p.stem.split("_") or p.stem == "val"]
    train = [p for p in shards if p not in val]
    return Source(
        name,
        train=tuple(read_shard(p, nanogpt) for p in train or val),
        val=tuple(read_shard(p, nanogpt) for p in val if train),
    )


def _decode(data: bytes, name: str) -> str:
    if not data:
        raise UserError(f"{name} is empty; there is nothing to learn from")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name} is not UTF-8 text: byte 0x{data[error.start]:02x} at position {error.start}. "
            "Convert it (iconv -t UTF-8), or if it holds tokens of nanoGPT add --format nanogpt."
        ) from None


def _shakespeare() -> str:
    from backglass.cache import cache_folder
    from backglass.data.hub import download

    target = cache_folder() / "tinyshakespeare.txt"
    if not target.exists():
        download(SHAKESPEARE_URL, target, "--data FILE", SHAKESPEARE_SHA256)
    return _decode(target.read_bytes(), str(target))


def _hub_file(name: str) -> Path:
    from backglass.data.hub import fetch

    parts = name.removeprefix("hf:").split("/")
    if len(parts) < 3:
        raise wrong_use(
            f"--data {name}: name a file of a dataset repository, hf:owner/name/file.txt"
        )
    return fetch("datasets/" + "/".join(parts[:2]), "/".join(parts[2:]), "--data FILE")
