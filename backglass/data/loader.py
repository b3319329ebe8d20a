"""The loader: token windows in an order that the seed fixes, and a position that a checkpoint
keeps.

The tokens are cut into windows of T + 1 that overlap by one: inputs are the first T, targets the
last T.  Each epoch visits every window once, in an order drawn from (seed, epoch).  A batch is the
next B windows, so 8×1, 4×2 and 1×8 see the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from backglass.errors import UserError


class Loader:
    """Windows over one or more token arrays (memory-mapped ones are read a window at a time)."""

    def __init__(self, shards: Sequence[np.ndarray], T: int, seed: int, shuffle: bool = True):
        self.shards, self.T, self.seed, self.shuffle = shards, T, seed, shuffle
        self.starts = np.cumsum([0, *(max(0, (len(s) - 1) // T) for s in shards)])
        self.windows = int(self.starts[-1])
        if not self.windows:
            longest = max((len(s) for s in shards), default=0)
            raise UserError(
                f"the text is too short: {longest} tokens, but --seq-len {T} needs at least "
                f"{T + 1} for "
                "training and as many for validation. Use a longer text or a smaller --seq-len."
            )
        self.position = 0  # windows handed out so far
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    @property
    def epoch(self) -> int:
        return self.position // self.windows

    def batch(self, B: int) -> tuple[np.ndarray, np.ndarray]:
        """The next B windows as int32 ids and targets, both (B, T)."""
        window = np.stack([self._window(self.position + b) for b in range(B)])
        self.position += B
        return window[:, :-1], window[:, 1:]

    def spread(self, count: int) -> np.ndarray:
        """`count` windows at even distances, the same every time: (count, T + 1)."""
        chosen = np.linspace(0, self.windows - 1, min(count, self.windows)).astype(int)
        return np.stack([self._read(int(w)) for w in chosen])

    def _window(self, position: int) -> np.ndarray:
        epoch, at = divmod(position, self.windows)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = rng.permutation(self.windows) if self.shuffle else np.arange(self.windows)
            self._epoch = epoch
        return self._read(int(self._order[at]))

    def _read(self, window: int) -> np.ndarray:
        shard = int(np.searchsorted(self.starts, window, side="right")) - 1
        start = (window - int(self.starts[shard])) * self.T
        return self.shards[shard][start : start + self.T + 1].astype(np.int32)


def split(tokens: np.ndarray, T: int, fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """(train, val): the last tenth is held out, at least one window of it."""
    held_out = max(int(len(tokens) * fraction), T + 1)
    return tokens[: max(0, len(tokens) - held_out)], tokens[max(0, len(tokens) - held_out) :]


def check_range(shards: Sequence[np.ndarray], vocab_size: int, name: str) -> None:
    """Raises UserError if a token id does not fit the model.  Reads everything once, a block at a
    time."""
    for s in shards:
        if vocab_size > np.iinfo(s.dtype).max:  # nothing that could be wrong, nothing to read
            continue
        for start in range(0, len(s), 1 << 24):
            block = s[start : start + (1 << 24)]
            top = int(block.max())
            if top >= vocab_size:
                at = start + int(block.argmax())
                raise UserError(
                    f"{name} holds token {top} at position {at}, but the model knows only 0 to "
                    f"{vocab_size - 1}. Give --vocab-size {top + 1} or more, or the tokenizer it "
                    f"was made with."
                )
