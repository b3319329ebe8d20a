"""recognise: name any file or folder that backglass knows, say what it holds, and verify it."""

from __future__ import annotations

import stat
import struct
from pathlib import Path

from backglass.errors import UserError, wrong_use
from backglass.formats import llmc
from backglass.tools import binary, folders, llama2c, textual
from backglass.tools.found import Found

LLMQ_HEADER_BYTES = 1024
OTHERS = (
    (b"GGUF", "GGUF model"),
    (b"PK\x03\x04", "zip archive (PyTorch's .pt and .bin, NumPy's .npz)"),
    (b"\x93NUMPY", "NumPy array"),
    (b"\x1f\x8b", "gzip archive"),
    (b"\x80\x02", "Python pickle"),
)


def recognise(path: Path) -> Found:
    """What `path` is.  Raises UserError if it cannot be opened."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return folders.folder(path, file)
        if not stat.S_ISREG(mode):
            raise wrong_use(f"inspect {path}: neither a file nor a folder; give one of these")
        return file(path)
    except (FileNotFoundError, NotADirectoryError):
        raise wrong_use(f"inspect {path}: there is no such file or folder") from None
    except OSError as error:
        raise UserError(f"inspect {path}: it cannot be read: {error.strerror}") from None


def file(path: Path) -> Found:
    """What one file is; a file that breaks a reader is damaged."""
    try:
        return _file(path)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, struct.error) as error:
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        return Found(str(path), "unknown", problems=[f"damaged: {reason}"])


def _file(path: Path) -> Found:
    size = path.stat().st_size
    if size == 0:
        return Found(str(path), "empty file", problems=["it has no bytes"])
    with path.open("rb") as f:
        head = f.read(llmc.HEADER_BYTES)
    if found := binary.recognise(path, size, head) or _other(path, size, head):
        return found
    if path.suffix == ".safetensors" or _looks_like_safetensors(size, head):
        return textual.safetensors(path, size)
    if path.suffix == ".jsonl":
        return textual.jsonl(path)
    if path.suffix == ".json":
        return textual.json_file(path)
    found = llama2c.recognise(path, size, head) or llama2c.tokenizer(path, size)
    found = found or textual.text(path, size)
    return found or binary.nanogpt(path, size)


def _other(path: Path, size: int, head: bytes) -> Found | None:
    """Formats named but not read."""
    if head.startswith(b"BIN.TOK\n"):
        return _llmq_shard(path, size, head)
    for magic, kind in OTHERS:
        if head.startswith(magic):
            found = Found(str(path), kind, {"bytes": size})
            found.notes.append("recognised by its first bytes; inspect does not look inside")
            return found
    return None


def _llmq_shard(path: Path, size: int, head: bytes) -> Found:
    found = Found(str(path), "llmq token shard", {"bytes": size})
    if len(head) < LLMQ_HEADER_BYTES:
        found.expect_size(size, LLMQ_HEADER_BYTES, "its header alone")
        return found
    version, width, count, vocab, masks = struct.unpack("<5i", head[8:28])
    found.facts |= {"version": version, "tokens": count, "vocab_size": vocab}
    if count < 0 or width != 4:
        found.problems.append("the header's numbers cannot belong to a shard")
    elif masks:
        if size < LLMQ_HEADER_BYTES + 4 * count:
            found.expect_size(size, LLMQ_HEADER_BYTES + 4 * count, "its tokens alone")
    else:
        found.expect_size(size, LLMQ_HEADER_BYTES + 4 * count, f"a header of {count:,} tokens")
    return found


def _looks_like_safetensors(size: int, head: bytes) -> bool:
    """Eight bytes of length that fit the file, then a JSON object."""
    return (
        len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= max(0, size - 8)
    )
