"""Compiling the kernels a program needs before it runs: each with one signature, in parallel
processes.

What is compiled there lands in Numba's cache on disk; the process that trains then only loads it.
"""

from __future__ import annotations

import base64
import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

Task = tuple[str, str, tuple]  # module, kernel, argument types


def missing(tasks: Iterable[Task]) -> list[Task]:
    """Tasks that are not in the cache yet, each once."""
    found = dict.fromkeys((m, k, t) for m, k, t in tasks)
    return [task for task in found if not _is_cached(task)]


def compile_all(tasks: list[Task], progress: Callable[[int, int], None]) -> None:
    """Compile tasks in as many processes as there are cores; progress(done, total) after each.

    Tasks of one module stay together: they share helpers, which are compiled once then.
    """
    by_module: dict[str, list[Task]] = {}
    for task in tasks:
        by_module.setdefault(task[0], []).append(task)
    shares: list[list[Task]] = [[] for _ in range(max(1, os.cpu_count() or 1))]
    for group in sorted(by_module.values(), key=len, reverse=True):
        min(shares, key=len).extend(group)
    workers = [_start(share) for share in shares if share]
    done = 0
    progress(0, len(tasks))
    for worker in workers:
        with worker:  # closes its pipe and waits
            for _ in worker.stdout or ():
                done += 1
                progress(done, len(tasks))


def _start(share: list[Task]) -> subprocess.Popen:
    # This process's path: with -m a clone in the working directory would come before the installed
    # package, and what is compiled there is another file's cache.
    start = (
        f"import sys; sys.path[:] = {sys.path!r}; from backglass.device.compile import work; work()"
    )
    command = [sys.executable, "-c", start]
    worker = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert worker.stdin is not None
    worker.stdin.write(base64.b64encode(pickle.dumps(share)).decode())
    worker.stdin.close()
    return worker


def _kernel(task: Task) -> Any:
    return getattr(importlib.import_module(task[0]), task[1])


def _is_cached(task: Task) -> bool:
    """Whether loading this kernel needs no compiler.  Asks Numba's cache index without loading the
    code."""
    kernel = _kernel(task)
    if not hasattr(kernel, "targetctx"):  # JIT disabled, or a plain Python rung
        return True
    try:
        cache = kernel._cache
        key = cache._index_key(task[2], kernel.targetctx.codegen())
        return key in cache._cache_file._load_index()
    except AttributeError:  # another Numba: let the worker find out
        return False


def work() -> None:
    """A worker: compile the tasks on standard input, print a line for each one done."""
    for task in pickle.loads(base64.b64decode(sys.stdin.read())):
        _kernel(task).compile(task[2])
        print(task[1], flush=True)
