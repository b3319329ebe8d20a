"""How a step flows through the layers: the size of activations, gradients and updates of each, from
the recorded statistics; and all attention maps of a micro-batch as one image.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backglass.debugger.matrix import Cache, matrix_of
from backglass.debugger.problem import Problem
from backglass.debugger.pyramid import finished, fold, planes_of, shades
from backglass.debugger.reading import Reading

EMBEDDING, HEAD = "embed", "head"
THUMB = 32  # pixels of a head's map, at most
MOST_MAPS = 4096
MOST_NUMBERS = 1 << 24  # of one map


def flow(reading: Reading, run: int) -> dict[str, Any]:
    """{"parts": a row for the embedding, each layer and the head; "maps": the attention of each
    layer} of micro-batch `run`.  A figure that the recording does not have is None."""
    made = last_made(reading, run)
    layers = reading.manifest["config"].get("layers")
    if type(layers) is not int or not 0 < layers < 10_000:
        raise Problem(422, "The manifest of this recording does not say how many layers there are.")
    names = [EMBEDDING, *(f"h{l}" for l in range(layers)), HEAD]
    weights, gradients = squares(reading, "param"), squares(reading, "grad")
    updates = updates_of(reading)
    parts, before = [], None
    for name in names:
        x, dx = (norm_of(reading, made.get(tensor, -1)) for tensor in stream(name, made))
        w, dw, change = (root(found, name) for found in (weights, gradients, updates))
        parts.append({
            "name": name, "x": x, "growth": ratio(x, before), "dx": dx, "w": w, "dw": dw,
            "update": ratio(change, w),
        })  # fmt: skip
        before = x
    maps = [{"att": made.get(f"h{l}.att"), "datt": made.get(f"h{l}.datt")} for l in range(layers)]
    return {"parts": parts, "maps": maps}


def last_made(reading: Reading, run: int) -> dict[str, int]:
    """Tensor -> the last version that an event of this micro-batch made."""
    with reading.asking() as db:
        rows = db.execute(
            "select v.tensor, v.id from versions v join events e on e.k = v.event "
            "where e.run = ? and e.phase != 'update' order by v.number limit 1000000", (run,),
        ).fetchall()  # fmt: skip
    return dict(rows)


def stream(part: str, made: dict[str, int]) -> tuple[str, str]:
    """The residual stream behind a part, and its gradient.  The head has none: it only reads."""
    if part == HEAD:
        return "", ""
    if part == EMBEDDING:
        return ("embd_drop", "dembd_drop") if "embd_drop" in made else ("embd", "dembd")
    return f"{part}.res3", f"{part}.dres3"


def norm_of(reading: Reading, version: int) -> float | None:
    return None if version < 0 else reading.version(version)["statistics"]["norm"]


def squares(reading: Reading, kind: str) -> dict[str, float]:
    """‖·‖² of each parameter before the step, or of each gradient as the update was given it."""
    sql = {
        "param": "select tensor, norm from versions where kind = 'param' and event is null",
        "grad": "select v.tensor, v.norm from operands o join versions v on v.id = o.version "
                "join events e on e.k = o.event where e.op = 'global_norm' and o.role = 'in'",
    }[kind]  # fmt: skip
    with reading.asking() as db:
        return {name: float(norm) ** 2 for name, norm in db.execute(sql + " limit 1000000")}


def updates_of(reading: Reading) -> dict[str, float]:
    """‖·‖² of what the update changed of each parameter, if the recording says it."""
    found = reading.manifest.get("updates")
    if not isinstance(found, dict):
        return {}
    return {k: float(v) ** 2 for k, v in found.items() if isinstance(v, (int, float))}


def root(found: dict[str, float], part: str) -> float | None:
    """√Σ of a part's parameters; of gradients too: h0.dqkvw, dwte."""
    own = [x for name, x in found.items() if part_of(name) == part]
    return math.sqrt(sum(own)) if own else None


def part_of(name: str) -> str:
    head, dot, _ = name.partition(".")
    if dot:
        return head
    return HEAD if name.removeprefix("d").startswith("lnf") else EMBEDDING


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def attention(reading: Reading, run: int, name: str, batch: int, cache: Cache) -> bytes:
    """The maps `att` or `datt` of all layers and heads, of one sequence: uint32 layers, heads,
    height, width, then float32 the largest number, then shades (pyramid.py) of the largest in each
    block; dAtt has signs, so of the mean."""
    made = last_made(reading, run)
    ids = [made[t] for t in sorted(made, key=layer_of) if t.endswith(f".{name}")]
    versions = [reading.version(v) for v in ids]
    if not versions:
        raise Problem(404, f"This recording has no {name}: attention is not spelled out in it.")
    B, heads, T, keys = shape_of(versions)
    if batch >= B:
        raise Problem(404, f"sequence {batch}: there are sequences 0 to {B - 1}")
    level = max(0, (-(-max(T, keys) // THUMB) - 1).bit_length())
    tops = (max(abs(s["min"]), abs(s["max"])) for s in (v["statistics"] for v in versions))
    largest = float(np.float32(max(tops))) or 1.0
    plane = "max" if name == "att" else "mean"
    maps = []
    for v in versions:
        m = matrix_of(reading, v, cache)
        for head in range(heads):
            first = (batch * heads + head) * T
            window = 0, T, 0, keys
            pixels = fold(planes_of(m.read((first, first + T, 0, keys))), 1 << level)
            maps.append(shades(finished(pixels, window, level), plane, largest))
    head_ = np.array([len(versions), heads, *maps[0].shape], "<u4").tobytes()
    return head_ + np.float32(largest).tobytes() + b"".join(x.tobytes() for x in maps)


def layer_of(tensor: str) -> int:
    digits = tensor.partition(".")[0][1:]
    return int(digits) if digits.isdecimal() and len(digits) < 6 else -1


def shape_of(versions: list[dict[str, Any]]) -> list[int]:
    """B, NH, T, T of all of them."""
    shape = versions[0]["shape"]
    if len(shape) != 4 or any(v["shape"] != shape for v in versions):
        raise Problem(422, f"attention of shape {shape}, expected B NH T T in every layer")
    if len(versions) * shape[1] > MOST_MAPS:
        raise Problem(413, f"{len(versions)} × {shape[1]} maps are too many for one image")
    if shape[2] * shape[3] > MOST_NUMBERS:
        raise Problem(413, f"a map of {shape[2]}×{shape[3]} weights is too large for one image")
    return shape
