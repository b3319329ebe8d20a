"""What a process on the host can do and has used: for devices whose memory is the host's."""

from __future__ import annotations

import sys
import time

import numpy as np


def peak_bytes() -> int:
    """Peak resident memory of this process; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def blas_flops() -> float:
    """FLOP/s of the fastest of a few large fp32 products by NumPy's BLAS."""
    a = np.ones((768, 768), np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 768**3 / min(times)
