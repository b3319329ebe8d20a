"""backglass generate"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, UseAppendAction, arg

from backglass.commands.options import Count, Text, opt
from backglass.errors import wrong_use


@dataclass
class Generate:
    """Continue a prompt with a trained model.

    For example:
      backglass generate runs/a --prompt "The list"        the newest checkpoint of a run
      backglass generate runs/a --temperature 0            the most likely tokens
      backglass generate runs/a --prompt A --prompt B      several prompts, computed together
      echo -n "def f(" | backglass generate runs/a --prompt -
      backglass generate my-hf-folder --prompts-file prompts.txt --json
    """

    path: Annotated[
        Positional[str],
        arg(help="a run, a checkpoint, a folder saved by transformers, or hf:NAME", metavar="PATH"),
    ]
    prompt: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(
            help="text to continue; may be repeated; -: standard input; none: a new text",
            metavar="TEXT",
            help_behavior_hint="(repeatable)",
        ),
    ] = ()
    prompts_file: Annotated[Text, opt("a text file with a prompt on each line", "FILE", "")] = None
    max_tokens: Annotated[int, arg(help="most tokens to generate for a prompt", metavar="N")] = 200
    temperature: Annotated[
        float, arg(help="below 1: safer; above: wilder; 0: always the most likely", metavar="X")
    ] = 0.8
    top_k: Annotated[int, arg(help="only the K most likely tokens; 0: all", metavar="K")] = 40
    top_p: Annotated[
        float, arg(help="only the most likely ones that make up probability P; 1: all", metavar="P")
    ] = 1.0
    seed: Annotated[int, arg(help="same seed, same machine, same text", metavar="N")] = 1337
    batch_size: Annotated[int, arg(help="most prompts computed together", metavar="B")] = 8
    device: Annotated[
        str,
        arg(help="cpu; cuda or cuda:1; numpy: the maths files themselves", metavar="NAME"),
    ] = "cpu"
    threads: Annotated[Count, opt("CPU threads", "N", "(default: all)")] = None
    json: Annotated[bool, arg(help="prompts, texts, tokens and speed as JSON")] = False

    def run(self) -> int:
        from backglass.infer.model import load
        from backglass.infer.sampling import Sampling

        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.seed)
        for name in ("max_tokens", "batch_size", "threads"):
            if (value := getattr(self, name)) is not None and value < 1:
                flag = name.replace("_", "-")
                raise wrong_use(f"--{flag} must be at least 1, got {value}")
        prompts = self.prompts()
        model = load(self.path, self.device, threads=self.threads)
        for prompt in prompts:
            model.encode(prompt)  # a bad prompt is told before the work begins
        model.device.progress = compiling
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        if self.json:
            print(json.dumps(self.measured(model, prompts, sampling)))
        elif len(prompts) == 1:
            self.stream(model, prompts[0])
        else:
            for k, made in enumerate(self.batches(model, prompts, sampling)):
                print(f"--- {k + 1} of {len(prompts)} ---\n{made.prompt}{made.text}", flush=True)
        return 0

    def prompts(self) -> list[str]:
        """All prompts that were asked for; one empty one if none was."""
        if self.prompt.count("-") > 1:
            raise wrong_use("--prompt -: standard input can be read once only")
        found = [standard_input() if p == "-" else p for p in self.prompt]
        if self.prompts_file is not None:
            lines = read_lines(Path(self.prompts_file))
            if lines == [""]:
                raise wrong_use(f"--prompts-file {self.prompts_file} is empty")
            found += lines
        return found or [""]

    def stream(self, model: Any, prompt: str) -> None:
        """The prompt and its continuation, as it comes."""
        print(prompt, end="", flush=True)
        last = prompt
        for last in model.stream(
            prompt, self.max_tokens, self.temperature, self.top_k, self.top_p, self.seed
        ):
            print(last, end="", flush=True)
        print("" if last.endswith("\n") else "\n", end="", flush=True)

    def batches(self, model: Any, prompts: list[str], sampling: Any):
        for first in range(0, len(prompts), self.batch_size):
            batch = prompts[first : first + self.batch_size]
            yield from model.continuations(batch, self.max_tokens, sampling, first)

    def measured(self, model: Any, prompts: list[str], sampling: Any) -> dict[str, Any]:
        """Continuations as rows, and the speed of it all, kernels compiled and programs bound."""
        model.generator(min(len(prompts), self.batch_size))
        start = time.perf_counter()
        made = list(self.batches(model, prompts, sampling))
        seconds = time.perf_counter() - start
        count = sum(len(m.tokens) for m in made)
        return {
            "path": model.source,
            "rows": [dataclasses.asdict(m) for m in made],
            "seconds": seconds,
            "tokens_per_s": count / seconds,
        }


def standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise wrong_use(f"--prompt -: standard input is not UTF-8 ({error})") from None


def read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise wrong_use(f"--prompts-file {path} is not UTF-8 ({error})") from None
    except OSError as error:
        raise wrong_use(f"--prompts-file {path} cannot be read: {error.strerror}") from None


def compiling(done: int, total: int) -> None:
    """Tell the user, on standard error, why the first run takes a moment."""
    if done in (0, total):
        text = f"compiling {total} kernels for this CPU, once: {done} done"
        print(text, file=sys.stderr, flush=True)
