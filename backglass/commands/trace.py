"""backglass trace"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from backglass.commands.options import Count, Text, opt
from backglass.commands.plan import parse_bytes
from backglass.errors import UserError, wrong_use

if TYPE_CHECKING:
    from backglass.debugger.record import Wanted
    from backglass.debugger.replay import Progress
    from backglass.debugger.trace import Event, Trace, Version
    from backglass.training.settings import Settings

LEVELS = (0, 1, 2, 3)
RECORDS = (
    "step", "level", "tensors", "max_disk", "batch_size", "seq_len", "data", "tokenizer", "device",
    "out",
)  # fmt: skip
SHOWS = ("event", "tensor", "replay")


@dataclass
class TraceCommand:
    """Record one training step op by op, or look into a recording.

    A recording has an event for every op call of forward, backward and update: what it read and
    made, statistics, pictures and hashes of every tensor, the tensors themselves if you want, and
    the source of the kernels. It is the plain program, with attention spelled out; at level 0,
    which keeps statistics only, the program as the run executes it.

    For example:
      backglass trace runs/a                       the step after the newest checkpoint
      backglass trace runs/a --step 100 --level 3  the 100th, with all tensors
      backglass trace runs/a --level 2 --tensors 'h0.*,dwte'
      backglass trace runs/a/checkpoints/step-00000100    the step after a checkpoint
      backglass trace tiny                         the first step of a preset
      backglass trace gpt2-124m --batch-size 1 --seq-len 64 --tokenizer bytes --level 3
      backglass trace runs/a/trace/step-00000100   what is in a recording
      backglass trace runs/a/trace/step-00000100 --event 12
      backglass trace runs/a/trace/step-00000100 --tensor h0.qkv
      backglass trace runs/a/trace/step-00000100 --replay    the same bits again?
    """

    path: Annotated[
        Positional[str], arg(help="a run, a preset or a recording", metavar="RUN|PRESET|RECORDING")
    ]
    step: Annotated[
        Count, opt("which update, from 1", "N", "(default: the first after the newest checkpoint)")
    ] = None
    level: Annotated[
        Count,
        opt("0: statistics, of the program as the run executes it; 1: of the plain program, with "
            "pictures and histograms; 2: some tensors too; 3: all tensors", "0-3", "(default: 1)"),
    ] = None  # fmt: skip
    tensors: Annotated[Text, opt("level 2: names or patterns, such as 'h0.*,dwte'", "A,B", "")] = (
        None
    )
    max_disk: Annotated[Text, opt("stop storing tensors there", "4GiB", "(default: 4GiB)")] = None
    batch_size: Annotated[Count, opt("presets: sequences per micro-batch", "B")] = None
    seq_len: Annotated[Count, opt("presets: tokens per sequence", "T")] = None
    data: Annotated[Text, opt("presets: what to train on", "SOURCE")] = None
    tokenizer: Annotated[Text, opt("presets: bytes, bpe:N, gpt2 or a file", "NAME")] = None
    device: Annotated[
        Text, opt("cpu, cuda, numpy or interpret", "NAME", "(default: the run's)")
    ] = None
    out: Annotated[
        Text, opt("folder of the recording", "DIR", "(default: RUN/trace/step-XXXXXXXX)")
    ] = None
    event: Annotated[Count, opt("of a recording: show this event", "K", "")] = None
    tensor: Annotated[Text, opt("of a recording: show every version of this", "NAME", "")] = None
    replay: Annotated[
        bool, arg(help="of a recording: do the step again and compare every hash")
    ] = False
    json: Annotated[bool, arg(help="figures as JSON")] = False

    def run(self) -> int:
        if (Path(self.path) / "manifest.json").is_file():
            self.refuse(RECORDS, "records a step, and {} is a recording")
            return self.show()
        self.refuse(SHOWS, "looks into a recording, and {} is none")
        return self.record()

    def refuse(self, flags: tuple[str, ...], why: str) -> None:
        """Flags that have no meaning for this path."""
        for name in flags:
            if getattr(self, name) not in (None, False):
                raise wrong_use(f"--{name.replace('_', '-')} {why.format(self.path)}")

    # ------------------------------------------------------------ recording

    def record(self) -> int:
        from backglass.debugger.record import note_own, record_step
        from backglass.debugger.replay import before_step, chosen_step

        wanted = self.wanted()
        s, run, step = self.source()
        step = chosen_step(run, step)
        folder = self.folder(run, s, step)
        self.say(f"preparing {self.path} …")
        before = before_step(s, run, step, self.bar("training up to it"))
        origin = before.origin | ({"run": run} if run else {})
        for name in origin.keys() & {"checkpoint", "run"}:
            origin[name] = os.path.relpath(origin[name], folder)
        start = time.perf_counter()
        session = before.start.session
        try:
            found = record_step(
                session, before.batches, before.step, folder, wanted, before.start.tokenizer,
                origin, self.bar("recording"),
            )  # fmt: skip
            loss = session.gradients(before.batches, before.step)
            note_own(folder, session, loss, session.update(before.step)[0])
        except OSError as error:
            raise UserError(
                f"{error.filename or folder} could not be written: {error.strerror or error}. Free "
                "some space, mend the rights, or choose another --out."
            ) from None
        seconds = time.perf_counter() - start
        if self.json:
            print(json.dumps({"recording": str(folder), "seconds": seconds, **asdict(found)}))
            return 0
        nbytes = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        print(
            f"step {before.step + 1}: {found.events} events in {seconds:.1f} s, {nbytes / 1e6:,.1f}"
            f" MB in {folder}\nloss {found.loss:.4f}   gradient norm {found.grad_norm:.4f}"
        )
        if found.left_out:
            print(
                f"{found.left_out} tensors were not stored: --max-disk "
                f"{self.max_disk or '4GiB'} is full; their statistics are there"
            )
        return 0

    def wanted(self) -> Wanted:
        from backglass.debugger.record import Wanted

        level = 1 if self.level is None else self.level
        if level not in LEVELS:
            raise wrong_use(f"--level must be 0, 1, 2 or 3, got {level}")
        if (level == 2) != bool(self.tensors):
            raise wrong_use("--level 2 and --tensors 'h0.*' go together: which tensors to keep")
        if self.step is not None and self.step < 1:
            raise wrong_use(f"--step must be at least 1, got {self.step}")
        patterns = [name.strip() for name in (self.tensors or "").split(",")]
        cap = parse_bytes(self.max_disk or "4GiB", "--max-disk")
        return Wanted(level, tuple(filter(None, patterns)), cap)

    def source(self) -> tuple[Settings, Path | None, int | None]:
        """(settings, run directory or None for a preset, step if one is named)."""
        from backglass import presets
        from backglass.debugger.replay import run_and_step, settings_of_run
        from backglass.device import kind_of

        names = ("batch_size", "seq_len", "data", "tokenizer")
        given = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        run, step = run_and_step(Path(self.path), self.step)
        if run.is_dir():
            if given:
                flag = "--" + next(iter(given)).replace("_", "-")
                raise wrong_use(f"{flag} is for presets; a run's step is done as it was done")
            s = settings_of_run(run, step)
        elif self.path in presets.ALL:
            run, s = None, presets.get(self.path)
            if {"batch_size", "seq_len"} & set(given):
                given["total_batch_tokens"] = 0
            s = s.replace(**given)
        else:
            raise wrong_use(
                f"trace {self.path}: there is no such run, recording or preset; presets are "
                f"{', '.join(presets.ALL)}"
            )
        if self.device and kind_of(self.device) != kind_of(s.device):
            s = s.replace(device=self.device, dtype="auto", matmul="auto")
        return (s.replace(device=self.device) if self.device else s), run, step

    def folder(self, run: Path | None, s: Settings, step: int) -> Path:
        """Where to record; refused if something is there."""
        name = f"step-{step:08d}"
        if self.out:
            folder = Path(self.out)
        elif run:
            folder = run / "trace" / name
        else:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            folder = Path("runs") / f"{s.preset}-{stamp}" / "trace" / name
        if folder.exists() and (folder.is_file() or any(folder.iterdir())):
            raise wrong_use(
                f"{folder} is there already. `backglass trace {folder}` shows it; to record again, "
                "delete it or choose another --out."
            )
        return folder

    # ------------------------------------------------------------ looking

    def show(self) -> int:
        from backglass.debugger.trace import Trace

        with Trace(self.path) as trace:
            return self.verify(trace) if self.replay else self.look(trace)

    def look(self, trace: Trace) -> int:
        if self.event is not None:
            return self.show_event(trace, trace.event(self.event))
        if self.tensor is not None:
            versions = trace.versions(self.tensor)
            if self.json:
                print(json.dumps([asdict(v) for v in versions]))
            else:
                for v in versions:
                    print(f"version {v.number}  {made_by(trace, v)}\n  {summary(v)}")
            return 0
        if self.json:
            print(json.dumps({**trace.manifest, "rows": [asdict(e) for e in trace.events()]}))
            return 0
        print(headline(trace))
        for e in trace.events():
            (_, first, _), *_ = trace.operands(e.k, "out")
            twin = "" if e.twin is None else f"↔ {e.twin}"
            print(f"{e.k:5d} {e.phase:8} {twin:7} {e.text[:64]:64} {health_mark(trace, e)}"
                  f"‖{first.tensor}‖ = {first.statistics['norm']:.5g}")  # fmt: skip
        return 0

    def show_event(self, trace: Trace, e: Event) -> int:
        operands = {role: trace.operands(e.k, role) for role in ("in", "out")}
        if self.json:
            print(json.dumps(asdict(e) | {
                role: [{"name": name, "adds": adds, **asdict(v)} for name, v, adds in found]
                for role, found in operands.items()
            }))  # fmt: skip
            return 0
        print(f"event {e.k}, {e.phase}: {e.text}\n")
        for role, label in (("in", "reads"), ("out", "makes")):
            for name, v, adds in operands[role]:
                print(
                    f"{label} {name + '+' * adds:8} {v.tensor} (version {v.number})  {summary(v)}"
                )
        print(f"\nkernel  src/{e.kernel}, lines {e.first_line} to {e.last_line}")
        for i, line in enumerate(trace.source(e), 1):
            if e.first_line <= i <= e.last_line:
                print(f"  {i:4d}  {line}")
        print(f"called  {e.model}   {e.ms:.3f} ms")
        if e.twin is not None:
            print(f"twin    event {e.twin}: {trace.event(e.twin).text}")
        return 0

    def verify(self, trace: Trace) -> int:
        from backglass.debugger.replay import replay

        damaged = [v for v in trace.damaged()]
        for v in damaged:
            self.say(f"damaged: {v.tensor} (version {v.number}), {made_by(trace, v)}")
        count, divergence = replay(trace, self.bar("replaying"))
        if self.json:
            print(json.dumps({
                "agreed": count, "diverged": divergence and asdict(divergence),
                "damaged": [asdict(v) for v in damaged],
            }))  # fmt: skip
        elif divergence is None:
            print(f"replay bit-exact: {count:,} tensors, the same hashes")
        else:
            where = "" if divergence.event is None else f"event {divergence.event}: "
            print(f"diverged at {where}{divergence.text}; {divergence.tensor} has other bits")
        return 1 if damaged or divergence else 0

    def say(self, text: str) -> None:
        if not self.json:
            print(text, flush=True)

    def bar(self, what: str) -> Progress:
        """A progress bar on a terminal."""
        from backglass.tools.bar import bar

        return bar(what)


def headline(trace: Trace) -> str:
    m = trace.manifest
    state = "" if trace.complete else f", cut off after {trace.count} of {m['events']} events"
    return (
        f"step {m['step']} of {m['settings']['preset']}, {trace.count} events, level {m['level']}, "
        f"on {m['device']} in {m['dtype']}{state}{own(m)}"
    )


def own(m: dict) -> str:
    """How the run's own program differs from the recorded one, and by how much."""
    if "own" not in m or "loss" not in m:
        return ""
    o = m["own"]
    parts = ["flash attention"] * (o["attention"] == "flash") + ["fused ops"] * bool(o["fused"])
    if m.get("program") == "own":
        return (
            f"\nit is the program as the run executes it, with {' and '.join(parts) or 'no change'}"
        )
    gaps = (abs(o[k] - m[k]) / (abs(o[k]) or 1) for k in ("loss", "grad_norm"))
    loss, norm = (f"{gap:.1g}" for gap in gaps)
    return (
        f"\nthe run itself has {' and '.join(parts) or 'the same program'}: its loss differs by "
        f"{loss} of itself, its gradient norm by {norm}"
    )


def made_by(trace: Trace, v: Version) -> str:
    return "before the step" if v.event is None else f"event {v.event}: {trace.event(v.event).text}"


def summary(v: Version) -> str:
    """A version's numbers on one line."""
    x = v.statistics
    bad = f"  {x['nans']} NaN, {x['infs']} infinite, first at {v.bad[0]}" if v.bad else ""
    return (
        f"{list(v.shape)} {v.dtype}  min {x['min']:.4g}  max {x['max']:.4g}  mean {x['mean']:.4g}  "
        f"std {x['std']:.4g}  norm {x['norm']:.5g}{bad}"
    )


def health_mark(trace: Trace, e: Event) -> str:
    return "NOT FINITE  " if any(v.bad for v in trace.outs(e.k)) else ""
