"""One weight through AdamW, with the recorded numbers put into the formula.

The results are those of the op's own NumPy in float32, on this one weight.  A kernel may contract a
product and a sum into one rounding (FMA), so it may differ by one unit in the last place.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from backglass.debugger.again import key_of
from backglass.debugger.bench import (
    Bench,
    Row,
    bench_of,
    by_name,
    decays,
    of_parameter,
)
from backglass.debugger.bench_values import cell_of, index_of
from backglass.debugger.matrix import Cache, matrix_of, text_of
from backglass.debugger.problem import Problem
from backglass.debugger.reading import Reading

MOMENTS = ("p", "m", "v", "dp", "master")


def update_of(reading: Reading, cache: Cache, tensor: str | None, row: int, column: int) -> Row:
    """Every symbol's number, the lines of the formula, and what was recorded afterwards.  Raises
    Problem if the recording has statistics only, and no check has done the step again."""
    with reading.asking() as db:
        found = db.execute("select k from events where op = 'adamw' order by k desc").fetchone()
    if found is None:
        raise Problem(404, "This recording has no AdamW update: it was cut off before.")
    b = of_parameter(bench_of(reading, found[0]), tensor)
    before, after = by_name(b.event["ins"]), by_name(b.event["outs"])
    p = before["p"]["version"]

    def at(o: Row, r: int = row, c: int = column) -> Any:
        return number_at(reading, o["version"], cache, r, c)

    was = {name: at(o) for name, o in before.items() if name in MOMENTS}
    hyper = [np.float32(at(before["hyper"], 0, i)) for i in range(8)]
    scale = np.float32(at(before["scale"], 0, 0))
    now = {name: at(after[name]) for name in was}
    made = by_hand(b, was, scale, hyper, decays(p["tensor"], b.reading.model))
    return {
        "tensor": p["tensor"], "index": index_of(p["shape"], cell_of(p["shape"], row, column)),
        "t": b.reading.manifest["step"], "decays": decays(p["tensor"], b.reading.model),
        "symbols": symbols(was, hyper), "clip": clip_of(b, cache, scale, hyper),
        "lines": lines(was, scale, hyper, decays(p["tensor"], b.reading.model), made),
        "results": [
            {"name": name, "by_hand": text_of(made[name]), "recorded": text_of(now[name]),
             "version": after[name]["version"]["id"], "ulps": ulps(made[name], now[name])}
            for name in ("m", "v", "p", *(["master"] if "master" in was else []))
        ],
    }  # fmt: skip


def number_at(reading: Reading, v: Row, cache: Cache, row: int, column: int) -> Any:
    """As recorded, or as it was when a check did the step again."""
    cell = cell_of(v["shape"], row, column)
    if not v["stored"] and (again := cache.peek(key_of(reading, v))) is not None:
        return again.flat[cell]
    return matrix_of(reading, v, cache).read((row, row + 1, column, column + 1))[0, 0]


def by_hand(b: Bench, was: Row, scale: Any, hyper: list, decayed: bool) -> Row:
    """p, m, v after the update by the op's NumPy, in float32, each rounded as it is stored."""
    single = {k: np.array([x], np.float32) for k, x in was.items()}
    master = single.get("master")
    with np.errstate(all="ignore"):
        p, m, v, dp, master = b.op.maths.adamw(
            single["p"], single["m"], single["v"], single["dp"], master, np.array([scale]),
            np.array(hyper, np.float32), decay_size=int(decayed),
        )  # fmt: skip
    made = {"p": p, "m": m, "v": v, "dp": dp, "master": master}
    return {k: x[0].astype(was[k].dtype) for k, x in made.items() if k in was}


def symbols(was: Row, hyper: list) -> Row:
    """What each symbol of the formula is."""
    names = ("lr", "β₁", "β₂", "ε", "λ", "max_norm", "1/(1 − β₁ᵗ)", "1/(1 − β₂ᵗ)")
    given = {k: text_of(x) for k, x in was.items()}
    return given | {name: text_of(x) for name, x in zip(names, hyper, strict=True)}


def clip_of(b: Bench, cache: Cache, scale: Any, hyper: list) -> Row:
    """The factor that every gradient was multiplied by, and the norm that it came from."""
    with b.reading.asking() as db:
        found = db.execute(
            "select id from versions where tensor = 'norm' and event < ? order by event desc",
            (b.event["k"],),
        ).fetchone()
    norm = None
    with contextlib.suppress(Problem):  # it was not stored
        norm = found and text_of(number_at(b.reading, b.reading.version(found[0]), cache, 0, 0))
    return {"factor": text_of(scale), "norm": norm, "max_norm": text_of(hyper[5])}


def lines(was: Row, scale: Any, hyper: list, decayed: bool, made: Row) -> list[Row]:
    """The formula, line by line: as it is, with the numbers put in, and what comes out."""
    lr, b1, b2, eps, wd, _, c1, c2 = hyper
    wd = wd if decayed else np.float32(0)
    w = np.float32(was["master"] if "master" in was else was["p"])
    with np.errstate(all="ignore"):
        g = np.float32(was["dp"]) * scale
        m_hat, root = np.float32(made["m"]) * c1, np.sqrt(np.float32(made["v"]) * c2)
        step = m_hat / (root + eps) + wd * w
    t = {k: text_of(x) for k, x in {"g": g, "m": m_hat, "v": root, "step": step, "w": w}.items()}
    n = {k: text_of(x) for k, x in {**was, "lr": lr, "b1": b1, "b2": b2, "eps": eps}.items()}
    n |= {"wd": text_of(wd), "c1": text_of(c1), "c2": text_of(c2), "scale": text_of(scale)}
    new = {k: text_of(x) for k, x in made.items()}
    weight = "master" if "master" in was else "p"
    rows = [
        ("g", "dp · clip", f"{n['dp']} · {n['scale']}", t["g"]),
        ("m′", "β₁·m + (1 − β₁)·g", f"{n['b1']}·{n['m']} + (1 − {n['b1']})·{t['g']}", new["m"]),
        ("v′", "β₂·v + (1 − β₂)·g²", f"{n['b2']}·{n['v']} + (1 − {n['b2']})·{t['g']}²", new["v"]),
        ("m̂", "m′/(1 − β₁ᵗ)", f"{new['m']} · {n['c1']}", t["m"]),
        ("√v̂", "√( v′/(1 − β₂ᵗ) )", f"√( {new['v']} · {n['c2']} )", t["v"]),
        ("step", "m̂/(√v̂ + ε) + λ·p", f"{t['m']}/({t['v']} + {n['eps']}) + {n['wd']}·{t['w']}",
         t["step"]),
        ("p′", "p − lr·step", f"{t['w']} − {n['lr']}·{t['step']}", new[weight]),
    ]  # fmt: skip
    keys = ("name", "formula", "numbers", "value")
    return [dict(zip(keys, row, strict=True)) for row in rows]


def ulps(a: Any, b: Any) -> int | None:
    """How many numbers of their dtype apart; None if one is not finite."""
    if not (np.isfinite(np.float32(a)) and np.isfinite(np.float32(b))):
        return 0 if a.tobytes() == b.tobytes() else None
    kind = {2: np.int16, 4: np.int32, 8: np.int64}[a.dtype.itemsize]
    bits = [int(x.reshape(1).view(kind)[0]) for x in (a, b)]
    ordered = [x if x >= 0 else -(x & np.iinfo(kind).max) for x in bits]
    return abs(ordered[0] - ordered[1])
