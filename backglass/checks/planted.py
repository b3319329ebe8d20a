"""Planted bugs: a checker that has never failed proves nothing.

Three nurseries, each with the mistakes people really make there:
    maths     the source of a backward (or update) function is changed at one place;
              the op or update check must notice
    kernel    a right device is made to misbehave in one way;
              the kernel check must notice (planted_kernel.py)
    program   one line of a recorded model is changed;
              validate, mirror or the directional derivative must notice (planted_program.py)
A change that leaves every result as it was is no bug; those are found by comparing numbers and
listed with a reason.
"""

from __future__ import annotations

import ast
import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from backglass.checks.op import check_op
from backglass.checks.samples import call_maths, forward_inputs, with_backward
from backglass.checks.update import check_update
from backglass.ops import Op

# Changes that leave every result as it was: (op, the line as changed) -> the reason.
EQUIVALENT: dict[tuple[str, str], str] = {
    ("add", ""): "both results of d_add are the same copy of dy",
    ("adamw", "return (w, m, v, np.zeros_like(dp) * 1.001, w)"): "0 · 1.001 = 0",
    (
        "adamw",
        "return (w, m, v, np.zeros_like(p), w)",
    ): "only dp's shape is used, p has it too",
    (
        "adamw",
        "return (w, m, v, np.zeros_like(m), w)",
    ): "only dp's shape is used, m has it too",
    (
        "adamw",
        "return (w, m, v, np.zeros_like(v), w)",
    ): "only dp's shape is used, v has it too",
    ("adamw", "decays = np.arange(m.size) < decay_size"): "m has p's size",
    ("adamw", "decays = np.arange(v.size) < decay_size"): "v has p's size",
    ("adamw", "decays = np.arange(dp.size) < decay_size"): "dp has p's size",
    (
        "attention_cached",
        "y = np.zeros_like(qkv[:, :, 1])",
    ): "only the shape of q is used, k has it too",
    (
        "embed",
        "def d_embed(dx, ids, *, T, C, V, P=1):",
    ): "P is a size of the call where there is a wpe",
    ("clip", "return (np.full_like(norm, np.nan) * 1.001,)"): "NaN · 1.001 = NaN",
}


@dataclass(frozen=True)
class Planted:
    """One planted bug and what became of it: caught, missed, or equivalent (no change of any
    result)."""

    nursery: str
    op: str
    kind: str
    place: str
    outcome: str

    @property
    def reason(self) -> str:
        """Why an equivalent one changes nothing; empty if nobody has written it down."""
        if self.nursery == "program" and self.kind == "swapped lines":
            return (
                "d_matmul_w and d_matmul_x read and write nothing of each other: any order is right"
            )
        return EQUIVALENT.get((self.op, self.place), "")


def maths_bugs(op: Op) -> list[Planted]:
    """Plant every kind at every place of the op's backward calls, or of its update; run the
    checks."""
    calls = list(op.spec.backward) or [op.name]
    found = []
    for call in calls:
        source = ast.parse(inspect.getsource(getattr(op.maths, call)))
        for kind, tree in mutants(source):
            outcome = _try_maths(op, call, _compile(tree, op.maths, call))
            found.append(Planted("maths", op.name, kind, changed(source, tree), outcome))
    return found


def small_cases(op: Op) -> tuple[dict, ...]:
    """The op's three smallest cases: a planted bug that hides there would hide anywhere."""
    return tuple(
        sorted(op.spec.cases, key=lambda c: np.prod([v for k, v in c.items() if k[0].isupper()]))[
            :3
        ]
    )


def changed(before: ast.Module, after: ast.Module) -> str:
    """The line that differs, as it reads now; a line that is gone reads `pass`."""
    lines = zip(ast.unparse(before).splitlines(), ast.unparse(after).splitlines(), strict=True)
    return next((new.strip() for old, new in lines if old != new), "")


def _try_maths(op: Op, call: str, wrong: Callable) -> str:
    right = getattr(op.maths, call)
    setattr(op.maths, call, wrong)
    try:
        with np.errstate(all="ignore"):
            results = check_op(op, small_cases(op)) + check_update(op)
        if not all(r.ok for r in results):
            return "caught"
        return "equivalent" if _same_results(op, call, right, wrong) else "missed"
    except Exception:  # a crash is as loud as a failed check
        return "caught"
    finally:
        setattr(op.maths, call, right)


def _same_results(op: Op, call: str, right: Callable, wrong: Callable) -> bool:
    sig = op.signatures[call]
    for i, case in enumerate(small_cases(op)):
        rng = np.random.default_rng([9, i])
        sample = with_backward(forward_inputs(op, case, rng), rng)
        results = []
        for function in (right, wrong):
            setattr(op.maths, call, function)
            results.append(call_maths(sig, sample, dict(sample.values)))
        for a, b in zip(*results, strict=True):
            if not np.allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(a).max(initial=0)):
                return False
    return True


def mutants(tree: ast.Module) -> Iterator[tuple[str, ast.Module]]:
    """(kind, the changed source) for every kind and place."""
    for kind, change in KINDS.items():
        for i in range(len(list(ast.walk(tree)))):
            for k in range(8):
                mutated = copy.deepcopy(tree)
                if not change(mutated, list(ast.walk(mutated))[i], k):
                    break
                yield kind, ast.fix_missing_locations(mutated)


def _compile(tree: ast.Module, module: ModuleType, call: str) -> Callable:
    namespace = dict(vars(module))
    exec(compile(tree, f"<planted in {call}>", "exec"), namespace)
    return namespace[call]


def _replace_with(target: ast.AST, new: ast.AST) -> bool:
    """Turn `target` into `new` in place."""
    target.__class__ = new.__class__  # type: ignore[assignment]
    target.__dict__ = dict(new.__dict__)
    return True


def _flip_sign(tree: ast.Module, n: ast.AST, k: int) -> bool:
    if k or not (isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add | ast.Sub)):
        return False
    n.op = ast.Sub() if isinstance(n.op, ast.Add) else ast.Add()
    return True


def _drop_term(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """a + b becomes a, then b: the dropped mean term of a layernorm is one of these."""
    if k > 1 or not (isinstance(n, ast.BinOp) and isinstance(n.op, ast.Add | ast.Sub)):
        return False
    return _replace_with(n, n.left if k == 0 else n.right)


def _drop_factor(tree: ast.Module, n: ast.AST, k: int) -> bool:
    if k > 1 or not (isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult | ast.Div)):
        return False
    return _replace_with(n, n.left if k == 0 else n.right)


def _divide(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """a * b becomes a / b and the other way round."""
    if k or not (isinstance(n, ast.BinOp) and isinstance(n.op, ast.Mult | ast.Div)):
        return False
    n.op = ast.Div() if isinstance(n.op, ast.Mult) else ast.Mult()
    return True


def _scale(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """0.1 % on one result of the function: too small to see in a loss curve."""
    if not isinstance(n, ast.Return):
        return False
    values = n.value.elts if isinstance(n.value, ast.Tuple) else None
    if values is None or k >= len(values):
        return False
    values[k] = ast.BinOp(values[k], ast.Mult(), ast.Constant(1.001))
    return True


def _swap_matmul(tree: ast.Module, n: ast.AST, k: int) -> bool:
    if k or not (isinstance(n, ast.BinOp) and isinstance(n.op, ast.MatMult)):
        return False
    n.left, n.right = n.right, n.left
    return True


def _drop_transpose(tree: ast.Module, n: ast.AST, k: int) -> bool:
    if k:
        return False
    if isinstance(n, ast.Attribute) and n.attr == "T":
        return _replace_with(n, n.value)
    swap = isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
    if swap and n.func.attr == "swapaxes":
        return _replace_with(n, n.func.value)
    return False


def _wrong_axis(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """A reduction over the other axis."""
    if k or not (isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)):
        return False
    if n.func.attr not in ("sum", "mean", "max") or not n.args:
        return False
    axis = ast.unparse(n.args[0])
    n.args[0] = ast.Constant(0 if axis == "-1" else -1)
    return True


def _stale_input(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """Another parameter of the function where one was meant: x for dy, mean for rstd."""
    if not (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)):
        return False
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    names = [a.arg for a in function.args.args]
    others = [o for o in names if o != n.id]
    if n.id not in names or k >= len(others):
        return False
    n.id = others[k]
    return True


def _off_by_one(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """An index, a bound or an exponent one too large; < where ≤ was meant."""
    if k:
        return False
    if isinstance(n, ast.Constant) and type(n.value) is int and n.value >= 0:
        n.value += 1
        return True
    swap = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
    if isinstance(n, ast.Compare) and type(n.ops[0]) in swap:
        n.ops[0] = swap[type(n.ops[0])]()
        return True
    return False


def _drop_line(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """A line that fills part of an array or adds to it is missing."""
    stores = isinstance(n, ast.AugAssign) or (
        isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Subscript)
    )
    adds = isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
    return not k and (stores or adds) and _replace_with(n, ast.Pass())


def _assign_for_add(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """= where += was meant: the last occurrence of a token wins."""
    if k:
        return False
    if isinstance(n, ast.AugAssign):
        return _replace_with(n, ast.Assign([n.target], n.value))
    if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call):
        call = n.value
        if ast.unparse(call.func) == "np.add.at":
            target = ast.Subscript(call.args[0], call.args[1], ast.Store())
            return _replace_with(n, ast.Assign([target], call.args[2]))
    return False


def _swap_results(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """Two results returned in the wrong order."""
    if k or not (isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple)):
        return False
    if len(n.value.elts) < 2:
        return False
    e = n.value.elts
    e[-1], e[-2] = e[-2], e[-1]
    return True


def _wrong_constant(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """A named or literal constant off by 1 %."""
    if k:
        return False
    if isinstance(n, ast.Constant) and type(n.value) is float:
        n.value *= 1.01
        return True
    if (
        isinstance(n, ast.Name)
        and isinstance(n.ctx, ast.Load)
        and n.id.isupper()
        and len(n.id) != 1
    ):
        return _replace_with(
            n, ast.BinOp(ast.Name(n.id, ast.Load()), ast.Mult(), ast.Constant(1.01))
        )
    return False


def _wrong_slice(tree: ast.Module, n: ast.AST, k: int) -> bool:
    """dq, dk and dv in each other's places."""
    if not (isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Tuple)):
        return False
    names = n.targets[0].elts
    if k >= len(names) - 1:
        return False
    names[k], names[k + 1] = names[k + 1], names[k]
    return True


KINDS: dict[str, Callable[[ast.Module, ast.AST, int], bool]] = {
    "flipped sign": _flip_sign,
    "dropped term": _drop_term,
    "dropped factor": _drop_factor,
    "divided instead of multiplied": _divide,
    "scaled by 0.1 %": _scale,
    "swapped matmul operands": _swap_matmul,
    "dropped transpose": _drop_transpose,
    "wrong axis": _wrong_axis,
    "stale input": _stale_input,
    "off by one": _off_by_one,
    "dropped line": _drop_line,
    "missing +": _assign_for_add,
    "swapped results": _swap_results,
    "wrong constant": _wrong_constant,
    "swapped parts": _wrong_slice,
}
