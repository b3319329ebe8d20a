"""backglass bench"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from backglass.commands.options import opt
from backglass.errors import wrong_use

WHAT = ("ops", "train", "table")


@dataclass
class Bench:
    """Measure on this machine: op by op, whole training steps, or the table of the README.

    For example:
      backglass bench table                              about two minutes, ours only
      backglass bench table --rivals                     with PyTorch, where it is installed
      backglass bench train --batch-size 1 --seq-len 1024 --rivals
      backglass bench ops matmul attention               shares of this machine's ceilings
      backglass bench ops matmul --rung matmul=v2        a rung of the ladder
    """

    what: Annotated[Positional[str], arg(help="ops, train or table", metavar="WHAT")]
    names: Annotated[Positional[tuple[str, ...]], arg(help="ops: which", metavar="[OP ...]")] = ()
    batch_size: Annotated[int, arg(metavar="B")] = 4
    seq_len: Annotated[int, arg(metavar="T")] = 64
    steps: Annotated[
        int, arg(help="per implementation, the first two are warm-up", metavar="N")
    ] = 9
    threads: Annotated[int, arg(help="0: all cores", metavar="N")] = 0
    rung: Annotated[str, arg(help="ops: time this rung", metavar="OP=V")] = ""
    rivals: Annotated[bool, arg(help="measure PyTorch beside it, in the same run")] = False
    out: Annotated[str | None, opt("also write the results there as JSON", "FILE", "")] = None
    json: Annotated[bool, arg(help="rows as JSON")] = False

    def run(self) -> int:
        if self.what not in WHAT:
            raise wrong_use(f"bench {self.what}: there are {', '.join(WHAT)}")
        for name in ("batch_size", "seq_len", "steps"):
            if getattr(self, name) < 1:
                raise wrong_use(
                    f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}"
                )
        rows = {"ops": self.ops, "train": self.train, "table": self.table}[self.what]()
        if self.json:
            print(json.dumps(rows))
        if self.out:
            from backglass.training.files import write_json

            write_json(Path(self.out), {**provenance(), "rows": rows})
        return 0

    def say(self, text: str) -> None:
        if not self.json:
            print(text, flush=True)

    def ops(self) -> list[dict[str, Any]]:
        from backglass import ops
        from backglass.bench.ops import bench_ops

        calls = {call for op in ops.table().values() for call in op.signatures}
        if unknown := [n for n in self.names if n not in ops.table() and n not in calls]:
            raise wrong_use(f"there is no op {unknown[0]!r}; there are {', '.join(ops.table())}")
        rungs = dict(r.split("=", 1) for r in self.rung.split(",") if "=" in r)
        self.say(
            f"{'call':16} {'shape':40} {'ms':>9} {'GFLOP/s':>8} {'GB/s':>7}  share of its ceiling"
        )
        rows = []
        for r in bench_ops(
            list(self.names), self.batch_size, self.seq_len, self.threads or None, rungs
        ):
            rows.append(dataclasses.asdict(r))
            beside = f"   {r.ratio:.2f}x {r.rival}" if r.ratio else ""
            self.say(f"{r.op:16} {r.shape:40} {r.ms:9.3f} {r.gflops:8.1f} {r.gbps:7.1f}  "
                     f"{r.share:.0%} of {r.ceiling}{beside}")  # fmt: skip
        return rows

    def train(self) -> list[dict[str, Any]]:
        from backglass.bench import train

        B, T = self.batch_size, self.seq_len
        case = f"train-gpt2-124m-cpu-fp32-b{B}-t{T}"
        self.say(
            f"GPT-2 124M, B={B}, T={T}: forward, backward, clipping, AdamW; {self.steps} steps each"
        )

        def say(m) -> None:
            self.say(f"{m.name:18} " + (m.missing or (
                f"{m.tokens_per_s:8.1f} tokens/s (best {m.best_tokens_per_s:.1f})   "
                f"peak {m.peak_bytes / 2**30:.2f} GiB   first step {m.first_ms / 1e3:.1f} s"
            )))  # fmt: skip

        found = train.compare(
            B, T, self.steps, self.threads, train.GPT2_124M, case, self.rivals, say
        )
        best = best_rival(found)
        if best:
            speed = found[0].tokens_per_s / best.tokens_per_s
            memory = found[0].peak_bytes / best.peak_bytes
            self.say(f"\nbackglass is {speed:.2f}x {best.name}, with {memory:.2f}x its memory")
        return [m.row(best if m is found[0] else None) for m in found if not m.missing]

    def table(self) -> list[dict[str, Any]]:
        from backglass.bench.table import columns, print_table

        found = columns(self.threads, self.rivals, self.steps, self.say)
        if not self.json:
            print_table(found)
        return [m.row() for m in found.values() if not m.missing]


def best_rival(found: list):
    """The fastest of the others, ours with BLAS not among them."""
    others = [m for m in found if m.name.startswith("torch") and m.tokens_per_s]
    return max(others, key=lambda m: m.tokens_per_s, default=None)


def provenance() -> dict[str, Any]:
    """What a result needs to be reproduced: machine, versions, commit, command, date."""
    from importlib.metadata import version

    import backglass

    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
    )
    return {
        "machine": {"cpu": cpu_name(), "platform": platform.platform()},
        "versions": {
            "backglass": backglass.__version__, "python": platform.python_version(),
            "numpy": version("numpy"), "numba": version("numba"),
        },
        "commit": git.stdout.strip() or "unknown",
        "command": "backglass " + " ".join(sys.argv[1:]),
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
