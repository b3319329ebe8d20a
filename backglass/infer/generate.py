"""Generation: continue prompts, one token at a time, with a key/value cache.

    prompt      t0 t1 t2 … tn-1 | tn          prefill: t0 … tn-1 fill the cache, in chunks
                                  │           decode:  tn at position n gives the logits of the next
                                  └─ next     … which is decoded in its turn

Both are recorded programs, bound once for each chunk size. Sequences of a batch stand at different
positions: `start`, a tensor, says where. A sequence that is done is parked at position P, where the
ops do nothing.

When a window is full (P tokens), its last half is kept and prefilled anew from position 0: learned
positions cannot slide. One long prefill for every P/2 tokens costs little, and what the model sees
is always between P/2 and P tokens long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from backglass import models
from backglass.data.tokenizer import Tokenizer
from backglass.device import Device
from backglass.execute.memory import Memory
from backglass.execute.run import Run
from backglass.infer.cache import GROUP, declare_cache, only_cache, with_cache
from backglass.infer.sampling import Sampling, choose
from backglass.program.plan import ALIGN_BYTES, ARENA
from backglass.program.record import Program
from backglass.program.step import declare, record_logits
from backglass.view import DTYPES, View

CHUNK = 128  # most tokens of a prompt in one call: enough rows for a matmul at full speed


class Piece:
    """A bound program for T new tokens of each of B sequences."""

    def __init__(self, g: Generator, T: int, head: bool):
        model = models.of(g.c)
        t = declare(model, g.c, g.B, T, g.dtype)
        start = View("start", (g.B,), "i32", "input")
        program = with_cache(record_logits(model, g.c, g.B, T, g.dtype), g.cache, start)
        memory = g.memory.sharing(*g.memory.flat)
        self.run, self.last = bind(program if head else only_cache(program), g.device, memory)
        self.memory, self.t, self.start = memory, t, start

    def __call__(self, ids: np.ndarray, start: Any) -> None:
        """Run for the tokens ids (B, T) at positions start (B,)."""
        self.memory.write(self.t.io.ids, ids)
        self.memory.write(self.start, start)
        self.run()

    def out(self) -> np.ndarray:
        """What the last line made: (B, T, Vp) logits."""
        return self.memory.read(self.last)


class Generator:
    """A batch of up to B sequences that grow.

    parameters: the model's flat buffer, in the device's memory; it is read, never copied, so a
    training run's own will do.  room: bytes in the device's memory that nobody needs meanwhile,
    such as the arena of that run between two steps: cache and activations lie there if they fit.
    Same prompts, seed and machine: same tokens. In a batch of another size the matmuls may sum in
    another order, and the logits differ by rounding.
    """

    def __init__(
        self, c: Any, parameters: Any, device: Device, B: int = 1,
        dtype: str = "fp32", room: Any = None,
    ):  # fmt: skip
        self.c = models.adapted(c, dropout=0.0, attention="flash")
        self.B, self.dtype, self.device = B, dtype, device
        self.memory = device.memory()
        self.memory.flat["p"] = parameters
        self.cache = declare_cache(self.c, B, dtype)
        self._make_cache(room)
        self.windows: list[list[int]] = [[] for _ in range(B)]  # [] is a parked sequence
        self._decode = Piece(self, 1, head=True)
        self._prefill: dict[int, Piece] = {}

    def _make_cache(self, room: Any) -> None:
        """At the end of the room; what is before it becomes the arena of every piece."""
        flat = self.cache.flat
        if room is None or room.nbytes < flat.nbytes:
            self.memory.allocate(flat)
            return
        at = (room.nbytes - flat.nbytes) // ALIGN_BYTES * ALIGN_BYTES
        self.memory.flat[GROUP] = room[at : at + flat.nbytes].view(self.memory.storage(flat.dtype))
        self.memory.flat[ARENA] = room[:at]

    def begin(self, prompts: Sequence[Iterable[int]]) -> None:
        """Start over with these prompts, at most B, of at least one token each.  Of a prompt longer
        than the context only the last P tokens are seen.

        Raises ValueError for too many prompts, an empty one, or a token the model does not have.
        """
        if len(prompts) > self.B:
            raise ValueError(f"{len(prompts)} prompts for a generator of {self.B} sequences")
        windows = [[int(i) for i in p] for p in prompts]
        for i, window in enumerate(windows):
            bad = [token for token in window if not 0 <= token < self.c.vocab_size]
            if bad or not window:
                found = f"has token {bad[0]}" if bad else "is empty"
                raise ValueError(
                    f"prompt {i} {found}; expected at least one token id from 0 to "
                    f"{self.c.vocab_size - 1}"
                )
        self.windows = [w[-self.c.max_seq_len :] for w in windows]
        self.windows += [[] for _ in range(self.B - len(prompts))]
        self._fill(range(len(prompts)))

    def logits(self) -> np.ndarray:
        """(B, V): what each sequence's last token says of the next.  Parked rows mean nothing."""
        ids = np.array([[w[-1] if w else 0] for w in self.windows])
        self._decode(ids, [len(w) - 1 if w else self.c.max_seq_len for w in self.windows])
        return exact(self._decode.out()[:, 0, : self.c.vocab_size])

    def push(self, tokens: Sequence[int | None]) -> None:
        """Append a token to each sequence, after `logits`; None parks it for good."""
        full = []
        for b, token in enumerate(tokens):
            if token is None or not self.windows[b]:
                self.windows[b] = []
                continue
            self.windows[b].append(int(token))
            if len(self.windows[b]) > self.c.max_seq_len:
                self.windows[b] = self.windows[b][-max(1, self.c.max_seq_len // 2) :]
                full.append(b)
        self._fill(full)

    def stream(
        self, prompts: Sequence[Iterable[int]], max_tokens: int, sampling: Sampling,
        stop: int | None = None, vocab_size: int | None = None, first: int = 0,
    ) -> Iterator[list[int | None]]:  # fmt: skip
        """Continue prompts; yields the new token of each, None for those that are finished.

        stop: the token that ends a sequence; it is not yielded.  vocab_size: only tokens below it
        are drawn.  first: the number of prompts[0] among all that share the seed.
        """
        self.begin(prompts)
        rngs = [sampling.rng(first + i) for i in range(len(prompts))]
        for n in range(max_tokens):
            logits = self.logits()[:, :vocab_size]
            tokens: list[int | None] = [None] * self.B
            for b, rng in enumerate(rngs):
                if self.windows[b]:
                    token = choose(logits[b], sampling, rng)
                    tokens[b] = None if token == stop else token
            if all(token is None for token in tokens):
                return
            yield tokens[: len(prompts)]
            if n + 1 < max_tokens:
                self.push(tokens)

    def _fill(self, which: Iterable[int]) -> None:
        """Compute the cache of these sequences from position 0: all tokens but the last, which
        `logits` takes."""
        P = self.c.max_seq_len
        rest = {b: self.windows[b][:-1] for b in which}
        longest = max((len(tokens) for tokens in rest.values()), default=0)
        T = min(CHUNK, P, 1 << max(longest - 1, 0).bit_length())
        for at in range(0, longest, T):
            ids, start = np.zeros((self.B, T), np.int32), np.full(self.B, P)
            for b, tokens in rest.items():
                if chunk := tokens[at : at + T]:
                    start[b] = at
                    ids[b, : len(chunk)] = chunk
            self._piece(T)(ids, start)

    def _piece(self, T: int) -> Piece:
        if T not in self._prefill:
            self._prefill[T] = Piece(self, T, head=False)
        return self._prefill[T]

    def __repr__(self) -> str:
        lengths = ", ".join(str(len(w)) for w in self.windows)
        nbytes = self.cache.flat.nbytes
        return f"<Generator of {self.B} sequences ({lengths} tokens), cache of {nbytes:,} bytes>"


def exact(x: np.ndarray) -> np.ndarray:
    """bf16 widened to float32, in which NumPy computes; others as they are."""
    return x.astype(np.float32) if x.dtype == DTYPES["bf16"] else x


def bind(program: Program, device: Device, memory: Memory) -> tuple[Run, View]:
    """Plan a program in memory's arena and bind it; also where its last line's output lies.

    That output stays as it is until the next run: nothing comes after it.
    """
    plan = program.validate().plan()
    memory.arena(plan.peak)
    placed = plan.placed()
    device.prepare(placed, memory)
    return Run(placed, device, memory), placed[len(placed) - 1].written[0]


def nonempty(prompt: Iterable[int], tokenizer: Tokenizer) -> list[int]:
    """The prompt, or what a text begins with if it is empty: end-of-text, or else a newline."""
    ids = [int(i) for i in prompt]
    if ids:
        return ids
    if tokenizer.end_of_text is not None:
        return [tokenizer.end_of_text]
    return [int(i) for i in tokenizer.encode("\n")] or [0]


def sample_text(
    c: Any, session: Any, tokenizer: Tokenizer, prompt: np.ndarray, count: int, seed: int
) -> str:
    """The model's continuation of prompt, `count` tokens long, end-of-text or not."""
    held = session.memory.flat
    g = Generator(c, held["p"], session.device, dtype=session.s.dtype, room=held.get(ARENA))
    known = min(c.vocab_size, tokenizer.vocab_size)
    steps = g.stream([nonempty(prompt, tokenizer)], count, Sampling(seed=seed), vocab_size=known)
    return tokenizer.decode(token for (token,) in steps if token is not None)
