"""Tokenizers: text to ids and back.

bytes      one token per byte, nothing to learn
bpe:N      byte-level BPE with N tokens, trained on the training text
gpt2       GPT-2's own 50,257 tokens, from the Hugging Face hub
FILE       any tokenizer.json

All of them are saved as tokenizer.json, which transformers reads too.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backglass.errors import UserError, wrong_use

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """encode: str -> ids; decode: ids -> str.  Built by `build` or `load`."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self.inner = inner
        self.vocab_size: int = inner.get_vocab_size(with_added_tokens=True)
        self.end_of_text: int | None = inner.token_to_id(END_OF_TEXT)
        vocab = inner.get_vocab(with_added_tokens=True)
        self.is_bytes = self.vocab_size == 256 and all(
            vocab.get(char) == byte for byte, char in byte_characters().items()
        )

    def encode(self, text: str) -> np.ndarray:
        """int32 ids of text."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: list[str]) -> list[np.ndarray]:
        """int32 ids of each text, computed on all cores."""
        if self.is_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]
        found = self.inner.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids, np.int32) for e in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        ids = [int(i) for i in ids]
        if self.is_bytes:
            return bytes(ids).decode(errors="replace")
        return self.inner.decode(ids, skip_special_tokens=False)

    def to_json(self) -> str:
        return self.inner.to_str(pretty=True)


def build(kind: str, text: Iterable[str]) -> Tokenizer:
    """The tokenizer named on the command line; `text` is what bpe:N learns from, in pieces."""
    if kind == "bytes":
        return _bytes()
    if kind.startswith("bpe:"):
        return _train_bpe(kind, text)
    if kind == "gpt2":
        return _gpt2()
    if Path(kind).is_file():
        return load(Path(kind))
    raise wrong_use(
        f"--tokenizer {kind}: expected bytes, bpe:N, gpt2 or a tokenizer.json, and there is no "
        f"file called {kind}"
    )


def load(path: Path) -> Tokenizer:
    """A tokenizer.json.  Raises UserError if it is not one."""
    from tokenizers import Tokenizer as Inner

    try:
        inner = Inner.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; a checkpoint folder has a tokenizer.json"
        ) from None
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} is not a tokenizer.json: {error}") from None
    inner.no_truncation()  # some files would cut a text to the context of their model,
    inner.no_padding()  # or fill it up
    return Tokenizer(inner)


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte, as tokenizer.json files spell them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def _bytes() -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {char: byte for byte, char in byte_characters().items()}
    inner = Inner(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner)


def _train_bpe(kind: str, text: Iterable[str]) -> Tokenizer:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers, trainers

    try:
        size = int(kind.removeprefix("bpe:"))
    except ValueError:
        size = 0
    if not 257 <= size <= 65535:
        raise wrong_use(
            f"--tokenizer {kind}: N must be a number from 257 to 65535 (256 bytes, end of text)"
        )
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(text, trainer)
    return Tokenizer(inner)


def _gpt2() -> Tokenizer:
    from backglass.data import hub

    repo, name = "openai-community/gpt2", "tokenizer.json"
    path = hub.kept(repo, name) or hub.fetch(repo, name, "a local one with --tokenizer FILE")
    found = load(path)
    if found.vocab_size != 50257:
        raise UserError(
            f"{path} has {found.vocab_size:,} tokens, GPT-2 has 50,257; delete it to fetch it again"
        )
    return found
