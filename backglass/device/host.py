"""The host as a device: how CPU kernels are compiled and cached.

`@kernel` marks what a program calls (parallel, outputs first); `@inline` marks serial helpers that
kernels call.  With NUMBA_DISABLE_JIT=1 both are plain Python functions and a breakpoint stops in
them.
"""

import hashlib
import os
from pathlib import Path

from backglass.cache import cache_folder


def _sources_hash() -> str:
    """Numba's cache does not see changes in the helpers a kernel imports; a folder per state of the
    sources does."""
    package = Path(__file__).parent.parent
    files = sorted([*package.glob("device/*.py"), *package.glob("ops/**/*.py")])
    text = b"".join(f.read_bytes() for f in files) + os.environ.get("BACKGLASS_LANES", "").encode()
    return hashlib.sha256(text).hexdigest()[:16]


def _cache_folder() -> Path:
    return Path(os.environ.get("NUMBA_CACHE_DIR", cache_folder() / "numba")) / _sources_hash()


# Before Numba is imported.  Between two parallel loops a thread may spin or sleep.  A sleeping one
# wakes late: a step of tiny takes 31 ms.  A spinning one that lost its core to another process
# holds up the next loop: 21 ms idle, 164 beside a busy process.  Spinning for 2,000 rounds, then
# sleeping: 23 idle, 47 beside it, where sleeping alone takes 42 (2 cores of an Intel Sapphire
# Rapids, 2026-11-24).  The first is for GNU's OpenMP and wins over the second, for others.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numba  # noqa: E402
from numba import njit, prange  # noqa: E402

numba.config.CACHE_DIR = str(_cache_folder())

__all__ = ["FASTMATH", "inline", "kernel", "numba", "part", "prange"]

# Sums may be reordered by the vectoriser (always the same way for the same shape and machine) and
# products contracted to FMA.  Not nnan or ninf: a NaN must stay a NaN, it is what the trainer
# stops on.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

kernel = njit(parallel=True, nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)
inline = njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)
# A helper with one caller becomes part of it: LLVM would otherwise optimise it once more with each
# kernel that calls its caller.
part = njit(inline="always", error_model="numpy", fastmath=FASTMATH)
