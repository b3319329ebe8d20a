"""Settings: everything that decides a run.  Saved in run.json and in every checkpoint."""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Any

from backglass import models
from backglass.device import kind_of
from backglass.errors import wrong_use

# device -> its dtypes, the best first; and who multiplies matrices
DTYPES = {
    "cpu": ("fp32",),
    "numpy": ("fp32", "fp64"),
    "cuda": ("bf16", "tf32", "fp32"),
    "interpret": ("fp32", "bf16"),
}
MATMULS = {"cpu": ("own", "blas"), "cuda": ("fastest", "own", "cublaslt")}
TYPES = {  # of a field: what it takes, and how that is called
    "int": (numbers.Integral, "a whole number"), "float": (numbers.Real, "a number"),
    "bool": (bool, "true or false"), "str": (str, "a text"),
}  # fmt: skip
SCHEDULES = ("cosine", "linear", "constant", "wsd")
AT_LEAST_1 = (
    "layers", "heads", "channels", "seq_len", "batch_size", "schedule_steps", "keep", "val_batches",
)  # fmt: skip
AT_LEAST_0 = (
    "vocab_size", "steps", "total_batch_tokens", "warmup_steps", "threads", "val_every",
    "sample_every", "save_every", "trace_every", "lr", "final_lr", "weight_decay", "eps", "clip",
    "dropout", "seed", "kv_heads", "head_size", "hidden", "rope_theta", "norm_eps", "window",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """One run.  Raises UserError (wrong use) for numbers that make no sense."""

    preset: str = "tiny"
    model: str = "gpt2"
    layers: int = 4
    heads: int = 4
    channels: int = 128
    vocab_size: int = 0  # 0: the tokenizer's
    seq_len: int = 128
    dropout: float = 0.0
    attention: str = "flash"
    kv_heads: int = 0  # of here on 0 is what the model chooses
    head_size: int = 0
    hidden: int = 0
    tied: bool = True
    rope_theta: float = 10000.0
    rope_scaling: str = ""
    norm_eps: float = 1e-5
    window: int = 0
    qkv_bias: bool = False
    qk_norm: bool = False

    data: str = "python-docs"
    format: str = "auto"
    tokenizer: str = "bytes"

    steps: int = 3500
    schedule_steps: int = 3500
    batch_size: int = 8
    total_batch_tokens: int = 0  # 0: batch_size · seq_len
    lr: float = 2e-3
    warmup_steps: int = 10
    schedule: str = "cosine"
    final_lr: float = 0.1  # as a fraction of lr
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip: float = 1.0

    device: str = "cpu"
    dtype: str = "auto"
    threads: int = 0  # 0: all cores
    matmul: str = "auto"
    rung: str = ""
    recompute: str = ""
    fuse: bool = True
    graph: bool = True
    seed: int = 1337
    init: str = ""

    val_every: int = 250
    val_batches: int = 8
    sample_every: int = 0
    save_every: int = 0
    keep: int = 3
    tensorboard: bool = False
    trace_every: int = 0
    trace_level: int = 1
    trace_on_alert: bool = False
    wandb: str = ""  # the project; empty: not asked for

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kind, called = TYPES[str(field.type)]
            value = getattr(self, field.name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise wrong_use(f"{_flag(field.name)} must be {called}, got {value!r}")
        kind, (_, colon, number) = kind_of(self.device), self.device.partition(":")
        if kind not in DTYPES or (colon and not (kind == "cuda" and number.isdecimal())):
            raise wrong_use(
                f"--device is one of {', '.join(DTYPES)}, cuda:N for another GPU than the first; "
                f"got {self.device!r}"
            )
        if self.dtype == "auto":
            object.__setattr__(self, "dtype", best_dtype(self.device))
        if self.matmul == "auto":
            known = MATMULS.get(kind, ("own",))
            best = "cublaslt" if kind == "cuda" and self.dtype != "bf16" else known[0]
            object.__setattr__(self, "matmul", best)
        if parse_rungs(self.rung) and kind == "numpy":
            raise wrong_use(f"--rung {self.rung} chooses a kernel; --device numpy has none")
        if self.trace_level not in (0, 1, 3):  # 2 names tensors, which no run does
            raise wrong_use(f"--trace-level must be 0, 1 or 3, got {self.trace_level}")
        self._check_numbers()
        self._one_of("model", models.NAMES)
        self._one_of("schedule", SCHEDULES)
        for name in set(SHAPE) - models.fields(self.model):
            if getattr(self, name) != SHAPE[name]:
                raise wrong_use(
                    f"{_flag(name)} {getattr(self, name)}: {self.preset} is a {self.model}, "
                    "which has no such thing"
                )
        self._one_of("attention", ("flash", "explicit"))
        self._one_of("matmul", MATMULS.get(kind, ("own",)), f" with --device {self.device}")
        self._one_of("dtype", DTYPES[kind], f" with --device {self.device}")
        self._one_of("format", ("auto", "nanogpt"))

    def _check_numbers(self) -> None:
        for name in AT_LEAST_1:
            self._at_least(name, 1)
        for name in AT_LEAST_0:
            self._at_least(name, 0)
        for name in ("dropout", "beta1", "beta2", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise wrong_use(f"{_flag(name)} must be in [0, 1), got {getattr(self, name)}")
        if not self.head_size and self.channels % self.heads:
            raise wrong_use(
                f"--channels {self.channels} cannot be divided among --heads {self.heads}"
            )
        B, T = self.batch_size, self.seq_len
        if self.total_batch_tokens % (B * T):
            raise wrong_use(
                f"--total-batch-tokens {self.total_batch_tokens} must be a multiple of "
                f"--batch-size {B} x --seq-len {T} = {B * T}"
            )

    def _one_of(self, name: str, allowed: tuple[str, ...], on: str = "") -> None:
        if getattr(self, name) not in allowed:
            raise wrong_use(
                f"{_flag(name)} is one of {', '.join(allowed)}{on}; got {getattr(self, name)!r}"
            )

    def _at_least(self, name: str, low: int) -> None:
        value = getattr(self, name)
        if not math.isfinite(value):
            raise wrong_use(f"{_flag(name)} must be a finite number, got {value}")
        if value < low:
            raise wrong_use(f"{_flag(name)} must be at least {low}, got {value}")

    @property
    def micro_batches(self) -> int:
        return max(1, self.total_batch_tokens // (self.batch_size * self.seq_len))

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batches * self.batch_size * self.seq_len

    def model_config(self, vocab_size: int) -> Any:
        """The model's Config, from the settings it knows.  Raises ValueError for a shape that
        cannot be."""
        shape = {name: getattr(self, name) for name in models.fields(self.model) & set(SHAPE)}
        sizes = {"vocab_size": max(self.vocab_size, vocab_size), "max_seq_len": self.seq_len}
        return models.get(self.model).Config(**shape, **sizes)

    def replace(self, **changes: Any) -> Settings:
        """With another device, dtype and matmul are chosen anew unless they are given."""
        if changes.get("device", self.device) != self.device:
            changes = {"dtype": "auto", "matmul": "auto", **changes}
        return dataclasses.replace(self, **changes)


# The settings that some model's Config says too, and their defaults
SHAPE = {
    f.name: f.default
    for f in dataclasses.fields(Settings)
    if f.name != "vocab_size" and any(f.name in models.fields(m) for m in models.NAMES)
}


def best_dtype(device: str) -> str:
    """What `--dtype auto` is: bf16 on a GPU, unless it is one without."""
    kind = kind_of(device)
    if kind == "cuda":
        from backglass.device.cuda import arch_of, dtypes_of

        sm = arch_of(device)
        return DTYPES[kind][0] if sm is None else dtypes_of(sm)[-1]
    return DTYPES[kind][0]


def learning_rate(s: Settings, step: int) -> float:
    """The rate of update `step` (0-based): linear warm-up, then the schedule over schedule_steps.

    wsd: constant, then 1 − √ to the final rate over the last fifth (arXiv 2405.18392).
    """
    if step < s.warmup_steps:
        return s.lr * (step + 1) / s.warmup_steps
    span = max(1, s.schedule_steps - s.warmup_steps)
    progress = min(1.0, (step - s.warmup_steps) / span)
    if s.schedule == "constant":
        fraction = 1.0
    elif s.schedule == "linear":
        fraction = 1 - (1 - s.final_lr) * progress
    elif s.schedule == "cosine":
        fraction = s.final_lr + (1 - s.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        tail = max(0.0, (progress - 0.8) / 0.2)
        fraction = 1 - (1 - s.final_lr) * math.sqrt(tail)
    return s.lr * fraction


def parse_rungs(text: str) -> dict[str, str]:
    """OP=V,OP=V.  Raises UserError (wrong use) for anything else."""
    pairs = [part.split("=") for part in text.split(",") if part]
    if bad := [p for p in pairs if len(p) != 2]:
        raise wrong_use(f"--rung {'='.join(bad[0])}: expected OP=V, such as matmul=v2")
    return dict(pairs)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
