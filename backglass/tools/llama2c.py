"""llama2c: Karpathy's llama2.c, model files v0, v1 and v2 and its tokenizer, recognised and
measured."""

from __future__ import annotations

import struct
from pathlib import Path

from backglass.tools.found import LARGEST_TOKENIZER_BYTES, Found

MAGIC = 0x616B3432
NAMES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
LIMITS = (1 << 16, 1 << 18, 1 << 10, 1 << 10, 1 << 10, 1 << 21, 1 << 21)


def recognise(path: Path, size: int, head: bytes) -> Found | None:
    """A llama2.c model, or None.  v0 has no magic number: its seven sizes must make sense."""
    if len(head) >= 4 and struct.unpack("<I", head[:4])[0] == MAGIC:
        return _versioned(path, size, head)
    if len(head) < 28:
        return None
    sizes = list(struct.unpack("<7i", head[:28]))
    shared, sizes[5] = sizes[5] > 0, abs(sizes[5])
    if not plausible(sizes):
        return None
    found = Found(str(path), "llama2.c model, v0", facts(sizes, shared))
    norms, matrices = counts(sizes, shared)
    tables = sizes[6] * (sizes[0] // sizes[3])  # cosines and sines of the positions
    found.expect_size(size, 28 + 4 * (norms + sum(matrices) + tables), "this shape")
    found.notes.append("v0 has no magic number; recognised by sizes that make sense")
    return found


def _versioned(path: Path, size: int, head: bytes) -> Found:
    found = Found(str(path), "llama2.c model, v1 or v2")
    if len(head) < 256:
        found.expect_size(size, 256, "its header alone")
        return found
    version, *sizes = struct.unpack("<8i", head[4:36])
    shared = head[36] == 1
    found.kind, found.facts = f"llama2.c model, v{version}", facts(sizes, shared)
    if version not in (1, 2) or head[36] > 1 or not plausible(sizes):
        found.problems.append("the header's version or sizes cannot belong to llama2.c")
        return found
    norms, matrices = counts(sizes, shared)
    if version == 1:
        found.expect_size(size, 256 + 4 * (norms + sum(matrices)), "this shape")
        return found
    group = struct.unpack("<i", head[37:41])[0]
    found.facts["group_size"] = group
    if group < 1 or any(m % group for m in matrices):
        found.problems.append(f"groups of {group} do not divide the matrices")
        return found
    found.expect_size(size, 256 + 4 * norms + sum(m + 4 * (m // group) for m in matrices), "int8")
    return found


def plausible(sizes: list[int]) -> bool:
    dim, _, _, heads, kv = sizes[:5]
    small = all(1 <= n <= limit for n, limit in zip(sizes, LIMITS, strict=True))
    return small and dim % heads == 0 and heads % kv == 0 and (dim // heads) % 2 == 0


def facts(sizes: list[int], shared: bool) -> dict:
    found = dict(zip(NAMES, sizes, strict=True)) | {"shared classifier": shared}
    if plausible(sizes):
        norms, matrices = counts(sizes, shared)
        found["parameters"] = norms + sum(matrices)
    return found


def counts(sizes: list[int], shared: bool) -> tuple[int, list[int]]:
    """(numbers in the norms, numbers in each kind of matrix)."""
    dim, hidden, L, heads, kv_heads, V, _ = sizes
    kv = dim * kv_heads // heads
    matrices = [V * dim, *[L * dim * dim] * 2, *[L * kv * dim] * 2, *[L * hidden * dim] * 3]
    return 2 * L * dim + dim, matrices if shared else [*matrices, V * dim]


def tokenizer(path: Path, size: int) -> Found | None:
    """llama2.c's tokenizer.bin: it has no magic number, but its lengths must lead to the end."""
    if not 12 < size <= LARGEST_TOKENIZER_BYTES:
        return None
    data = path.read_bytes()
    (longest,), at, count = struct.unpack("<I", data[:4]), 4, 0
    if not 1 <= longest <= 1024:
        return None
    while at + 8 <= size:
        (length,) = struct.unpack("<I", data[at + 4 : at + 8])
        if length > longest:
            return None
        at, count = at + 8 + length, count + 1
    if at == size:
        return Found(str(path), "llama2.c tokenizer", {"tokens": count, "longest": longest})
    if count < 256:
        return None
    found = Found(str(path), "llama2.c tokenizer", {"tokens": count, "longest": longest})
    found.problems.append(f"cut off in token {count:,}")
    return found
