"""Triton without torch: its own CUDA driver, with CuPy's idea of the current device and stream.

Triton 3.6 and 3.7 ask torch for these; 3.8 and 3.9 without torch always launch on the default
stream, and go back to torch's as soon as anybody has imported it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import cupy
import triton
import triton.language as tl
from triton.backends.nvidia.driver import CudaDriver, CudaLauncher, CudaUtils


class CupyDriver(CudaDriver):
    """Launches on CuPy's current stream."""

    def __init__(self) -> None:  # not super().__init__(): that imports torch
        self.utils = CudaUtils()
        self.launcher_cls = CudaLauncher
        self.get_current_device = cupy.cuda.runtime.getDevice
        self.set_current_device = cupy.cuda.runtime.setDevice
        self.get_current_stream = lambda device=None: cupy.cuda.get_current_stream().ptr
        self.get_device_capability = capability

    @staticmethod
    def is_active() -> bool:
        return True


def capability(device: int) -> tuple[int, int]:
    """(9, 0) for a Hopper GPU."""
    text = cupy.cuda.Device(device).compute_capability
    return int(text[:-1]), int(text[-1])


@triton.jit
def _one_kernel(p):
    tl.store(p, 1.0)


def activate() -> None:
    """Make Triton launch through CuPy in this process."""
    triton.runtime.driver.set_active(CupyDriver())
    # At its first launch Triton 3.6 imports torch to know its dtypes, if it can be found.
    with without_torch():
        _one_kernel[(1,)](_Pointer(cupy.empty(1, cupy.float32)))


class _Pointer:
    def __init__(self, array: cupy.ndarray):
        self.array, self.dtype = array, array.dtype

    def data_ptr(self) -> int:
        return self.array.data.ptr


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
    """`import torch` fails in here, unless somebody has imported it before."""
    finder = _NoTorch()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _NoTorch:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "torch":
            raise ImportError("backglass does without torch")
