"""The command line: backglass train | check | program.

Commands import what they need when they run, so that --help is immediate.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from backglass.errors import UserError, wrong_use


def opt(text: str, metavar: str = "N", hint: str = "(default: the preset's)") -> Any:
    return arg(help=text, metavar=metavar, help_behavior_hint=hint)


Count = int | None
Number = float | None
Text = str | None


@dataclass
class Train:
    """Train a model; tiny learns real text on any CPU in a few minutes.

    Examples:
      backglass train                                     tiny, on Python's documentation
      backglass train tiny --data book.txt --steps 2000   your own text
      backglass train tiny --tokenizer bpe:1024           a vocabulary learned from the text
      backglass train tiny --out runs/a --resume          continue an interrupted run
      backglass train tiny --debug --steps 1              stop on the first line of models/gpt2.py
    """

    preset: Annotated[
        Positional[str],
        arg(help="tiny, gpt2-124m, gpt2-355m, gpt2-774m or gpt2-1558m", metavar="PRESET"),
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
    vocab_size: Annotated[Count, opt("tokens the model knows; at least the tokenizer's", "V")] = (
        None
    )
    attention: Annotated[Text, opt("flash, or explicit: scores, causal_softmax, mix", "NAME")] = (
        None
    )
    matmul: Annotated[Text, opt("own kernels, or blas", "NAME")] = None
    rung: Annotated[
        Text, opt("train with a slower rung of a ladder: matmul=v2_blocked", "OP=V")
    ] = None
    device: Annotated[Text, opt("cpu, or numpy: the maths files themselves", "NAME")] = None
    dtype: Annotated[Text, opt("fp32; fp64 with --device numpy", "NAME")] = None
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

        s, out = self.settings(), self.out_folder()
        if self.debug:
            import pdb

            from backglass.models import gpt2

            print(f"Stopping in {gpt2.__file__}. n: one op; p a.ln1: a tensor; c: to the end.")
            debugger = pdb.Pdb()
            debugger.rcLines = []
            debugger.set_break(
                gpt2.__file__, gpt2.block_forward.__code__.co_firstlineno + 1, temporary=True
            )
            debugger.set_break(
                gpt2.__file__, gpt2.block_backward.__code__.co_firstlineno + 1, temporary=True
            )
            debugger.runcall(loop.train, s, out, self.resume, False, True)
            return 0
        try:
            loop.train(s, out, self.resume)
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
        given = {
            k: v for k, v in vars(self).items() if v is not None and k in names and k != "preset"
        }
        changes = read_config(Path(self.config), names) | given if self.config else given
        try:
            return s.replace(**changes)
        except TypeError as error:
            raise wrong_use(f"--config {self.config}: {error}") from None


def read_config(path: Path, names: set[str]) -> dict[str, Any]:
    """Settings from a TOML or JSON file; dashes in keys may be underscores."""
    import tomllib

    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise wrong_use(f"--config {path}: there is no such file") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise wrong_use(f"--config {path} cannot be read: {error}") from None
    found = {k.replace("-", "_"): v for k, v in found.items()}
    if unknown := sorted(set(found) - names):
        raise wrong_use(
            f"--config {path}: unknown setting {unknown[0]!r}; there are {', '.join(sorted(names))}"
        )
    return found


@dataclass
class Check:
    """Prove gradients: backward against finite differences, kernels against the maths, and that the
    proof can fail.

    Examples:
      backglass check                       every op and model, then the planted bugs
      backglass check layernorm matmul      two ops
      backglass check gpt2                  mirror, directional derivatives, eager = recorded
    """

    names: Annotated[
        Positional[tuple[str, ...]], arg(help="ops or models; none: all", metavar="[OP|MODEL ...]")
    ] = ()
    device: Annotated[
        Literal["cpu", "numpy"], arg(help="whose kernels are held against the maths")
    ] = "cpu"
    planted: Annotated[
        bool, arg(help="plant bugs too: the checks must catch every one (default without names)")
    ] = False
    verbose: Annotated[bool, arg(help="a line for every case")] = False
    json: Annotated[bool, arg(help="rows as JSON")] = False

    def run(self) -> int:
        from backglass import checks

        start, results = time.perf_counter(), []
        try:
            for r in checks.check(self.names, self.device):
                results.append(r)
                if not self.json and (self.verbose or not r.ok):
                    print(f"{'ok ' if r.ok else 'BAD'}  {r.check:11s} {r.op:14s} {r.what:24s} "
                          f"error {r.error:.1e} of {r.bound:.1e}   {r.case} {r.note}")  # fmt: skip
        except ValueError as error:
            raise wrong_use(str(error)) from None
        bugs = checks.planted(self.names) if self.planted or not self.names else []
        bad = [r for r in results if not r.ok]
        missed = [
            b for b in bugs if b.outcome == "missed" or (b.outcome == "equivalent" and not b.reason)
        ]
        if self.json:
            planted = [dataclasses.asdict(b) | {"reason": b.reason} for b in bugs]
            print(json.dumps({"rows": [r.row() for r in results], "planted": planted}))
        else:
            print_checks(results, bugs, missed, time.perf_counter() - start)
        return 1 if bad or missed else 0


def worst(group: list) -> str:
    """How near to its bound a check came, where there is a bound to speak of."""
    shares = [r.error / r.bound for r in group if r.bound]
    return f"(worst {max(shares):.0%} of its bound)" if shares else ""


def print_checks(results: list, bugs: list, missed: list, seconds: float) -> None:
    """A line per op, the score of the planted bugs, the verdict."""
    for op in dict.fromkeys(r.op for r in results):
        rows = [r for r in results if r.op == op]
        kinds = {k: [r for r in rows if r.check == k] for k in dict.fromkeys(r.check for r in rows)}
        parts = [
            f"{kind} {sum(r.ok for r in group)}/{len(group)} {worst(group)}"
            for kind, group in kinds.items()
        ]
        print(f"{'ok ' if all(r.ok for r in rows) else 'BAD'}  {op:15s} {'   '.join(parts)}")
    if bugs:
        caught = sum(b.outcome == "caught" for b in bugs)
        equivalent = [b for b in bugs if b.outcome == "equivalent"]
        kinds = len({b.kind for b in bugs})
        print(f"planted bugs: {caught} of {len(bugs) - len(equivalent)} caught, of {kinds} kinds; "
              f"{len(equivalent)} more change nothing:")  # fmt: skip
        for reason in dict.fromkeys(b.reason for b in equivalent):
            group = [b for b in equivalent if b.reason == reason]
            print(
                f"     {group[0].op}: {group[0].place or group[0].kind}"
                + f" (and {len(group) - 1} more)" * (len(group) > 1)
            )
            print(f"         {reason or 'NO REASON IS WRITTEN DOWN'}")
        for b in missed:
            print(f"BAD  {b.outcome}: {b.kind} in {b.op}: {b.place}")
    good = sum(r.ok for r in results)
    print(f"{good} of {len(results)} checks passed in {seconds:.0f} s")


@dataclass
class Program:
    """Print the training step of a preset as the list of op calls it is, repeated layers folded.

    Examples:
      backglass program tiny
      backglass program gpt2-124m --batch-size 4 --seq-len 64 --no-fold
    """

    preset: Annotated[Positional[str], arg(metavar="PRESET")] = "tiny"
    batch_size: Annotated[Count, opt("sequences per micro-batch", "B")] = None
    seq_len: Annotated[Count, opt("tokens per sequence", "T")] = None
    attention: Annotated[Text, opt("flash or explicit", "NAME")] = None
    fold: Annotated[bool, arg(help="print repeated layers once")] = True
    json: Annotated[bool, arg(help="calls as JSON")] = False

    def run(self) -> int:
        from backglass import presets
        from backglass.models import gpt2
        from backglass.program.step import record_micro, record_update

        names = ("batch_size", "seq_len", "attention")
        given = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        s = presets.get(self.preset).replace(**given)
        c = s.model_config(s.vocab_size or 256)
        programs = {
            "micro": record_micro(gpt2, c, s.batch_size, s.seq_len).validate(),
            "update": record_update(gpt2, c).validate(),
        }
        if self.json:
            rows = [
                {
                    "program": name,
                    "line": i,
                    "phase": call.phase,
                    "op": call.op,
                    "where": call.where,
                    "text": str(call),
                }
                for name, program in programs.items()
                for i, call in enumerate(program)
            ]
            print(json.dumps(rows))
            return 0
        for name, program in programs.items():
            times = (
                f", {s.micro_batches} times a step"
                if name == "micro" and s.micro_batches > 1
                else ""
            )
            print(f"{name}: {len(program)} lines{times}")
            print(program.table(self.fold))
        return 0


COMMANDS = {"train": Train, "check": Check, "program": Program}


def main(argv: list[str] | None = None) -> int:
    """Entry point.  0 success, 1 a problem was found, 2 wrong use."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--version"]:
        from backglass import __version__

        print(f"backglass {__version__}")
        return 0
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=argv,
        prog="backglass",
        description="llm.c in Python: GPT-2 with every forward and backward pass written by hand.",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.ConsolidateSubcommandArgs),
    )
    try:
        return command.run()
    except UserError as error:
        print(f"backglass: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("\nbackglass: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
