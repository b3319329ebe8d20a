"""What a recording keeps of every tensor: a picture of at most 32×32 blocks, and a histogram."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backglass.debugger.problem import Problem, damaged
from backglass.debugger.reading import Reading


def picture(reading: Reading, version: int) -> bytes:
    """uint32 down and across, then the planes min, max, mean, count not finite as float32."""
    import ml_dtypes

    require_kept(reading.version(version), "picture")
    down, across, planes = reading.blob(version, "down, across, planes")
    if not (type(down) is type(across) is int and isinstance(planes, bytes)) or (
        not 0 < down * across * 4 * 2 == len(planes)
    ):
        raise damaged(reading.index, f"the picture of version {version} is not of its size")
    head = np.array([down, across], "<u4").tobytes()
    return head + np.frombuffer(planes, ml_dtypes.bfloat16).astype("<f4").tobytes()


def histogram(reading: Reading, version: int) -> dict[str, Any]:
    """By powers of two; of a large tensor every n-th row was counted."""
    from backglass.device.health import BINS, LOWEST, SAMPLE

    v = reading.version(version)
    require_kept(v, "histogram")
    (found,) = reading.blob(version, "histogram")
    if not isinstance(found, bytes) or len(found) != BINS * 8:
        raise damaged(reading.index, f"the histogram of version {version} is not of its size")
    size, columns = math.prod(v["shape"]), v["shape"][-1] if v["shape"] else 1
    counted = -(-(size // columns) // -(-size // SAMPLE)) * columns
    return {
        "bins": np.frombuffer(found, "<i8").tolist(), "lowest_exponent": LOWEST - 127,
        "size": size, "counted": counted,
        **{s: v["statistics"][s] for s in ("zeros", "nans", "infs")},
    }  # fmt: skip


def require_kept(v: dict[str, Any], what: str) -> None:
    if v["pictured"]:
        return
    why = f"every number of it is {v['statistics']['min']}"
    if not v["constant"]:
        why = "the step was recorded at level 0, which keeps statistics only"
    raise Problem(404, f"{v['tensor']} (version {v['number']}) has no {what}: {why}")
