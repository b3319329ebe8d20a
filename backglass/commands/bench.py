"""backglass bench"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from backglass.commands.options import Count, Text, opt
from backglass.errors import wrong_use

# what -> the options it has, besides --out and --json
OPTIONS = {
    "ops": {"names", "batch_size", "seq_len", "threads", "rung", "aot", "device", "dtype"},
    "train": {
        "names", "batch_size", "seq_len", "steps", "threads", "rivals", "llmc", "from_start",
        "device", "dtype", "recompute",
    },
    "generate": {"names", "batch_size", "prompt_tokens", "max_tokens", "threads", "rivals"},
    "table": {"steps", "threads", "rivals", "llmc"},
}  # fmt: skip


@dataclass
class Bench:
    """Measure on this machine: ops, training steps, generation, or the table of an article.

    Ours and, with --rivals, PyTorch beside it, each in a process of its own; llm.c too if you say
    where it is (its shape is fixed: batches of 4 x 64 tokens).

    For example:
      backglass bench table                              about two minutes, ours only
      backglass bench table --rivals --llmc llm.c        with PyTorch and llm.c
      backglass bench train --rivals                     GPT-2 124M: steps of 4 x 64 tokens
      backglass bench train --batch-size 1 --seq-len 1024 --rivals
      backglass bench train tiny --from-start --rivals   from process start to step 200
      backglass bench generate --rivals                  GPT-2 124M: one sequence, and eight
      backglass bench generate runs/a --batch-size 4     a model of yours
      backglass bench ops matmul attention               shares of this machine's ceilings
      backglass bench ops matmul --rung matmul=v2        a rung of the ladder
      backglass bench ops --aot                          GPU kernels compiled without a GPU
      backglass bench train --device cuda --batch-size 64 --rivals
      backglass bench ops --device cuda                  beside cuBLASLt
    """

    what: Annotated[Positional[str], arg(help="ops, train, generate or table", metavar="WHAT")]
    names: Annotated[
        Positional[tuple[str, ...]],
        arg(
            help="ops: which; train: a preset; generate: a preset (random weights) or a model",
            metavar="[NAME ...]",
        ),
    ] = ()
    batch_size: Annotated[
        Count,
        opt("sequences", "B", "(default: 4; generate: 1, then 8; --from-start: the preset's)"),
    ] = None
    seq_len: Annotated[
        Count, opt("tokens per sequence", "T", "(default: 64; --from-start: the preset's)")
    ] = None
    steps: Annotated[
        Count,
        opt("steps of each, the first two are warm-up", "N", "(default: 9; --from-start: 200)"),
    ] = None
    from_start: Annotated[
        bool, arg(help="train: whole processes until step N, also with no kernel compiled yet")
    ] = False
    prompt_tokens: Annotated[Count, opt("generate: prompts' length", "P", "(default: 64)")] = None
    max_tokens: Annotated[Count, opt("generate: new tokens", "N", "(default: 64)")] = None
    threads: Annotated[Count, opt("CPU threads of everyone", "N", "(default: all)")] = None
    rung: Annotated[Text, opt("ops: time this rung", "OP=V", "")] = None
    device: Annotated[Text, opt("train, ops: cpu or cuda", "NAME", "(default: cpu)")] = None
    dtype: Annotated[
        Text, opt("train, ops: bf16, tf32 or fp32 on cuda", "NAME", "(default: its best)")
    ] = None
    recompute: Annotated[Text, opt("train: activations to make again", "A,B", "")] = None
    aot: Annotated[
        bool, arg(help="ops: compile the GPU kernels for A100 and H100: registers, spills, memory")
    ] = False
    rivals: Annotated[
        bool, arg(help="also PyTorch, or for generate transformers, where it is installed")
    ] = False
    llmc: Annotated[
        Text, opt("also llm.c: a checkout in which make train_gpt2 has run", "FOLDER", "")
    ] = None
    out: Annotated[Text, opt("also write the results there as JSON", "FILE", "")] = None
    json: Annotated[bool, arg(help="rows as JSON")] = False

    def run(self) -> int:
        self.check()
        rows = {
            "ops": self.ops, "train": self.train, "generate": self.generate, "table": self.table,
        }[self.what]()  # fmt: skip
        if self.json:
            print(json.dumps(rows))
        if self.out:
            from backglass.training.files import write_json

            write_json(Path(self.out), {**self.provenance(), "rows": rows})
        return 0

    def check(self) -> None:
        """Raises UserError (wrong use) before anything is measured."""
        if self.what not in OPTIONS:
            raise wrong_use(f"bench {self.what}: there are {', '.join(OPTIONS)}")
        for field in dataclasses.fields(self):
            value, flag = getattr(self, field.name), "--" + field.name.replace("_", "-")
            if type(value) is int and value < 1:
                raise wrong_use(f"{flag} must be at least 1, got {value}")
            known = OPTIONS[self.what] | {"what", "out", "json"}
            if field.name not in known and value not in (None, False, ()):
                flag = "no names" if field.name == "names" else f"no {flag}"
                raise wrong_use(f"bench {self.what} takes {flag}; see backglass bench --help")
        if self.what in ("train", "generate") and len(self.names) > 1:
            raise wrong_use(f"bench {self.what} takes one name, got {' '.join(self.names)}")
        if self.out:
            out = Path(self.out)
            if out.is_dir() or not out.resolve().parent.is_dir():
                found = "that is a folder" if out.is_dir() else f"there is no folder {out.parent}"
                raise wrong_use(f"--out {out}: {found}; expected a file to write")
        if self.llmc:
            self.check_llmc(self.llmc)

    def check_llmc(self, folder: str) -> None:
        """Is it there, and asked for its one shape?"""
        from backglass.bench import llmc

        llmc.program(folder)
        B, T = self.batch_size or llmc.B, self.seq_len or llmc.T
        if (B, T) != (llmc.B, llmc.T) or self.from_start:
            asked = "--from-start" if self.from_start else f"--batch-size {B} --seq-len {T}"
            raise wrong_use(
                f"--llmc with {asked}: train_gpt2 of llm.c has batches of {llmc.B} x {llmc.T} "
                "built in, and times single steps; leave one of them out"
            )

    def say(self, text: Any) -> None:
        if not self.json:
            print(text, flush=True)

    def ops(self) -> list[dict[str, Any]]:
        if self.aot:
            return self.compiled()
        if self.device == "cuda":
            return self.gpu_ops()
        from backglass.bench.measured import environment

        os.environ.update(environment(self.threads or 0))  # before NumPy's BLAS reads it
        from backglass.bench.ops import bench_ops, names_in

        shape = (self.batch_size or 4, self.seq_len or 64)
        known = names_in(*shape)
        if unknown := [n for n in self.names if n not in {*known, *known.values()}]:
            raise wrong_use(
                f"bench ops {unknown[0]}: no line of GPT-2's training step is that; there are "
                f"{', '.join(dict.fromkeys(known.values()))}"
            )
        from backglass.training.settings import parse_rungs

        rungs = parse_rungs(self.rung or "")
        rows: list[dict[str, Any]] = []
        for r in bench_ops(list(self.names), *shape, self.threads, rungs):
            if not rows:
                self.say(f"{'call':16} {'shape':40} {'ms':>9} {'GFLOP/s':>8} {'GB/s':>7}  share of "
                         "its ceiling")  # fmt: skip
            rows.append(dataclasses.asdict(r))
            beside = f"   {r.ratio:.2f}x {r.rival}" if r.ratio else ""
            self.say(f"{r.op:16} {r.shape:40} {r.ms:9.3f} {r.gflops:8.1f} {r.gbps:7.1f}  "
                     f"{r.share:.0%} of {r.ceiling}{beside}")  # fmt: skip
        return rows

    def gpu_ops(self) -> list[dict[str, Any]]:
        from backglass.bench.gpu import gpu_ops
        from backglass.training.settings import MATMULS, parse_rungs

        rungs = {"matmul": MATMULS["cuda"][0], **parse_rungs(self.rung or "")}
        rungs = {op: rung for op, rung in rungs.items() if rung != "own"}
        shape = (self.batch_size or 64, self.seq_len or 1024)
        self.say(f"{'call':16} {'shape':40} {'ms':>9} {'TFLOP/s':>8} {'TB/s':>6}  share of its "
                 "ceiling")  # fmt: skip
        rows = []
        for r in gpu_ops(list(self.names), *shape, self.dtype or "bf16", rungs):
            rows.append(dataclasses.asdict(r))
            beside = f"   {r.ratio:.2f}x {r.rival}" if r.ratio else ""
            self.say(f"{r.op:16} {r.shape:40} {r.ms:9.3f} {r.gflops / 1e3:8.1f} "
                     f"{r.gbps / 1e3:6.2f}  {r.share:.0%} of {r.ceiling}{beside}")  # fmt: skip
        return rows

    def compiled(self) -> list[dict[str, Any]]:
        from backglass.bench.aot import rows

        self.say(f"{'call':18} {'kernel':28} sm  registers  spills  shared  warps  tensor cores")
        found = []
        for r in rows(list(self.names), self.batch_size or 64, self.seq_len or 1024):
            found.append(dataclasses.asdict(r))
            self.say(f"{r.op:18} {r.kernel:28} {r.arch} {r.registers:9} {r.spill_bytes:7} "
                     f"{r.shared_bytes:8} {r.warps:5}  {r.tensor_cores}")  # fmt: skip
        return found

    def train(self) -> list[dict[str, Any]]:
        from backglass import presets
        from backglass.bench import measured, start, train

        name = (self.names or ("tiny" if self.from_start else "gpt2-124m",))[0]
        s = presets.get(name)
        if self.from_start:
            shape = {"batch_size": self.batch_size, "seq_len": self.seq_len}
            s = s.replace(steps=self.steps or 200, **{k: v for k, v in shape.items() if v})
            self.say(
                f"{name}, B={s.batch_size}, T={s.seq_len}: from process start to step {s.steps}, "
                f"median of {start.RUNS} processes"
            )
            ours, rivals = start.compare(s, self.threads or 0, self.rivals, self.say)
        else:
            cuda = self.device == "cuda"
            B, T = self.batch_size or 4, self.seq_len or (1024 if cuda else 64)
            steps = self.steps or (23 if cuda else 9)
            self.say(
                f"{name}, B={B}, T={T}: forward, backward, clipping, AdamW; {steps} steps each"
            )
            s = s.replace(device=self.device or "cpu", dtype=self.dtype or "auto")
            job = train.training_job(s, B, T, steps, self.threads or 0)
            job |= {"recompute": self.recompute or ""}
            ours, rivals = train.compare(job, name, self.rivals, self.llmc, self.say)
        for sentence in measured.verdicts(ours, rivals):
            self.say(sentence)
        return measured.rows(ours, rivals)

    def generate(self) -> list[dict[str, Any]]:
        from backglass.bench import generate, measured

        name = (self.names or ("gpt2-124m",))[0]
        P, N = self.prompt_tokens or 64, self.max_tokens or 64
        job = generate.job_for(name, P, N, self.threads or 0)
        weights = "" if job["path"] else ", random weights"
        self.say(f"{name}{weights}: prompts of {P} tokens, then {N} new ones, greedy, with a cache")
        batches = (self.batch_size,) if self.batch_size else (1, 8)
        found = generate.compare(job, name, batches, self.rivals, self.say)
        for ours, rivals in found:
            for sentence in measured.verdicts(ours, rivals):
                self.say(f"{ours[0].case}: {sentence}")
        return [row for pair in found for row in measured.rows(*pair)]

    def table(self) -> list[dict[str, Any]]:
        from backglass.bench import table

        found = table.columns(self.threads or 0, self.steps or 9, self.rivals, self.llmc, self.say)
        if not self.json:
            table.print_table(*found, self.llmc)
        return table.rows(*found, self.llmc)

    def provenance(self) -> dict[str, Any]:
        """What a result needs to be reproduced: machine, versions, commit, command, date."""
        from importlib.metadata import PackageNotFoundError, version

        import backglass

        versions = {"backglass": backglass.__version__, "python": platform.python_version()}
        names = ("numpy", "numba", "torch", "transformers")
        if self.device == "cuda":
            names += ("triton", "cupy-cuda13x", "cupy-cuda12x")
        for name in names:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:  # a rival that is not installed
                pass
        if self.llmc:
            versions["llm.c"] = commit(Path(self.llmc))
        gpu = {"gpu": gpu_name()} if self.device == "cuda" else {}
        return {
            "machine": gpu | {
                "cpu": cpu_name(), "cores": os.cpu_count(),
                "platform": f"{platform.system()} {platform.machine()}",
            },
            "versions": versions,
            "commit": commit(Path(__file__).parent),
            "command": shlex.join(["backglass", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
        }  # fmt: skip


def commit(folder: Path) -> str:
    """The short name of a checkout's commit, or unknown."""
    git = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return git.stdout.strip() or "unknown"


def gpu_name() -> str:
    """Name and driver of the first GPU, as nvidia-smi tells them, or unknown."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.splitlines()[0].replace(", ", ", driver ")


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
