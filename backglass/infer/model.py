"""Model: a trained model to use: generate, loss, logits, gradients.  `bg.load(path)` makes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backglass import device as devices
from backglass import models
from backglass.data import tokenizer as tokenizers
from backglass.data.tokenizer import Tokenizer
from backglass.device import Device
from backglass.errors import UserError, wrong_use
from backglass.formats import hf
from backglass.infer.generate import Generator, bind, exact, nonempty
from backglass.infer.sampling import Sampling
from backglass.infer.stream import TextStream
from backglass.layout import Layout
from backglass.program.record import Program
from backglass.program.step import declare, record_logits, record_loss, record_micro
from backglass.training import checkpoint
from backglass.view import DTYPES

Tokens = str | np.ndarray | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class Continuation:
    """What a model made of a prompt.  stop: end-of-text or max-tokens."""

    prompt: str
    text: str
    tokens: list[int]
    prompt_tokens: int
    stop: str


class Model:
    """A GPT-2 with its parameters, on a device.  tokenizer is None if its folder has none."""

    def __init__(
        self, c: Any, layout: Layout, parameters: np.ndarray, device: Device,
        tokenizer: Tokenizer | None = None, source: str = "",
    ):  # fmt: skip
        self.c, self.layout, self.device, self.source = c, layout, device, source
        self.parameters = parameters
        self._tokenizer = tokenizer
        self._generator: Generator | None = None

    # ------------------------------------------------------------------------------ text
    @property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError if the model came without one."""
        if self._tokenizer is None:
            raise UserError(
                f"{self.source or 'the model'} has no tokenizer.json, so text cannot be turned "
                f"into tokens. Put the tokenizer.json that the model was trained with into its "
                f"folder."
            )
        return self._tokenizer

    def generate(
        self, prompt: str = "", max_tokens: int = 200, temperature: float = 0.8, top_k: int = 40,
        top_p: float = 1.0, seed: int = 1337,
    ) -> str:  # fmt: skip
        """The model's continuation of prompt, without the prompt; ends at end-of-text or after
        max_tokens.  Same arguments and machine: same text.

        An empty prompt is a new text.  See Sampling for the other arguments and for the errors.
        """
        return "".join(self.stream(prompt, max_tokens, temperature, top_k, top_p, seed))

    def stream(
        self, prompt: str = "", max_tokens: int = 200, temperature: float = 0.8, top_k: int = 40,
        top_p: float = 1.0, seed: int = 1337,
    ) -> Iterator[str]:  # fmt: skip
        """generate, piece by piece as the tokens come; a piece never holds half a character."""
        sampling = Sampling(temperature, top_k, top_p, seed)
        text = TextStream(self.tokenizer)
        for (token,) in self.steps([prompt], max_tokens, sampling):
            if token is not None and (piece := text.push(token)):
                yield piece
        if rest := text.flush():
            yield rest

    def continuations(
        self, prompts: Sequence[str], max_tokens: int, sampling: Sampling, first: int = 0
    ) -> list[Continuation]:
        """Continue all prompts as one batch.  first: see Generator.stream."""
        made: list[list[int]] = [[] for _ in prompts]
        for tokens in self.steps(prompts, max_tokens, sampling, first):
            for own, token in zip(made, tokens, strict=True):
                if token is not None:
                    own.append(token)
        return [
            Continuation(
                prompt, self.tokenizer.decode(own), own, len(self.encode(prompt)),
                "max-tokens" if len(own) == max_tokens else "end-of-text",
            )
            for prompt, own in zip(prompts, made, strict=True)
        ]  # fmt: skip

    def steps(
        self, prompts: Sequence[str], max_tokens: int, sampling: Sampling, first: int = 0
    ) -> Iterator[list[int | None]]:
        """The new token of every prompt, step by step; None for those that are finished."""
        if max_tokens < 1:
            raise wrong_use(f"--max-tokens must be at least 1, got {max_tokens}")
        ids = [self.encode(prompt) for prompt in prompts]
        known = min(self.c.vocab_size, self.tokenizer.vocab_size)
        return self.generator(len(prompts)).stream(
            ids, max_tokens, sampling, self.tokenizer.end_of_text, known, first
        )

    def encode(self, prompt: str) -> list[int]:
        """The tokens of a prompt, at least one.  Raises UserError if it is not valid text, or if
        the tokenizer is another model's."""
        try:
            ids = nonempty(self.tokenizer.encode(prompt), self.tokenizer)
        except UnicodeEncodeError:
            raise wrong_use(f"the prompt {prompt!r} is not valid Unicode text") from None
        if max(ids) >= self.c.vocab_size:
            raise UserError(
                f"the prompt has token {max(ids)}, but {self.source or 'the model'} knows only "
                f"{self.c.vocab_size}. Is its tokenizer.json that of another model?"
            )
        return ids

    def generator(self, B: int = 1) -> Generator:
        """A generator for B sequences; the last one made is kept."""
        if self._generator is None or self._generator.B != B:
            flat = self.layout.views("p", "param").flat
            held = self.device.memory().adopt(flat, self.parameters)
            self._generator = Generator(self.c, held, self.device, B, self.layout.dtype)
        return self._generator

    # ------------------------------------------------------------------------------ numbers
    def logits(self, tokens: Tokens) -> np.ndarray:
        """(T, V) for T tokens, or (B, T, V) for (B, T): row t is about the token after t.

        Raises UserError for tokens the model does not have, or more than its context holds.
        """
        ids, batched = self._ids(tokens, 1)
        found = self._compute(record_logits, ids)[-1][..., : self.c.vocab_size]
        return found if batched else found[0]

    def loss(self, tokens: Tokens) -> float:
        """The mean loss of each token but the first, given those before it, in nats."""
        return self._loss_and_gradients(record_loss, tokens)[0]

    def grads(self, tokens: Tokens) -> dict[str, np.ndarray]:
        """The gradient of `loss` by Hugging Face's tensor names and in its layout, float32."""
        flat = self._loss_and_gradients(record_micro, tokens)[1]
        return hf.tensors_out(self.layout, flat)

    def _loss_and_gradients(
        self, record: Callable[..., Program], tokens: Tokens
    ) -> tuple[float, np.ndarray]:
        whole, _ = self._ids(tokens, 2)
        loss, gradients, _ = self._compute(record, whole[:, :-1], whole[:, 1:])
        return loss, gradients

    def _compute(
        self, record: Callable[..., Program], ids: np.ndarray, targets: np.ndarray | None = None
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Run a program once: (mean loss, gradients' flat buffer, the last line's output)."""
        memory = self.device.memory()
        (B, T), dtype = ids.shape, self.layout.dtype
        model = models.of(self.c)
        t = declare(model, self.c, B, T, dtype)
        memory.adopt(t.p.flat, self.parameters)
        wants_gradients = record is record_micro
        if wants_gradients:
            memory.allocate(t.dp.flat)
        run, last = bind(record(model, self.c, B, T, dtype), self.device, memory)
        memory.write(t.io.ids, ids)
        loss = 0.0
        if targets is not None:
            memory.write(t.io.targets, targets)
            memory.write(t.io.dloss, 1 / targets.size)
        run()
        if targets is not None:
            loss = float(memory.read(t.io.loss).astype(np.float64).mean())
        gradients = exact(memory.read(t.dp.flat)) if wants_gradients else np.zeros(0)
        return loss, gradients, gradients if wants_gradients else exact(memory.read(last))

    def _ids(self, tokens: Tokens, least: int) -> tuple[np.ndarray, bool]:
        """((B, T) ids, whether they came as a batch)."""
        ids = self.tokenizer.encode(tokens) if isinstance(tokens, str) else np.asarray(tokens)
        batched = ids.ndim == 2
        longest = self.c.max_seq_len + least - 1
        if ids.ndim not in (1, 2) or not ids.size or not least <= ids.shape[-1] <= longest:
            raise wrong_use(
                f"tokens have shape {ids.shape}; expected (T,) or (B, T) with T from {least} to "
                f"{longest}, the model's context"
            )
        if ids.dtype.kind not in "iu":
            raise wrong_use(f"tokens are {ids.dtype}; expected integers, or a text")
        if ids.min() < 0 or ids.max() >= self.c.vocab_size:
            bad = int(ids.min() if ids.min() < 0 else ids.max())
            raise wrong_use(
                f"there is no token {bad}; the model has tokens 0 to {self.c.vocab_size - 1}"
            )
        return ids.reshape(-1, ids.shape[-1]), batched

    def __repr__(self) -> str:
        c = self.c
        return (
            f"<{models.title(c)} {self.source}: {c.layers} layers, {c.heads} heads, "
            f"{c.channels} channels, "
            f"{self.layout.count:,} parameters, vocabulary {c.vocab_size:,}, context "
            f"{c.max_seq_len:,}, {self.layout.dtype} on {self.device.name}>"
        )


def load(
    path: str | Path, device: str = "cpu", dtype: str = "fp32", threads: int | None = None
) -> Model:
    """A model from a run directory (its newest checkpoint), a checkpoint, a folder saved by
    transformers, its model.safetensors, or hf:NAME from the hub.

    device: see backglass.device; dtype: one the device has, or fp64 on numpy.  Raises UserError if
    there is no model, it is damaged, or of a kind that we do not have.
    """
    folder = find(str(path))
    options: dict[str, Any] = {"threads": threads} if device == "cpu" else {}
    try:
        on = devices.get(device, **options)
    except ValueError as error:
        raise wrong_use(f"--device {device}: {error}") from None
    known = (*on.dtypes, *(("fp64",) if device == "numpy" else ()))
    if dtype not in known:
        raise wrong_use(f"--dtype {dtype}: the {device} device has {', '.join(known)}")
    c = hf.read_config(folder)
    layout = Layout(models.of(c).PARAMS, c.sizes(1, 1), dtype)
    parameters = hf.tensors_in(layout, folder)
    parameters = parameters.astype(DTYPES[dtype], copy=False)
    file = folder / "tokenizer.json"
    tokenizer = tokenizers.load(file) if file.exists() else None
    return Model(c, layout, parameters, on, tokenizer, str(folder))


def find(path: str) -> Path:
    """The model folder that a path or hf:NAME means."""
    if path.startswith("hf:"):
        from backglass.data.repositories import model_folder

        return model_folder(path)
    if not Path(path).exists():
        raise UserError(
            f"there is no {path!r}; expected a run directory, a checkpoint, a folder saved by "
            f"transformers, or hf:NAME",
            code=2,
        )
    folder = Path(path).parent if Path(path).suffix == ".safetensors" else Path(path)
    return checkpoint.find(folder)
