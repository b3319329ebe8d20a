"""inference check: what is computed piece by piece with a cache equals the whole sequence at once.

The ops for whole sequences, attention and embed, are proved elsewhere; here they are the truth.
Caches start full of random numbers, so a position that is read too early, or never written, shows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from backglass.checks.samples import Sample, call_maths
from backglass.ops import Op, table

B, P, NH, HS, V = 3, 7, 3, 5, 11
STARTS = np.array([0, 2, P])  # a new sequence, one that has two positions, a parked one


def attention_cached(op: Op) -> dict[str, float]:
    """y, k and v of attention_cached against attention, in one chunk, in chunks of two, and token
    by token."""
    rng = np.random.default_rng(11)
    whole = rng.standard_normal((B, P, 3, NH, HS))
    want = _call(table()["attention"], dict(qkv=whole), dict(B=B, T=P, NH=NH, HS=HS))[0]
    found = {}
    for T in (P, 2, 1):
        cache = rng.standard_normal((2, B, NH, P, HS))
        k, v = cache.copy()
        y = np.full((B, P, NH, HS), np.nan)
        for first in range(0, P, T):
            n = min(T, P - first)
            start = np.full(B, first)
            y[:, first : first + n], k, v = _step(op, whole[:, first : first + n], start, k, v)
        found[f"y in chunks of {T}"] = relative(y, want)
        found[f"cache in chunks of {T}"] = relative(np.stack([k, v]), by_head(whole[:, :, 1:]))
    return found | _attention_of_unequal_sequences(op, whole, want)


def _attention_of_unequal_sequences(
    op: Op, whole: np.ndarray, want: np.ndarray
) -> dict[str, float]:
    """One chunk for sequences that start at different positions; past P there is padding."""
    rng = np.random.default_rng(12)
    k, v = by_head(whole[:, :, 1:]).copy()
    for b, s in enumerate(STARTS):  # what is not yet there is noise
        k[b, :, s:] = rng.standard_normal(k[b, :, s:].shape)
        v[b, :, s:] = rng.standard_normal(v[b, :, s:].shape)
    chunk = rng.standard_normal((B, P, 3, NH, HS))
    y_want, (k_want, v_want) = np.zeros((B, P, NH, HS)), by_head(whole[:, :, 1:])
    for b, s in enumerate(STARTS):
        n = P - s  # rows that are not padding
        chunk[b, :n] = whole[b, s:]
        y_want[b, :n] = want[b, s:]
    before = k.copy()
    y, k_new, v_new = _step(op, chunk, STARTS, k, v)
    return {
        "y of unequal sequences": relative(y, y_want),
        "k of unequal sequences": relative(k_new, k_want),
        "v of unequal sequences": relative(v_new, v_want),
        "inputs untouched": 0.0 if np.array_equal(k, before) else np.inf,
    }


def by_head(kv: np.ndarray) -> np.ndarray:
    """(B, T, 2, NH, HS) as qkv has them -> k and v (2, B, NH, T, HS) as the cache has them."""
    return kv.transpose(2, 0, 3, 1, 4)


def embed_at(op: Op) -> dict[str, float]:
    """embed_at against embed: each sequence's piece of the whole, 0 past the last position."""
    rng = np.random.default_rng(13)
    C = 5
    ids = rng.integers(0, V, (B, P))
    wte, wpe = rng.standard_normal((V, C)), rng.standard_normal((P, C))
    sizes = dict(B=B, T=P, V=V, P=P, C=C)
    whole = _call(table()["embed"], dict(ids=ids, wte=wte, wpe=wpe), sizes)[0]
    found = {}
    for T in (1, 3, P):
        piece, want = rng.integers(0, V, (B, T)), np.zeros((B, T, C))
        for b, s in enumerate(STARTS):
            n = min(T, P - s)
            piece[b, :n], want[b, :n] = ids[b, s : s + n], whole[b, s : s + n]
        values = dict(ids=piece, start=STARTS, wte=wte, wpe=wpe)
        found[f"pieces of {T}"] = relative(_call(op, values, sizes | dict(T=T))[0], want)
    return found


CHECKS: dict[str, Callable[[Op], dict[str, float]]] = {
    "attention_cached": attention_cached,
    "embed_at": embed_at,
}


def _step(op: Op, qkv: np.ndarray, start: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple:
    sizes = dict(B=B, T=qkv.shape[1], NH=NH, HS=HS, P=P)
    return _call(op, dict(qkv=qkv, start=start, k=k, v=v), sizes)


def _call(op: Op, values: dict[str, np.ndarray], sizes: dict[str, int]) -> tuple:
    sig = op.signatures[op.name]
    return call_maths(sig, Sample(op, sizes, dict(sig.attrs), values), values)


def relative(found: np.ndarray, want: np.ndarray) -> float:
    """‖found − want‖/‖want‖; infinite if the shapes differ."""
    if np.shape(found) != np.shape(want):
        return np.inf
    return float(np.linalg.norm(found - want) / np.linalg.norm(want))
