"""Random straight-line programs, far nastier than any model: names rewritten, read late,
accumulated into at random.

Models never exercise most conditions of a rewriter; programs like these found every bug that fusing
models did not.
"""

import random
from dataclasses import replace

import numpy as np

from backglass.ops import signature
from backglass.program.fuse import parse
from backglass.program.record import Call, Program
from backglass.view import View

SIZE = 3  # square, so that any tensor fits any operand of its rank
LETTERS = {("N", "C"): "t", ("N", "O"): "t", ("C",): "w", ("O",): "w", ("O", "C"): "W", ("N",): "t"}
SHAPES = {"t": (SIZE, SIZE), "s": (SIZE,), "w": (SIZE,), "W": (SIZE, SIZE)}
POOL = {"t": 7, "s": 3, "w": 2, "W": 2}
OPS = [
    "add",
    "gelu",
    "d_gelu",
    "layernorm",
    "d_layernorm",
    "matmul",
    "d_matmul_x",
    "d_matmul_w",
    "d_add",
]
CHAINS = ["d_layernorm_add", "add_layernorm", "matmul_gelu", "d_matmul_x_gelu"]


def letter_of(operand) -> str:
    return "s" if operand.name in ("mean", "rstd") else LETTERS[operand.dims]


def view(letter: str, i: int, kind: str) -> View:
    name = f"{letter}{i}" if kind == "act" else f"{kind}.{letter}{i}"
    return View(name, SHAPES[letter], "fp64", kind)


class Generator:
    def __init__(self, rng: random.Random):
        self.rng, self.calls, self.fresh = rng, [], []
        for letter in "ts":
            for i in range(POOL[letter]):
                self.add("gelu", (view(letter, i, "act"),), (view(letter, i, "input"),))

    def add(self, op, outs, ins):
        self.calls.append(
            Call(op, tuple(outs), tuple(ins), signature(op).attrs, "forward", "random")
        )

    def operand(self, o, out: bool) -> View:
        letter = letter_of(o)
        if (
            out and o.name == "db" and letter == "t"
        ):  # a copy nobody else writes: work for share_copies
            return View(f"u{len(self.calls)}", SHAPES["t"], "fp64", "act")
        if letter == "t" and not out and self.fresh and self.rng.random() < 0.3:
            return self.rng.choice(self.fresh)
        kind = "act" if letter in "ts" else "grad" if out else "param"
        return view(letter, self.rng.randrange(POOL[letter]), kind)

    def emit(self, op: str, given: dict, adds: dict) -> dict | None:
        """Append a call of op; returns operand name -> view, or None if no legal choice was
        found."""
        sig, rng = signature(op), self.rng
        for _ in range(50):
            outs = [given.get(o.name) or self.operand(o, True) for o in sig.outs]
            ins = [given.get(o.name) or self.operand(o, False) for o in sig.passed_ins]
            names = [v.name for v in outs]
            if len(set(names)) < len(names) or set(names) & {v.name for v in ins}:
                continue
            marked = []
            for o, v in zip(sig.outs, outs, strict=True):
                fresh = v.name[0] == "u"
                plus = (
                    adds.get(o.name)
                    or v.kind == "grad"
                    or (o.add and not fresh and rng.random() < 0.15)
                )
                marked.append(replace(v, add=bool(plus and o.add)))
            self.add(op, marked, ins)
            self.fresh += [v for v in marked if v.name[0] == "u"]
            return {
                o.name: replace(v, add=False)
                for o, v in zip(sig.passed, (*marked, *ins), strict=True)
            }
        return None

    def chain(self, fused: str) -> None:
        """The lines of an `equals` text with noise in between."""
        env: dict = {}
        for line in parse(signature(fused).equals):
            sig = signature(line.op)
            names = dict(
                zip((*line.outs, *line.ins), (*sig.outs[: len(line.outs)], *sig.ins), strict=False)
            )
            given = {
                o.name: env[var]
                for var, o in names.items()
                if var in env and self.rng.random() < 0.95
            }
            adds = {
                sig.outs[k].name: add and self.rng.random() < 0.9 for k, add in enumerate(line.adds)
            }
            made = self.emit(line.op, given, adds)
            if made is None:
                return
            env |= {var: made[o.name] for var, o in names.items()}
            while self.rng.random() < 0.4:
                self.emit(self.rng.choice(OPS), {}, {})


def random_program(rng: random.Random, length: int) -> Program:
    g = Generator(rng)
    while len(g.calls) < length:
        if rng.random() < 0.5:
            g.emit(rng.choice(OPS), {}, {})
        else:
            g.chain(rng.choice(CHAINS))
    for i in range(POOL["t"]):
        if rng.random() < 0.5:
            out = View(f"out.t{i}", SHAPES["t"], "fp64", "output")
            g.add("gelu", (out,), (view("t", i, "act"),))
    return Program(tuple(g.calls))


def fill(memory, program: Program, seed: int) -> None:
    """Random values in everything that is not an activation; outputs zero."""
    rng = np.random.default_rng(seed)
    for v in program.views().values():
        if v.kind != "act":
            memory.array(v)[...] = 0 if v.kind == "output" else rng.uniform(0.2, 1.2, v.shape)
