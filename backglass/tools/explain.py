"""explain: the page of an op, from its maths.py and its spec.  Nothing is written twice."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from backglass.ops import Op
from backglass.spec import Signature
from backglass.tools.catalogue import TIERS, folder, rungs, sentence
from backglass.tools.example import Example, Proof, example

WIDTH = 100
MARGIN = 6
STEP_MARK = re.compile(r"#\s*(\d+(?:, \d+)*)(, [a-z].*)?$")
CODE_WIDTH = 64


def page(op: Op, call: str) -> str:
    """Everything about an op, or about one fused call of it, as plain text."""
    sig = op.signatures[call]
    made = example(op, call)
    if sig.equals:
        parts = [f"{call}, a fused call of {op.name}", fused_text(sig), *_example(made)]
        return "\n\n".join(parts) + "\n"
    parts = [
        f"{op.name}\n{'=' * len(op.name)}",
        inspect.cleandoc(op.maths.__doc__ or ""),
        heading("Calls", calls_text(op)),
        heading(f"In NumPy: {where(op)}", source_text(op)),
        heading("Tiers", tiers_text(op)),
        *_example(made),
    ]
    if not made.proofs:
        parts.append(heading("Proof", closed_forms(op)))
    return "\n\n".join(p for p in parts if p) + "\n"


def heading(title: str, text: str) -> str:
    return f"{title}\n{'-' * len(title)}\n{text}" if text else ""


def where(op: Op) -> str:
    path = Path(op.maths.__file__ or "")
    return "/".join(path.parts[-4:])


def calls_text(op: Op) -> str:
    """The signature of each call as the spec declares it, and its FLOPs."""
    rows = []
    for sig in op.signatures.values():
        rows.append(
            textwrap.fill(f"{sig.call}:  {spec_text(sig)}", WIDTH, subsequent_indent="    ")
        )
        notes = [f"{sig.flops.replace('*', '·')} FLOPs"]
        notes += [f"{k} = {v}" for k, v in sig.attrs.items()]
        notes += [f"{out} may lie over {i}" for out, i in sig.inplace]
        rows.append(f"    {'; '.join(notes)}")
    legend = "| saved for the backward   + may accumulate   ? may be absent"
    return "\n".join([*rows, "", legend])


def spec_text(sig: Signature) -> str:
    def text(o: Any) -> str:
        return f"{o.name}[{','.join(o.dims)}]{'+' * o.add}{'?' * o.optional}"

    outs = " ".join(text(o) for o in sig.outs if not o.saved)
    saved = " ".join(text(o) for o in sig.outs if o.saved)
    return f"{' '.join(map(text, sig.ins))} -> {outs}{' | ' + saved if saved else ''}"


def source_text(op: Op) -> str:
    """The NumPy functions; beside each line that implements a derivation step, the step."""
    steps = derivation(op.maths.__doc__ or "")
    parts = []
    for function in functions(op):
        lines = textwrap.dedent(inspect.getsource(function)).rstrip().splitlines()
        parts.append("\n".join(annotated(line, steps) for line in lines))
    return "\n\n".join(parts)


def functions(op: Op) -> list[Any]:
    """The functions of the op's own calls, then the helpers they use, in the order they are
    met."""
    found = [getattr(op.maths, call) for call in (op.name, *op.spec.backward)]
    for function in found:
        for name in function.__code__.co_names:
            helper = vars(inspect.getmodule(function)).get(name)
            ours = inspect.isfunction(helper) and helper.__module__.endswith(".maths")
            if ours and helper not in found:
                found.append(helper)
    return found


def derivation(doc: str) -> dict[int, str]:
    """Step number -> its formula, or its words if it has none."""
    found: dict[int, str] = {}
    for match in re.finditer(r"^ {4,5}(\d+)  (.+(?:\n {8,}.+)*)", doc, re.MULTILINE):
        text = re.split(r":(?:\s{2,}|\n)", match[2], maxsplit=1)[-1]
        found[int(match[1])] = " ".join(text.split())
    return found


def annotated(line: str, steps: dict[int, str]) -> str:
    """A source line with its step numbers in the margin and their formulas to the right, or
    below."""
    match = STEP_MARK.search(line)
    numbers = [int(n) for n in match[1].split(", ") if int(n) in steps] if match else []
    if not match or not numbers:
        return f"{'':{MARGIN}s}{line}".rstrip()
    margin = ",".join(map(str, numbers))
    code = line[: match.start()].rstrip()
    notes = [f"{n}{match[2] or ''}: {steps[n]}" for n in numbers]
    room = WIDTH - MARGIN - CODE_WIDTH - 2
    if len(notes) == 1 and len(code) <= CODE_WIDTH and len(notes[0]) <= room:
        return f"{margin:>{MARGIN - 2}s}  {code:{CODE_WIDTH}s}  {notes[0]}"
    below = [textwrap.shorten(n, WIDTH - 16, placeholder=" …") for n in notes]
    return "\n".join([f"{margin:>{MARGIN - 2}s}  {code}", *(f"{'':15s}^ {n}" for n in below)])


def tiers_text(op: Op) -> str:
    """Where the op's other tiers are, and its fused forms."""
    here = folder(op)
    rows = [f"{t:7s} {here / (t + '.py')}" for t in TIERS if (here / f"{t}.py").exists()]
    rows += [f"{'rung':7s} {here / 'ladder' / (r + '.py')}" for r in rungs(op)]
    for sig in op.signatures.values():
        if sig.equals:
            rows.append(f"fused form {sig.call}, which equals")
            rows.append(textwrap.indent(inspect.cleandoc(sig.equals), "    "))
    return "\n".join(rows)


def fused_text(sig: Signature) -> str:
    """A fused call is its composition: meaning, test oracle and search pattern at once."""
    return (
        f"{spec_text(sig)}\n    {sig.flops.replace('*', '·')} FLOPs\n\nequals\n\n"
        + textwrap.indent(inspect.cleandoc(sig.equals), "    ")
    )


def _example(made: Example) -> Iterator[str]:
    """The headings of the worked example."""
    given = dict(made.sample.sizes) | made.sample.attrs
    case = ", ".join(f"{k} = {v}" for k, v in given.items())
    shown: dict[str, np.ndarray] = {}
    for i, step in enumerate(made.steps):
        rows = []
        for name, value in step.ins.items():
            if name not in shown:
                note = "   drawn at random" if i and name.startswith("d") else ""
                rows.append(tensor(name, value) + note)
        shown |= step.ins
        names = ", ".join(step.outs)
        rows.append(f"{names} = {step.signature.call}({', '.join(step.ins)})")
        rows += [tensor(name, value) for name, value in step.outs.items()]
        shown |= step.outs
        title = f"Example: {case}" if i == 0 else f"Example, backward: {step.signature.call}"
        yield heading(title if case or i else "Example", "\n".join(rows))
    if made.proofs:
        yield heading("Proof by finite differences", proof_text(made.proofs))


def tensor(name: str, value: np.ndarray) -> str:
    """`  x = [[…]]`, further rows aligned."""
    sizes = np.abs(value[value != 0])
    plain = not sizes.size or float(sizes.min()) >= 1e-4
    text = np.array2string(
        value, precision=4, suppress_small=True, max_line_width=WIDTH - 16,
        formatter=None if plain else {"float_kind": lambda x: f"{x:.4g}"},
    )  # fmt: skip
    rows = [row for row in text.splitlines() if row.strip()]
    return f"  {name:8s} " + textwrap.indent("\n".join(rows), " " * 11).lstrip()


def proof_text(proofs: list[Proof]) -> str:
    """Every cell of the first input, the largest difference of all of them."""
    first = proofs[0]
    rows = [f"{'cell':16s} {'numeric':>14s} {'by hand':>14s} {'difference':>12s}"]
    for cell in np.ndindex(first.by_hand.shape):
        a, b = first.numeric[cell], first.by_hand[cell]
        name = f"d{first.name}[{','.join(map(str, cell))}]"
        rows.append(f"{name:16s} {a:14.9f} {b:14.9f} {abs(a - b):12.1e}")
    rows.append("")
    for p in proofs:
        rows.append(f"d{p.name}: {p.by_hand.size} cells, largest difference {p.error:.1e}")
    return "\n".join(rows)


def closed_forms(op: Op) -> str:
    """How an op that is not differentiated is held against closed forms."""
    from backglass.checks.update import check_update

    rows = [
        f"{r.what:24s} error {r.error:.1e}   {'ok' if r.ok else 'BAD'}" for r in check_update(op)
    ]
    return "\n".join(["Nothing is differentiated; against closed forms:", *rows]) if rows else ""


def as_json(op: Op, call: str) -> str:
    """The page as JSON: texts as above, the example's numbers as lists."""
    made = example(op, call)
    sig = op.signatures[call]
    found = {
        "op": op.name,
        "call": call,
        "sentence": sentence(op.maths.__doc__),
        "doc": inspect.cleandoc(op.maths.__doc__ or ""),
        "equals": inspect.cleandoc(sig.equals),
        "calls": {s.call: spec_text(s) for s in op.signatures.values()},
        "derivation": derivation(op.maths.__doc__ or ""),
        "sizes": made.sample.sizes,
        "attrs": made.sample.attrs,
        "steps": [
            {
                "call": s.signature.call,
                "ins": {k: v.tolist() for k, v in s.ins.items()},
                "outs": {k: v.tolist() for k, v in s.outs.items()},
            }
            for s in made.steps
        ],
        "proofs": [
            {
                "input": p.name, "by_hand": p.by_hand.tolist(), "numeric": p.numeric.tolist(),
                "error": p.error,
            }
            for p in made.proofs
        ],
    }  # fmt: skip
    return json.dumps(found) + "\n"
