"""backglass plan"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from backglass.commands.options import Count, Text, opt
from backglass.errors import wrong_use

GIB = 1 << 30


@dataclass
class Plan:
    """Bytes and time of a training step, before anything is allocated.

    Exact for what the program holds: states and the arena of activations.  Not counted: Python and
    its libraries, a GPU's context, kernel workspaces.

    For example:
      backglass plan gpt2-124m --batch-size 64 --seq-len 1024 --dtype bf16 --device-memory 24GiB
      backglass plan gpt2-124m --fit 12GiB               which recomputation fits, at what price
      backglass plan gpt2-124m --recompute fch_gelu,ln1,ln2
    """

    preset: Annotated[Positional[str], arg(metavar="PRESET")] = "tiny"
    batch_size: Annotated[Count, opt("sequences per micro-batch", "B")] = None
    seq_len: Annotated[Count, opt("tokens per sequence", "T")] = None
    dtype: Annotated[str, arg(help="fp32 or bf16 (with fp32 master weights)", metavar="NAME")] = (
        "fp32"
    )
    recompute: Annotated[
        str, arg(help="activations to make again in the backward", metavar="A,B")
    ] = ""
    device_memory: Annotated[
        Text, opt("of your device, to print the largest batch", "24GiB", "")
    ] = None
    fit: Annotated[Text, opt("choose the fastest recomputation that fits", "12GiB", "")] = None
    tflops: Annotated[float, arg(help="TFLOP/s your device reaches", metavar="X")] = 1.0
    tbytes: Annotated[float, arg(help="TB/s your memory reaches", metavar="X")] = 0.1
    json: Annotated[bool, arg(help="figures as JSON")] = False

    def run(self) -> int:
        from backglass.models import gpt2
        from backglass.program import budget

        s, c = self.model()
        shape = (gpt2, c, s.batch_size, s.seq_len, self.dtype)
        options = dict(
            flops_per_s=self.tflops * 1e12,
            bytes_per_s=self.tbytes * 1e12,
            micro_batches=s.micro_batches,
        )
        fields = tuple(f for f in self.recompute.split(",") if f)
        try:
            chosen = budget.budget(*shape, fields, **options)
        except ValueError as error:
            raise wrong_use(f"--recompute {self.recompute}: {error}") from None
        frontier = budget.frontier(*shape, **options) if self.fit else []
        if self.fit:
            fitting = [b for b in frontier if b.total <= parse_bytes(self.fit, "--fit")]
            chosen = fitting[0] if fitting else frontier[-1]
        most = None
        if self.device_memory:
            memory = parse_bytes(self.device_memory, "--device-memory")
            most = budget.largest_batch(
                gpt2, c, s.seq_len, self.dtype, memory, recompute=chosen.recompute
            )
        if self.json:
            print(json.dumps(figures(chosen, frontier, most)))
        else:
            print_budget(s, chosen, frontier, most, self)
        return 1 if self.fit and chosen.total > parse_bytes(self.fit, "--fit") else 0

    def model(self):
        """(settings, model config) of the preset with the given sizes."""
        from backglass import presets

        names = ("batch_size", "seq_len")
        given = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        base = presets.get(self.preset)
        if given and base.total_batch_tokens:
            given["total_batch_tokens"] = 0
        if self.dtype not in ("fp32", "bf16"):
            raise wrong_use(f"--dtype is fp32 or bf16, got {self.dtype!r}")
        if not (self.tflops > 0 and self.tbytes > 0):
            raise wrong_use(
                f"--tflops and --tbytes must be positive, got {self.tflops}, {self.tbytes}"
            )
        s = base.replace(**given)
        return s, s.model_config(s.vocab_size or 256)


def parse_bytes(text: str, flag: str) -> int:
    """ "24GiB", "500 MB", "8g" -> bytes.  Raises UserError for anything else."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?)(i?)b?\s*", text.lower())
    if match is None:
        raise wrong_use(f"{flag} {text}: expected a size such as 24GiB or 500MB")
    number, unit, binary = match.groups()
    base = 1024 if binary or text[-1:].lower() != "b" else 1000
    return int(float(number) * base ** " kmgt".index(unit or " "))


def figures(b, frontier: list, most: int | None) -> dict:
    return {
        "recompute": list(b.recompute),
        "total_bytes": b.total,
        "arena_bytes": b.plan.peak,
        "lower_bound_bytes": b.plan.bound,
        "states_bytes": b.states,
        "step_flops": b.step.flops,
        "step_ms": b.step.seconds * 1e3,
        "largest_batch": most,
        "at_the_peak": [{"name": x.name, "bytes": x.nbytes} for x in b.at_the_peak],
        "frontier": [
            {
                "recompute": list(f.recompute),
                "total_bytes": f.total,
                "step_ms": f.step.seconds * 1e3,
            }
            for f in frontier
        ],
    }


def print_budget(s, b, frontier: list, most: int | None, asked: Plan) -> None:
    name = ", ".join(b.recompute) or "nothing"
    print(f"{s.preset}, B={s.batch_size}, T={s.seq_len}, {asked.dtype}, recomputing {name}\n")
    for kind, nbytes in b.states.items():
        print(f"  {kind:22s} {nbytes / GIB:8.2f} GiB")
    waste = b.plan.peak / b.plan.bound - 1 if b.plan.bound else 0
    print(
        f"  {'activations (arena)':22s} {b.plan.peak / GIB:8.2f} GiB   {waste:.1%} above the "
        f"lower bound"
    )
    print(f"  {'total':22s} {b.total / GIB:8.2f} GiB\n")
    line = b.plan.program[b.plan.bound_line]
    print(f"at the peak, line {b.plan.bound_line}:  {line}")
    print(folded(b.at_the_peak))
    print(
        f"\na step: {b.step.flops / 1e9:,.0f} GFLOP, {b.step.nbytes / 1e9:,.1f} GB moved; at "
        f"{asked.tflops:g} "
        f"TFLOP/s and {asked.tbytes:g} TB/s no less than {b.step.seconds * 1e3:,.1f} ms"
    )
    if most is not None:
        print(f"largest batch that fits into {asked.device_memory}: {most}")
    if frontier:
        print("\n     total    step ms   recompute")
        for f in frontier:
            mark = "->" if f is b else "  "
            fields = ", ".join(f.recompute) or "nothing"
            print(f"{mark} {f.total / GIB:7.2f} GiB {f.step.seconds * 1e3:9.1f}   {fields}")
        if b.total > parse_bytes(asked.fit or "0", "--fit"):
            print(f"nothing fits into {asked.fit}; a smaller --batch-size or --seq-len will")


def folded(lives: list) -> str:
    """Live tensors, the same field of all layers on one line, the largest first."""
    total: dict[str, list[int]] = {}
    for life in lives:
        field = re.sub(r"^h\d+\.", "h*.", life.name)
        count, nbytes = total.get(field, [0, 0])
        total[field] = [count + 1, nbytes + life.nbytes]
    rows = sorted(total.items(), key=lambda item: -item[1][1])[:12]
    return "\n".join(
        f"  {f'{name} x{n}' if n > 1 else name:22s} {b / GIB:8.3f} GiB" for name, (n, b) in rows
    )
