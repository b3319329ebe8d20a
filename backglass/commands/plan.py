"""backglass plan"""

from __future__ import annotations

import importlib.util
import json
import re
import textwrap
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from backglass.commands.options import Count, Text, opt
from backglass.errors import wrong_use

GIB = 1 << 30
HOPPER = 90  # whose kernels are planned for where there is no GPU to ask
UNKNOWN = (
    "Triton's launchers know, and it is not installed: python -m pip install 'triton>=3.6,<3.10'"
)
# What is said of a dtype, and of a kind of tensor, where they are listed
DTYPE_NOTES = {"tf32": "fp32, read by matmuls as tf32"}
KINDS = {
    "param": "parameters", "grad": "gradients", "state": "optimiser", "input": "inputs",
    "output": "outputs", "act": "activations",
}  # fmt: skip


@dataclass
class Plan:
    """Bytes and time of a training step, before anything is allocated.

    On cuda the total is what the driver will report.  On the cpu Python, its libraries and the
    kernels' workspace come on top.

    For example:
      backglass plan gpt2-124m --batch-size 64 --seq-len 1024 --device cuda
      backglass plan gpt2-124m --batch-size 64 --seq-len 1024 --dtype bf16 --device-memory 24GiB
      backglass plan gpt2-124m --fit 12GiB               which recomputation fits, at what price
      backglass plan gpt2-124m --recompute fch_gelu,ln1,ln2
    """

    preset: Annotated[Positional[str], arg(metavar="PRESET")] = "tiny"
    batch_size: Annotated[Count, opt("sequences per micro-batch", "B")] = None
    seq_len: Annotated[Count, opt("tokens per sequence", "T")] = None
    device: Annotated[
        Text, opt("cpu or cuda; no GPU is needed", "NAME", "(default: cuda for bf16 and tf32)")
    ] = None
    dtype: Annotated[
        Text, opt("fp32; on cuda also bf16 (with fp32 master weights) and tf32", "NAME", "")
    ] = None
    matmul: Annotated[
        Text, opt("cuda: fastest, own or cublaslt", "NAME", "(default: as train's)")
    ] = None
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
        from backglass import models
        from backglass.program import budget
        from backglass.training.fit import budget_of

        s = self.settings()
        c = s.model_config(s.vocab_size or 256)
        machine, arch = machine_for(s)
        rates = dict(flops_per_s=self.tflops * 1e12, bytes_per_s=self.tbytes * 1e12)
        chosen = budget_of(s, c, machine, **rates)
        options: dict[str, Any] = dict(machine=machine, micro_batches=s.micro_batches, **rates)
        frontier = []
        if self.fit:
            frontier = budget.frontier(models.of(c), c, s.batch_size, s.seq_len, s.dtype, **options)
            fitting = [b for b in frontier if b.total <= parse_bytes(self.fit, "--fit")]
            chosen = fitting[0] if fitting else frontier[-1]
        most = None
        if self.device_memory:
            memory = parse_bytes(self.device_memory, "--device-memory")
            options["recompute"] = chosen.recompute
            most = budget.largest_batch(models.of(c), c, s.seq_len, s.dtype, memory, **options)
        if self.json:
            print(json.dumps(figures(chosen, frontier, most)))
        else:
            print_budget(s, chosen, arch, self)
            print_choices(chosen, frontier, most, self)
        return 1 if self.fit and chosen.total > parse_bytes(self.fit, "--fit") else 0

    def settings(self):
        """The preset's, with what was asked for here."""
        from backglass import presets

        if not (self.tflops > 0 and self.tbytes > 0):
            raise wrong_use(
                f"--tflops and --tbytes must be positive, got {self.tflops}, {self.tbytes}"
            )
        names = ("batch_size", "seq_len", "device", "dtype", "matmul", "recompute")
        given = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        base = presets.get(self.preset)
        if (self.batch_size or self.seq_len) and base.total_batch_tokens:
            given["total_batch_tokens"] = 0
        if self.dtype in ("bf16", "tf32"):
            given.setdefault("device", "cuda")
        return base.replace(**given)


def machine_for(s):
    """What the device of s would add, without opening it, and the GPU it is for: 90 is sm_90."""
    from backglass.device import kind_of
    from backglass.program.budget import CUDA_CONTEXT_BYTES, Machine

    if kind_of(s.device) != "cuda":
        return Machine(), 0
    if importlib.util.find_spec("triton") is None:  # the launchers, which know, import it
        return Machine(context=CUDA_CONTEXT_BYTES), HOPPER
    from backglass.device.aot import Aot
    from backglass.device.cuda import arch_of
    from backglass.training.session import device_options

    arch = arch_of(s.device) or HOPPER
    device = Aot(arch, **device_options(s))
    fused = tuple(device.fusable())
    return Machine(fused, device.workspace_bytes, CUDA_CONTEXT_BYTES), arch


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
        "arena_bytes": b.arena,
        "lower_bound_bytes": b.highest.bound,
        "states_bytes": {name: flat.nbytes for name, flat in b.states.items()},
        "workspace_bytes": b.workspace,
        "context_bytes": b.context,
        "held_in": b.held(),
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


def print_budget(s, b, arch: int, asked: Plan) -> None:
    name = ", ".join(b.recompute) or "nothing"
    print(
        f"{s.preset}, B={s.batch_size}, T={s.seq_len}, {s.dtype} on {s.device}, recomputing {name}"
        "\n"
    )
    for what, amount, note in rows(b, arch):
        print(f"  {what:22s} {amount:>12s}   {note}".rstrip())
    print()
    print(held(b))
    plan = next(name for name, p in b.plans.items() if p is b.highest)
    line = b.highest.program[b.highest.bound_line]
    print(f"\nat the peak, line {b.highest.bound_line} of {plan}:  {line}")
    print(folded(b.at_the_peak))
    print(
        f"\na step: {b.step.flops / 1e9:,.0f} GFLOP, {b.step.nbytes / 1e9:,.1f} GB moved; at "
        f"{asked.tflops:g} "
        f"TFLOP/s and {asked.tbytes:g} TB/s no less than {b.step.seconds * 1e3:,.1f} ms"
    )


def rows(b, arch: int) -> list[tuple[str, str, str]]:
    """(what, how much, a note) of everything that takes memory."""
    from backglass.program.budget import CUDA_CONTEXT_SOURCE

    found = [
        (kind, gib(flat.nbytes), DTYPE_NOTES.get(flat.dtype, flat.dtype))
        for kind, flat in b.states.items()
    ]
    waste = b.arena / b.highest.bound - 1 if b.highest.bound else 0
    found.append(("activations (arena)", gib(b.arena), f"{waste:.1%} above the lower bound"))
    if arch and b.workspace is None:
        found.append(("kernel workspace", "unknown", UNKNOWN))
    elif arch:
        found.append(("kernel workspace", gib(b.workspace), f"shared by all kernels, on sm_{arch}"))
    if b.context:
        found.append(("CUDA context", gib(b.context), CUDA_CONTEXT_SOURCE))
    note = "as the driver will report it" if arch else ""
    if arch and b.workspace is None:
        note = "and the workspace"
    return [*found, ("total", gib(b.total), note)]


def gib(nbytes: float) -> str:
    return f"{nbytes / GIB:.2f} GiB"


def held(b) -> str:
    """Which tensors are held in which dtype."""
    found = []
    for dtype, kinds in b.held().items():
        parts = [f"{KINDS[kind]} {' '.join(names)}" for kind, names in kinds.items()]
        text = f"held in {DTYPE_NOTES.get(dtype, dtype)}: {'; '.join(parts)}"
        found.append(textwrap.fill(text, 98, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(found)


def print_choices(b, frontier: list, most: int | None, asked: Plan) -> None:
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
