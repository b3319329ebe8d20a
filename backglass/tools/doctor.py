"""doctor: what this machine offers, what is missing, and the command that mends it.

Every check runs in a fence: something that is absent or broken becomes a line, never a crash.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from backglass.tools import doctor_gpu
from backglass.tools.finding import Finding, pip, version

GIB = 1 << 30
LEAST_MEMORY = 2 * GIB
LEAST_DISK = 2 * GIB


def examine() -> list[Finding]:
    """Every check, in the order a reader wants them."""
    return [_fenced(name, check) for name, check in CHECKS.items()]


def _fenced(name: str, check: Callable[[str], Finding]) -> Finding:
    try:
        return check(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        return Finding(name, False, "the check itself failed", reason)


def python(name: str) -> Finding:
    ok = sys.version_info >= (3, 11)
    fix = "" if ok else "uv venv --python 3.12 && uv pip install backglass"
    found = f"{platform.python_version()}, {platform.platform()}"
    return Finding(name, ok, found, "" if ok else "3.11 or newer is needed", fix)


def cores(name: str) -> Finding:
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    quota = cpu_quota()
    found = f"{usable} of {total} usable, {cpu_name()}"
    if quota and quota < usable:
        return Finding(
            name, False, found + f", but a quota of {quota:g} cores",
            "more threads than the quota allows stall each other",
            f"export NUMBA_NUM_THREADS={max(1, int(quota))}",
        )  # fmt: skip
    return Finding(name, True, found)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def cpu_quota() -> float | None:
    """Cores that a container's control group allows, if it limits them."""
    path = Path("/sys/fs/cgroup/cpu.max")
    if not path.is_file():
        return None
    limit, _, period = path.read_text().partition(" ")
    return None if limit == "max" else int(limit) / int(period)


def instructions(name: str) -> Finding:
    features = importlib.import_module("llvmlite.binding").get_host_cpu_features()
    wanted = ("avx512f", "avx512bf16", "amx-bf16", "avx2", "fma", "neon", "sve")
    have = ", ".join(f for f in wanted if features.get(f)) or "none of the wide ones"
    lanes = importlib.import_module("backglass.device.vector_ir").LANES
    override = " (BACKGLASS_LANES is set)" if "BACKGLASS_LANES" in os.environ else ""
    best = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
    found = f"{have}; kernels use {lanes} lanes of fp32{override}"
    if lanes < best:
        return Finding(name, False, found, f"this CPU has {best}", "unset BACKGLASS_LANES")
    return Finding(name, True, found)


def blas(name: str) -> Finding:
    numpy = importlib.import_module("numpy")
    info = numpy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    label = f"NumPy {numpy.__version__} with {info.get('name')} {info.get('version', '')}".strip()
    threads = blas_threads()
    count = f", {threads} threads" if threads else ""
    if info.get("name") in (None, "", "none", "lapack_lite"):
        why = "without a BLAS --matmul blas and --device numpy are very slow"
        return Finding(name, False, label, why, pip("numpy") + " --force-reinstall")
    return Finding(name, True, label + count)


def blas_threads() -> int | None:
    """What the OpenBLAS in this process answers, if there is one to ask."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.is_file() else []
    for path in dict.fromkeys(line.split()[-1] for line in lines if "openblas" in line):
        library = ctypes.CDLL(path)
        for prefix in ("scipy_openblas", "openblas"):
            for suffix in ("64_", ""):
                ask = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
                if ask is not None:
                    return int(ask())
    return None


def numba(name: str) -> Finding:
    if version("numba") is None:
        return Finding(name, False, "absent", "the CPU kernels need it", pip("numba>=0.61"))
    host = importlib.import_module("backglass.device.host")
    config = host.numba.config
    layer = threading_layer(config)
    found = f"{version('numba')}, {config.NUMBA_NUM_THREADS} threads, layer {layer}"
    if config.DISABLE_JIT:
        why = "kernels run as plain Python: for breakpoints, thousands of times slower"
        return Finding(name, False, found + ", JIT disabled", why, "unset NUMBA_DISABLE_JIT")
    if layer == "workqueue":
        return Finding(name, None, found, "works; tbb or OpenMP shares cores better", pip("tbb"))
    if layer == "none":
        why = "no threading layer can be loaded"
        return Finding(name, False, found, why, pip("numba") + " --force-reinstall")
    return Finding(name, True, found)


def threading_layer(config) -> str:
    """The first layer of Numba's priorities that can be loaded."""
    asked = str(config.THREADING_LAYER)
    pools = {"tbb": "tbbpool", "omp": "omppool", "workqueue": "workqueue"}
    order = [asked] if asked in pools else list(config.THREADING_LAYER_PRIORITY)
    for layer in order:
        try:
            importlib.import_module(f"numba.np.ufunc.{pools[layer]}")
            return layer
        except Exception:  # absent, too old, or warned about
            continue
    return "none"


def memory(name: str) -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    free = next((int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable")), total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    capped = f", a limit of {int(text) / GIB:.1f} GiB" if text.isdigit() else ""
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free{capped}"
    if min(free, int(text) if text.isdigit() else free) < LEAST_MEMORY:
        return Finding(name, False, found, "compiling and tiny need 2 GiB; end other programs",
                       "ps -eo rss,pid,comm --sort=-rss | head")  # fmt: skip
    return Finding(name, True, found)


def disk(name: str) -> Finding:
    usage = shutil.disk_usage(Path.cwd())
    found = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free in {Path.cwd()}"
    if usage.free < LEAST_DISK:
        why = "checkpoints of gpt2-124m are 1.5 GB each"
        return Finding(name, False, found, why, "du -xh . | sort -h | tail")
    return Finding(name, True, found)


def kernel_cache(name: str) -> Finding:
    host = importlib.import_module("backglass.device.host")
    current = Path(host.numba.config.CACHE_DIR)
    base = current.parent
    states = [p for p in base.iterdir() if p.is_dir()] if base.is_dir() else []
    size = sum(folder_bytes(p) for p in states)
    found = f"{base}, {size / (1 << 20):.1f} MiB, {len(states)} states of the sources"
    at = next(p for p in (base, *base.parents) if p.exists())
    if not os.access(at, os.W_OK):
        why = f"{at} cannot be written: kernels are compiled again in every process"
        return Finding(name, False, found, why, "export BACKGLASS_CACHE=$HOME/backglass-cache")
    if size > GIB:
        stale = f"find '{base}' -mindepth 1 -maxdepth 1 ! -name {current.name} -exec rm -r {{}} +"
        return Finding(name, False, found, "old states of the sources pile up", stale)
    return Finding(name, True, found)


def folder_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def mpi(name: str) -> Finding:
    found, launcher = version("mpi4py"), shutil.which("mpiexec") or shutil.which("mpirun")
    have = f"mpi4py {found or 'absent'}, launcher {launcher or 'absent'}"
    if found and launcher:
        return Finding(name, True, have)
    return Finding(name, None, have, "needed for several processes", pip("mpi4py", "mpich"))


def wsl(name: str) -> Finding:
    path = Path("/proc/version")
    if not path.is_file() or "microsoft" not in path.read_text().lower():
        return Finding(name, None, "no")
    here = Path.cwd()
    if here.parts[:2] == ("/", "mnt"):
        why = "Windows' file system is many times slower than Linux's"
        return Finding(name, False, f"yes, in {here}", why, f"cp -r '{here}' ~ && cd ~/{here.name}")
    return Finding(name, True, "yes")


CHECKS: dict[str, Callable[[str], Finding]] = {
    "python": python,
    "cores": cores,
    "instructions": instructions,
    "blas": blas,
    "numba": numba,
    "memory": memory,
    "disk": disk,
    "kernel cache": kernel_cache,
    "gpu": doctor_gpu.gpu,
    "triton": doctor_gpu.triton,
    "C compiler": doctor_gpu.compiler,
    "cupy": doctor_gpu.cupy,
    "cublaslt": doctor_gpu.cublaslt,
    "cuda": doctor_gpu.cuda,
    "mpi": mpi,
    "wsl": wsl,
}
