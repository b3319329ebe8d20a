"""Kernels in the CUDA thread model, compiled for a GPU that need not be there."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from cuda.pathfinder import DynamicLibNotFoundError
from numba import cuda
from numba.cuda import dispatcher, types
from numba.cuda.cudadrv.error import NvvmSupportError

from backglass.device.cuda_threads import Transposed, has_memory, held
from backglass.errors import UserError

NUMBERS = {"float32": types.float32, "uint16": types.uint16, "int32": types.int32}


def resources(kernel: Any, threads: Any, operands: tuple, arch: int) -> tuple[int, int, int, int]:
    """(registers, bytes spilled or held in local arrays, bytes of shared memory, warps)."""
    try:
        said = assembled(ptx(kernel, operands, arch), arch)
    except (NvvmSupportError, DynamicLibNotFoundError) as error:
        raise UserError(
            "bench ops --aot --rung compiles CUDA-thread rungs with NVIDIA's libraries, and one is "
            f"missing ({str(error).splitlines()[0]}): python -m pip install 'numba-cuda[cu13]'"
        ) from None
    registers, stack, shared = (
        int(m[1]) if (m := re.search(rf"info.*\b{what}", said)) else 0
        for what in (r"used (\d+) registers", r"(\d+) stack", r"(\d+) bytes smem")
    )
    return registers, stack, shared, math.ceil(np.prod(threads) / 32)


def ptx(kernel: Any, operands: tuple, arch: int) -> str:
    """The kernel for these operands, in NVIDIA's portable assembly language."""
    with _pretend_gpu(arch):
        text, _ = cuda.compile_ptx(kernel.py_func, signature(operands), cc=divmod(arch, 10))
    return text


def signature(operands: tuple) -> tuple:
    return tuple(map(_numba_type, operands))


def name(kernel: Any, operands: tuple) -> str:
    """Of a kernel with its types."""
    return f"{kernel.__name__}{signature(operands)}"


def _numba_type(operand: Any) -> Any:
    if operand is None:
        return types.float32[::1]
    if has_memory(operand):
        turned = isinstance(operand, Transposed)
        t = operand.of if turned else operand
        return types.Array(NUMBERS[held(t).name], len(t.shape), "F" if turned else "C")
    return {bool: types.boolean, int: types.int64, np.float32: types.float32}[type(operand)]


@contextlib.contextmanager
def _pretend_gpu(arch: int) -> Iterator[None]:
    """numba asks the current GPU what to compile functions for that a kernel calls."""
    asked = dispatcher.get_current_device
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=divmod(arch, 10))
    try:
        yield
    finally:
        dispatcher.get_current_device = asked


def assembled(text: str, arch: int) -> str:
    """What NVIDIA's assembler says of it."""
    from cuda.bindings import nvjitlink

    options = [f"-arch=sm_{arch}", "-verbose", "-Xptxas=-v"]
    linker, source = nvjitlink.create(len(options), options), text.encode() + b"\0"
    nvjitlink.add_data(linker, nvjitlink.InputType.PTX, source, len(source), "kernel")
    nvjitlink.complete(linker)
    log = bytearray(nvjitlink.get_info_log_size(linker))
    nvjitlink.get_info_log(linker, log)
    nvjitlink.destroy(linker)
    return log.decode()
