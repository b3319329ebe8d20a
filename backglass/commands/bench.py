"""backglass bench"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from backglass.commands.options import Count, Text, opt
from backglass.errors import wrong_use

if TYPE_CHECKING:
    from backglass.bench.ops import Row
    from backglass.training.settings import Settings

# what -> the options it has, besides --out and --json
OPTIONS = {
    "ops": {
        "names", "batch_size", "seq_len", "threads", "rung", "aot", "tune", "device", "dtype",
        "rivals",
    },
    "train": {
        "names", "batch_size", "seq_len", "steps", "threads", "rivals", "max_autotune", "llmc",
        "from_start", "device", "dtype", "recompute",
    },
    "generate": {"names", "batch_size", "prompt_tokens", "max_tokens", "threads", "rivals"},
    "table": {
        "batch_size", "seq_len", "steps", "threads", "rivals", "max_autotune", "llmc", "device",
        "dtype",
    },
}  # fmt: skip
SHAPES = {"cpu": (4, 64), "cuda": (64, 1024)}  # device -> batch size, tokens per sequence
STEPS = {"cpu": 9, "cuda": 23}


@dataclass
class Bench:
    """Measure on this machine: ops, training steps, generation, or the table of an article.

    Ours and, with --rivals, PyTorch beside it, each in a process of its own; llm.c too if you say
    where it is (its shape is fixed: batches of 4 x 64 tokens).  train also prints where the step of
    our default goes, op by op.

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
      backglass bench ops --tune attention d_embed       other tiles of GPU kernels, each timed
      backglass bench train --device cuda --rivals       64 x 1024 tokens, bf16
      backglass bench train --device cuda --rivals --max-autotune
      backglass bench train --device cuda --rivals --dtype tf32 --batch-size 32
      backglass bench ops --device cuda --rivals         beside cuBLASLt and PyTorch's attention
      backglass bench table --device cuda --rivals
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
        opt(
            "sequences",
            "B",
            "(default: 4, cuda 64; generate: 1, then 8; --from-start: the preset's)",
        ),
    ] = None
    seq_len: Annotated[
        Count,
        opt("tokens per sequence", "T", "(default: 64, cuda 1024; --from-start: the preset's)"),
    ] = None
    steps: Annotated[
        Count,
        opt(
            "steps of each, the first two are warm-up",
            "N",
            "(default: 9, cuda 23; --from-start: 200)",
        ),
    ] = None
    from_start: Annotated[
        bool, arg(help="train: whole processes until step N, also with no kernel compiled yet")
    ] = False
    prompt_tokens: Annotated[Count, opt("generate: prompts' length", "P", "(default: 64)")] = None
    max_tokens: Annotated[Count, opt("generate: new tokens", "N", "(default: 64)")] = None
    threads: Annotated[Count, opt("CPU threads of everyone", "N", "(default: all)")] = None
    rung: Annotated[Text, opt("ops: time this rung", "OP=V", "")] = None
    device: Annotated[Text, opt("cpu, cuda or cuda:1; not generate", "NAME", "(default: cpu)")] = (
        None
    )
    dtype: Annotated[
        Text,
        opt("bf16, tf32 or fp32 on cuda", "NAME", "(default: bf16; ops: all that the GPU has)"),
    ] = None
    recompute: Annotated[Text, opt("train: activations to make again", "A,B", "")] = None
    aot: Annotated[
        bool, arg(help="ops: compile the GPU kernels for A100 and H100: registers, spills, memory")
    ] = False
    tune: Annotated[
        bool, arg(help="ops: time other tiles of the GPU kernels; with --aot only compile them")
    ] = False
    rivals: Annotated[
        bool,
        arg(
            help="also PyTorch, eager and compiled, at small batches on cuda in mode "
            "reduce-overhead too; for ops its attention (cuda); for generate transformers"
        ),
    ] = False
    max_autotune: Annotated[
        bool, arg(help="train, table: with --rivals, torch.compile in mode max-autotune too; slow")
    ] = False
    llmc: Annotated[
        Text, opt("also llm.c: a checkout in which make train_gpt2 has run", "FOLDER", "")
    ] = None
    out: Annotated[Text, opt("also write the results there as JSON", "FILE", "")] = None
    json: Annotated[bool, arg(help="rows as JSON")] = False

    def run(self) -> int:
        if self.tune and not self.aot:
            self.device = self.device or "cuda"
        self.check()
        rows = {
            "ops": self.ops, "train": self.train, "generate": self.generate, "table": self.table,
        }[self.what]()  # fmt: skip
        if self.json:
            print(json.dumps(rows))
        if self.out:
            from backglass.bench.provenance import provenance
            from backglass.training.files import write_json

            made = provenance(self.device or "cpu", self.llmc)
            write_json(Path(self.out), {**made, "rows": rows})
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
        self.check_device()
        if self.out:
            out = Path(self.out)
            if out.is_dir() or not out.resolve().parent.is_dir():
                found = "that is a folder" if out.is_dir() else f"there is no folder {out.parent}"
                raise wrong_use(f"--out {out}: {found}; expected a file to write")
        if self.llmc:
            self.check_llmc(self.llmc)

    def check_device(self) -> None:
        """Is it one that bench knows, with that dtype, and that its rivals run on?"""
        from backglass.training.settings import Settings

        device = self.kind
        if device not in SHAPES:
            raise wrong_use(
                f"bench {self.what} --device {self.device}: there are {' and '.join(SHAPES)}, "
                "cuda:1 for the second GPU"
            )
        if self.tune and ((self.device and device == "cpu") or self.rivals or self.dtype):
            raise wrong_use(
                "bench ops --tune times our own kernels on a GPU, in bf16; leave --rivals and "
                "--dtype out, and --device unless it is another GPU: cuda:1"
            )
        Settings(device=self.device or "cpu", dtype=self.chosen_dtype)
        if self.what == "ops" and self.rivals and device == "cpu":
            raise wrong_use(
                "bench ops --rivals: PyTorch's attention is measured on a GPU, add --device cuda; "
                "NumPy's BLAS is beside every matmul without being asked for"
            )
        if self.from_start and (device != "cpu" or self.max_autotune):
            raise wrong_use(
                "bench train --from-start is measured on the CPU, beside eager PyTorch; leave "
                "--device and --max-autotune out"
            )
        if self.max_autotune and not self.rivals:
            raise wrong_use("--max-autotune is a mode of PyTorch; add --rivals")

    def check_llmc(self, folder: str) -> None:
        """Is it there, and asked for its one shape?"""
        from backglass.bench import llmc

        llmc.program(folder)
        B, T = self.shape()
        if (B, T) != (llmc.B, llmc.T) or self.from_start:
            asked = "--from-start" if self.from_start else f"--batch-size {B} --seq-len {T}"
            raise wrong_use(
                f"--llmc with {asked}: train_gpt2 of llm.c has batches of {llmc.B} x {llmc.T} "
                "built in, and times single steps; leave one of them out"
            )

    @property
    def kind(self) -> str:
        """cpu or cuda."""
        from backglass.device import kind_of

        return kind_of(self.device or "cpu")

    @property
    def chosen_dtype(self) -> str:
        """Not auto: asking the GPU would open it here, and half a GiB of it then counts as used
        by every worker that we start."""
        return self.dtype or {"cpu": "fp32", "cuda": "bf16"}[self.kind]

    def shape(self) -> tuple[int, int]:
        B, T = SHAPES[self.kind]
        return self.batch_size or B, self.seq_len or T

    def say(self, text: Any) -> None:
        if not self.json:
            print(text, flush=True)

    def ops(self) -> list[dict[str, Any]]:
        from backglass.bench.measured import environment

        if self.tune:
            return self.tuned()
        if self.aot:
            return self.compiled()
        os.environ.update(environment(self.threads or 0))  # before NumPy's BLAS reads it
        from backglass.bench.ops import means

        unit, per_unit, digits = ("T", 1e3, 2) if self.kind == "cuda" else ("G", 1.0, 1)
        rows: list[Row] = []
        for r in self.op_rows():
            if not rows or r.dtype != rows[-1].dtype:
                self.say(f"{'call in ' + r.dtype:16} {'shape':40} {'ms':>9} {unit + 'FLOP/s':>8} "
                         f"{unit + 'B/s':>7}  share of its ceiling")  # fmt: skip
            rows.append(r)
            beside = f"   {r.ratio:.2f}x {r.rival}" if r.ratio else ""
            self.say(
                f"{r.op:16} {r.shape:40} {r.ms:9.3f} {r.gflops / per_unit:8.1f} "
                f"{r.gbps / per_unit:7.{digits}f}  {r.share:.0%} of {r.ceiling}{beside}"
            )
        for sentence in means(rows):
            self.say(sentence)
        return [dataclasses.asdict(r) for r in rows]

    def op_rows(self) -> Iterator[Row]:
        from backglass.bench.ops import bench_ops, names_in
        from backglass.program.fuse import fused_ops
        from backglass.training.settings import parse_rungs

        names, shape, gpu = list(self.names), self.shape(), self.kind == "cuda" and self.device
        known = names_in(*shape)
        also = fused_ops() if gpu else ()
        if unknown := [n for n in names if n not in {*known, *known.values(), *also}]:
            raise wrong_use(
                f"bench ops {unknown[0]}: no line of GPT-2's training step is that; there are "
                f"{', '.join(dict.fromkeys(known.values()))}"
            )
        rungs = parse_rungs(self.rung or "")
        if not gpu:
            return bench_ops(names, *shape, self.threads, rungs)
        from backglass.bench import sdpa
        from backglass.bench.gpu import gpu_ops

        wanted = self.rivals and (not names or set(names) & set(sdpa.PHASES))
        wanted = wanted and self.dtype in (None, "bf16")
        rivals = sdpa.measure(*shape, gpu, self.say) if wanted else {}
        return gpu_ops(names, *shape, gpu, self.dtype or "", rungs, rivals)

    def compiled(self) -> list[dict[str, Any]]:
        from backglass.bench.aot import rows
        from backglass.training.settings import parse_rungs

        self.say(f"{'call':18} {'kernel':28} sm  registers  spills  shared  warps  tensor cores")
        found = []
        shape = (self.batch_size or 64, self.seq_len or 1024)
        for r in rows(list(self.names), *shape, parse_rungs(self.rung or "")):
            found.append(dataclasses.asdict(r))
            self.say(f"{r.op:18} {r.kernel:28} {r.arch} {r.registers:9} {r.spill_bytes:7} "
                     f"{r.shared_bytes:8} {r.warps:5}  {r.tensor_cores}")  # fmt: skip
        return found

    def tuned(self) -> list[dict[str, Any]]:
        from backglass.bench import tune
        from backglass.training.settings import parse_rungs

        B, T = self.batch_size or 64, self.seq_len or 1024
        rungs = {op: rung for op, rung in parse_rungs(self.rung or "").items() if rung != "own"}
        gpu = "" if self.aot else self.device or ""
        found = tune.tune(list(self.names), B, T, gpu, rungs, self.say)
        return [dataclasses.asdict(tile) for tile in found]

    def train(self) -> list[dict[str, Any]]:
        from backglass import presets
        from backglass.bench import by_op, measured, start, train

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
            job = self.training_job(s)
            self.say(f"{name}, B={job['batch_size']}, T={job['seq_len']}: forward, backward, "
                     f"clipping, AdamW; {job['steps']} steps each")  # fmt: skip
            ours, rivals = train.compare(job, name, self.rivals, self.llmc, self.say)
        for sentence in measured.verdicts(ours, rivals):
            self.say(sentence)
        rows = measured.rows(ours, rivals)
        for m in ours:
            if m.by_op:
                rows += by_op.rows(m)
                for line in by_op.table(m, self.device or "cpu"):
                    self.say(line)
        return rows

    def training_job(self, s: Settings) -> dict[str, Any]:
        from backglass.bench import train

        device = self.device or "cpu"
        s = s.replace(device=device, dtype=self.chosen_dtype)
        steps = self.steps or STEPS[self.kind]
        job = train.training_job(s, *self.shape(), steps, self.threads or 0)
        return job | {"recompute": self.recompute or "", "max_autotune": self.max_autotune}

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
        from backglass import presets
        from backglass.bench import table

        job = self.training_job(presets.get(table.PRESET))
        found = table.columns(job, self.rivals, self.llmc, self.say)
        if not self.json:
            table.print_table(job, *found, self.llmc)
        return table.rows(job, *found, self.llmc)
