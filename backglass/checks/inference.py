"""What the checks of inference ops share: a whole sequence computed piece by piece, with a cache.

The ops for whole sequences are proved elsewhere; here they are the truth.  Caches start full of
random numbers, so a position that is read too early, or never written, shows.
"""

from __future__ import annotations

import numpy as np

from backglass.checks.update import call, relative
from backglass.ops import Op

B, P, HS = 3, 7, 6
STARTS = np.array([0, 2, P])  # a new sequence, one that has two positions, a parked one


def attention_in_pieces(
    op: Op, qkv: np.ndarray, want: np.ndarray, kv: np.ndarray, **attrs
) -> dict[str, float]:
    """y, k and v of an attention with a cache against the whole: in one chunk, in chunks of two,
    token by token, and for sequences of unequal length.

    qkv (B, P, …, HS); want (B, P, NH, HS); kv (2, B, heads, P, HS), what the cache must hold.
    """
    rng = np.random.default_rng(11)
    found = {}
    for T in (P, 2, 1):
        k, v = rng.standard_normal(kv.shape)
        y = np.full(want.shape, np.nan)
        for first in range(0, P, T):
            n = min(T, P - first)
            piece, start = qkv[:, first : first + n], np.full(B, first)
            y[:, first : first + n], k, v = step(op, piece, start, k, v, want.shape[2], attrs)
        found[f"y in chunks of {T}"] = relative(y, want)
        found[f"cache in chunks of {T}"] = relative(np.stack([k, v]), kv)
    return found | unequal_sequences(op, qkv, want, kv, attrs)


def unequal_sequences(
    op: Op, qkv: np.ndarray, want: np.ndarray, kv: np.ndarray, attrs: dict
) -> dict[str, float]:
    """One chunk for sequences that start at different positions; past P there is padding."""
    rng = np.random.default_rng(12)
    k, v = kv.copy()
    for b, s in enumerate(STARTS):  # what is not yet there is noise
        k[b, :, s:] = rng.standard_normal(k[b, :, s:].shape)
        v[b, :, s:] = rng.standard_normal(v[b, :, s:].shape)
    before = k.copy()
    chunk, y_want = pieces(qkv, P, rng.standard_normal(qkv.shape)), pieces(want, P)
    y, k_new, v_new = step(op, chunk, STARTS, k, v, want.shape[2], attrs)
    return {
        "y of unequal sequences": relative(y, y_want),
        "k of unequal sequences": relative(k_new, kv[0]),
        "v of unequal sequences": relative(v_new, kv[1]),
        "inputs untouched": 0.0 if np.array_equal(k, before) else np.inf,
    }


def pieces(whole: np.ndarray, T: int, padding: np.ndarray | float = 0.0) -> np.ndarray:
    """T positions of each sequence of whole (B, P, …) from its start on, then padding."""
    found = np.zeros((B, T, *whole.shape[2:]), whole.dtype) + padding
    for b, s in enumerate(STARTS):
        n = min(T, P - s)
        found[b, :n] = whole[b, s : s + n]
    return found


def step(
    op: Op, qkv: np.ndarray, start: np.ndarray, k: np.ndarray, v: np.ndarray, NH: int, attrs: dict
) -> tuple:
    sizes = dict(B=B, T=qkv.shape[1], NH=NH, KV=k.shape[1], HS=HS, P=P)
    return call(op, dict(qkv=qkv, start=start, k=k, v=v), sizes, **attrs)
