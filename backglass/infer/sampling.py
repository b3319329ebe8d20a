"""Sampling: which token comes next, given the logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from backglass.errors import UserError, wrong_use


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.  Raises UserError (wrong use) for numbers that make no sense.

    temperature: logits are divided by it; 0 takes the most likely token.
    top_k: only the k most likely tokens (and any that tie with the last of them); 0: all.
    top_p: of these only the most likely ones that together reach probability p; 1: all.
    seed: sequence i of a batch draws from its own generator, seeded with (seed, i).
    Source of top_p: Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration",
    arXiv 1904.09751, section 3.1; of top_k: Fan et al. 2018, arXiv 1805.04833, section 5.4.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 1.0
    seed: int = 1337

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise wrong_use(f"--temperature must be at least 0, got {self.temperature}")
        if self.top_k < 0:
            raise wrong_use(f"--top-k must be at least 0 (0: every token), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise wrong_use(f"--top-p must be above 0 and at most 1, got {self.top_p}")
        if self.seed < 0:
            raise wrong_use(f"--seed must be at least 0, got {self.seed}")

    def rng(self, sequence: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, sequence))


def choose(logits: np.ndarray, s: Sampling, rng: np.random.Generator) -> int:
    """Draw a token from logits (V,).  Raises UserError if they are not finite."""
    if not np.isfinite(logits).all():
        raise UserError(
            "the model's logits are not finite, so no token can be drawn. Its parameters are "
            "probably damaged; does an earlier checkpoint work?"
        )
    if s.temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits, s)
    drawn = np.searchsorted(np.cumsum(p), rng.random() * p.sum(), side="right")
    return int(min(drawn, np.flatnonzero(p)[-1]))


def probabilities(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """What choose draws from, (V,) in float64; 0 for tokens that top_k or top_p exclude."""
    z = (logits.astype(np.float64) - float(logits.max())) / s.temperature
    if 0 < s.top_k < z.size:
        z[z < np.partition(z, -s.top_k)[-s.top_k]] = -np.inf
    p = np.exp(z)
    p /= p.sum()
    if s.top_p < 1:
        order = np.argsort(-p, kind="stable")
        before = np.cumsum(p[order]) - p[order]
        p[order[before >= s.top_p]] = 0
        p /= p.sum()
    return p
