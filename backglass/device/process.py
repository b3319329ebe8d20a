"""What a process on the host can do and has used: for devices whose memory is the host's."""

from __future__ import annotations

import sys
import time

import numpy as np

from backglass.execute.memory import Memory


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


class HostMemory:
    """The part of a Device that is the same where its memory is this process's."""

    def memory(self) -> Memory:
        return Memory()

    def free_bytes(self) -> int | None:
        return None

    def used_bytes(self) -> int:
        return peak_bytes()

    def wait(self) -> None:
        pass  # a line is done when it returns

    def peak_flops(self, dtype: str) -> float:
        return blas_flops()
