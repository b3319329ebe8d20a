"""Texts to tokens, a piece at a time: what training and `data prepare` both do with a source.

Each document starts with the tokenizer's end-of-text token, if it has one.  The tokens are those of
the whole document although it is cut:

bytes            anywhere, because a character's tokens depend on nothing else
GPT-2's pattern  between a character and white space right of it (gpt2, bpe:N and files like them):
                 none of the pattern's pieces holds a character and then white space, so such a
                 place is always between two of them, and pieces are encoded independently
others           nowhere: of them it is not known, so each document must fit in memory
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np

from backglass.data.documents import Blocks
from backglass.data.sources import Source
from backglass.data.tokenizer import Tokenizer

PIECE = 1 << 16  # characters: the trainer of tokenizers holds 256 pieces at a time
BATCH = 16  # pieces encoded together, on all cores
ANYWHERE = re.compile(r"(?s)(?=.)")
BEFORE_SPACE = re.compile(r"(?<=\S)(?=[ \t\r\n])")  # white space in every Unicode table


def encoded(source: Source, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """int32 ids of all documents in order, a piece at a time."""
    where = cuts(tokenizer)
    for document in source.documents():
        if tokenizer.end_of_text is not None:
            yield np.array([tokenizer.end_of_text], np.int32)
        found = pieces(document, where)
        while batch := list(islice(found, BATCH)):
            yield from tokenizer.encode_all(batch)


def lessons(source: Source) -> Iterator[str]:
    """All text in order, in pieces that bpe:N may learn from one by one."""
    for document in source.documents():
        yield from pieces(document, BEFORE_SPACE)


def cuts(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Where a text may be cut without changing its tokens; None: nowhere."""
    if tokenizer.is_bytes:
        return ANYWHERE
    return BEFORE_SPACE if splits_like_gpt2(tokenizer) else None


def splits_like_gpt2(tokenizer: Tokenizer) -> bool:
    """Is the pattern of GPT-2 all that happens before the merges, and does no added token hold
    white space?"""
    j = json.loads(tokenizer.to_json())
    how = j.get("pre_tokenizer") or {}
    added = j.get("added_tokens") or []
    return (
        not j.get("normalizer")
        and how.get("type") == "ByteLevel"
        and how.get("use_regex", True)
        and not how.get("add_prefix_space")
        and not any(a["lstrip"] or a["rstrip"] or re.search(r"\s", a["content"]) for a in added)
    )


def pieces(document: Blocks, where: re.Pattern[str] | None) -> Iterator[str]:
    """The document in pieces of about PIECE characters, cut where the pattern allows."""
    if where is None:
        yield "".join(document)
        return
    rest, searched = "", PIECE
    for block in document:
        rest += block
        start = 0
        while cut := where.search(rest, searched):
            yield rest[start : cut.start()]
            start = cut.start()
            searched = start + PIECE
        searched = max(searched, len(rest)) - start
        rest = rest[start:]
    if rest:
        yield rest
