"""backglass train"""

from __future__ import annotations

import bdb
import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional, arg

from backglass.commands.options import Count, Number, Text, opt
from backglass.errors import wrong_use


@dataclass
class Train:
    """Train a model; tiny learns real text on any CPU in a few minutes.

    For example:
      backglass train                                     tiny, on Python's documentation
      backglass train tiny --data book.txt --steps 2000   your own text
      backglass train tiny --tokenizer bpe:1024           a vocabulary learned from the text
      backglass train tiny --out runs/a --resume          continue an interrupted run
      backglass train tiny --debug --steps 1              stop on the first line of models/gpt2.py
    """

    preset: Annotated[
        Positional[str],
        arg(help="tiny, llama-tiny, gpt2-124m … (backglass list presets)", metavar="PRESET"),
    ] = "tiny"
    data: Annotated[
        Text,
        opt(
            "python-docs, shakespeare, a text file, folder, glob, token shards (.bin), hf:NAME, "
            "or - for standard input",
            "SOURCE",
        ),
    ] = None
    format: Annotated[Text, opt("auto, or nanogpt for its headerless .bin shards", "NAME")] = None
    tokenizer: Annotated[
        Text, opt("bytes, bpe:N (trained on the data), gpt2, or a tokenizer.json", "NAME")
    ] = None
    steps: Annotated[Count, opt("where this run stops")] = None
    schedule_steps: Annotated[
        Count, opt("horizon of the learning rate schedule, whatever --steps is")
    ] = None
    batch_size: Annotated[Count, opt("sequences per micro-batch", "B")] = None
    seq_len: Annotated[Count, opt("tokens per sequence", "T")] = None
    total_batch_tokens: Annotated[Count, opt("tokens per step; micro-batches are accumulated")] = (
        None
    )
    lr: Annotated[Number, opt("peak learning rate", "X")] = None
    warmup_steps: Annotated[Count, opt("steps of linear warm-up")] = None
    schedule: Annotated[Text, opt("cosine, linear, constant or wsd", "NAME")] = None
    final_lr: Annotated[Number, opt("learning rate at the end, as a fraction of the peak", "X")] = (
        None
    )
    weight_decay: Annotated[Number, opt("AdamW's decay of weight matrices", "X")] = None
    beta1: Annotated[Number, opt("AdamW's memory of the gradient", "X")] = None
    beta2: Annotated[Number, opt("AdamW's memory of its square", "X")] = None
    clip: Annotated[Number, opt("largest gradient norm; 0: no clipping", "X")] = None
    dropout: Annotated[Number, opt("share of activations dropped", "X")] = None
    layers: Annotated[Count, opt("transformer blocks", "L")] = None
    channels: Annotated[Count, opt("width of the residual stream", "C")] = None
    heads: Annotated[Count, opt("attention heads", "NH")] = None
    kv_heads: Annotated[Count, opt("llama: heads of keys and values; 0: as many", "KV")] = None
    head_size: Annotated[Count, opt("llama: channels of a head; 0: channels / heads", "HS")] = None
    hidden: Annotated[Count, opt("llama: width of the feed-forward; 0: 8/3 of C", "F")] = None
    tied: Annotated[
        bool | None,
        arg(
            help="llama: the output layer is the embedding",
            help_behavior_hint="(default: the preset's)",
        ),
    ] = None
    qk_norm: Annotated[
        bool | None,
        arg(
            help="llama: queries and keys normalised as in Qwen3",
            help_behavior_hint="(default: the preset's)",
        ),
    ] = None
    rope_theta: Annotated[Number, opt("llama: base of the rotations' frequencies", "X")] = None
    rope_scaling: Annotated[
        Text, opt("llama: of LLaMA 3, 'factor low high positions': '32 1 4 8192'", "TEXT")
    ] = None
    norm_eps: Annotated[Number, opt("llama: what rmsnorm adds to the mean square", "X")] = None
    window: Annotated[Count, opt("llama: how far attention looks back; 0: all", "N")] = None
    qkv_bias: Annotated[
        bool | None,
        arg(help="llama: biases as in Qwen2", help_behavior_hint="(default: the preset's)"),
    ] = None
    vocab_size: Annotated[Count, opt("tokens the model knows; at least the tokenizer's", "V")] = (
        None
    )
    attention: Annotated[Text, opt("flash, or explicit: scores, causal_softmax, mix", "NAME")] = (
        None
    )
    matmul: Annotated[
        Text, opt("own kernels; blas on the cpu; on cuda fastest (the default) or cublaslt", "NAME")
    ] = None
    recompute: Annotated[
        Text, opt("activations to make again in the backward: fch_gelu,ln1", "A,B")
    ] = None
    fuse: Annotated[
        bool | None,
        arg(
            help="fused kernels where the device has them",
            help_behavior_hint="(default: the preset's)",
        ),
    ] = None
    rung: Annotated[Text, opt("train with a slower rung of a ladder: matmul=v2", "OP=V")] = None
    device: Annotated[
        Text,
        opt(
            "cpu; cuda or cuda:1, an NVIDIA GPU; numpy: the maths files themselves; interpret: the "
            "GPU kernels without a GPU",
            "NAME",
        ),
    ] = None
    dtype: Annotated[
        Text,
        opt("fp32; on cuda bf16 (with fp32 master weights), tf32 or fp32; on numpy fp64", "NAME"),
    ] = None
    graph: Annotated[
        bool | None,
        arg(
            help="replay each program as one CUDA graph",
            help_behavior_hint="(default: yes, on cuda)",
        ),
    ] = None
    threads: Annotated[Count, opt("CPU threads; 0: all")] = None
    seed: Annotated[Count, opt("same seed, same machine, same bits")] = None
    init: Annotated[Text, opt("start from a checkpoint or Hugging Face folder", "PATH")] = None
    val_every: Annotated[Count, opt("validate every N steps; 0: only first and last")] = None
    val_batches: Annotated[Count, opt("batches per validation")] = None
    sample_every: Annotated[Count, opt("print a sample every N steps; 0: only at the end")] = None
    save_every: Annotated[Count, opt("checkpoint every N steps; 0: at the best and at the end")] = (
        None
    )
    keep: Annotated[Count, opt("newest checkpoints to keep; the best is never deleted")] = None
    trace_every: Annotated[
        Count, opt("record every N-th step op by op in DIR/trace (see backglass trace)")
    ] = None
    trace_level: Annotated[
        Count, opt("of what is recorded: 0, 1 or 3 (see backglass trace)", "0|1|3")
    ] = None
    trace_on_alert: Annotated[
        FlagCreatePairsOff[bool], arg(help="record the step whose loss leaps or is not finite")
    ] = False
    tensorboard: Annotated[
        FlagCreatePairsOff[bool],
        arg(help="event files for TensorBoard in the run directory; needs tensorboardX"),
    ] = False
    wandb: Annotated[
        Text,
        opt(
            "log to a project of Weights & Biases; needs wandb; WANDB_MODE=offline is respected",
            "PROJECT",
            "(default: no)",
        ),
    ] = None
    out: Annotated[Text, opt("run directory", "DIR", "(default: runs/PRESET-DATE-TIME)")] = None
    resume: Annotated[
        bool, arg(help="continue the run in --out; its settings apply, flags given here win")
    ] = False
    config: Annotated[
        Text, opt("settings from a TOML or JSON file; flags given here win", "FILE", "")
    ] = None
    debug: Annotated[
        bool, arg(help="execute line by line and stop in the debugger at the first")
    ] = False

    def run(self) -> int:
        from backglass.training import loop

        s = self.settings()
        if self.debug:
            debug(s)
            return 0
        try:
            loop.train(s, self.out_folder(), self.resume)
        except loop.Stopped as stopped:
            return 128 + stopped.number
        return 0

    def out_folder(self) -> Path:
        if self.out:
            return Path(self.out)
        if self.resume:
            raise wrong_use("--resume needs --out DIR: which run should continue?")
        return Path("runs") / f"{self.preset}-{time.strftime('%Y%m%d-%H%M%S')}"

    def settings(self):
        """The preset, then --config, then the flags; with --resume the run's own settings come
        first."""
        from backglass import presets
        from backglass.training import checkpoint

        if self.resume and self.out and not Path(self.out).is_dir():
            raise wrong_use(f"--resume: there is no run directory {self.out}")
        s = (
            checkpoint.settings_of(checkpoint.find(Path(self.out)))
            if self.resume and self.out
            else presets.get(self.preset)
        )
        names = {f.name for f in dataclasses.fields(s)}
        given = {k: v for k, v in vars(self).items() if v is not None and k in names - {"preset"}}
        for flag in ("tensorboard", "trace_on_alert"):  # not given: a resumed run goes on as it was
            if not given[flag]:
                del given[flag]
        changes = read_config(Path(self.config), names) | given if self.config else given
        return s.replace(**changes)


def debug(s: Any) -> None:
    """Train line by line under pdb, stopping once in the first block's forward and backward.

    Nothing is saved.
    """
    import pdb

    from backglass import models
    from backglass.training import loop

    model = models.get(s.model)
    print(
        f"Each line of models/{s.model}.py executes one op.  n: the next op   p a.ln1: a tensor   "
        "c: on to the backward, then to the end   q: quit"
    )
    debugger = pdb.Pdb(nosigint=True)
    debugger.rcLines = ["continue"]  # past the start of the run, to the first breakpoint
    for function in (model.block_forward, model.block_backward):
        line = function.__code__.co_firstlineno + 1
        executing = "type(ops).__name__ == 'Eager'"  # the same lines also run to be recorded
        debugger.set_break(str(model.__file__), line, temporary=True, cond=executing)
    try:
        debugger.runcall(loop.train, s, None, False, False, True)
    except bdb.BdbQuit:
        pass


def read_config(path: Path, names: set[str]) -> dict[str, Any]:
    """Settings from a TOML or JSON file; dashes in keys may be underscores."""
    import tomllib

    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise wrong_use(f"--config {path}: there is no such file") from None
    except (ValueError, OSError, RecursionError) as error:
        raise wrong_use(f"--config {path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise wrong_use(f"--config {path} is a {type(found).__name__}; expected settings by name")
    found = {k.replace("-", "_"): v for k, v in found.items()}
    if unknown := sorted(set(found) - names):
        raise wrong_use(
            f"--config {path}: unknown setting {unknown[0]!r}; there are {', '.join(sorted(names))}"
        )
    return found
