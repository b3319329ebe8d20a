"""The cuda device: Triton kernels on an NVIDIA GPU.  CuPy gives memory, streams, copies, graphs."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from backglass.device.cuda_faults import explain
from backglass.device.gpu import Gpu, Tensor, tensor
from backglass.errors import UserError, wrong_use
from backglass.execute.memory import Memory
from backglass.view import DTYPES, View

INSTALL = "python -m pip install 'triton>=3.6,<3.10' cupy-cuda13x nvidia-cublas"
INSTALL_12 = (
    "python -m pip uninstall -y cupy-cuda13x nvidia-cublas && python -m pip install cupy-cuda12x "
    "nvidia-cublas-cu12"
)


class Cuda(Gpu):
    """One GPU: cuda is the first, cuda:1 the second.  Raises UserError if it cannot be used."""

    name = "cuda"
    captures = True

    def __init__(self, name: str = "cuda", rungs: dict[str, str] | None = None):
        self.cupy = usable_cupy()
        self.index = index_of(name, self.cupy)
        self.cupy.cuda.Device(self.index).use()
        self.stream = stream_of(self.index)
        self.stream.use()
        activate_triton()
        self.dtypes = dtypes_of(arch(self.index, self.cupy))
        super().__init__(rungs)

    def memory(self) -> Memory:
        return CudaMemory()

    def capture(self, lines: list[Callable[[], None]]) -> Callable[[], None]:
        """The lines as one CUDA graph.  Every kernel must have been launched before."""
        self.stream.begin_capture()
        try:
            for line in lines:
                line()
        except BaseException:  # what ending it says then is not what happened
            with contextlib.suppress(self.cupy.cuda.runtime.CUDARuntimeError):
                self.stream.end_capture()
            raise
        graph = self.stream.end_capture()
        return lambda: graph.launch(self.stream)

    def wait(self) -> None:
        """Until everything launched so far is done."""
        self.stream.synchronize()

    def free_bytes(self) -> int:
        """What the driver has left and our own pool has not handed out."""
        free, _ = self.cupy.cuda.runtime.memGetInfo()
        return free + self.cupy.get_default_memory_pool().free_bytes()

    def used_bytes(self) -> int:
        """Device memory in use by everybody, as the driver reports it."""
        free, total = self.cupy.cuda.runtime.memGetInfo()
        return total - free

    def peak_flops(self, dtype: str) -> float:
        """Of cuBLASLt on a product of 4096³.  Raises UserError where there is no cuBLASLt."""
        from backglass.device import cublaslt

        n, memory = 4096, self.memory()
        views = [View(name, (n, n), dtype, "act") for name in "abc"]
        for v in views[:2]:  # random numbers: zeros would be multiplied faster
            memory.write(v, np.random.default_rng(0).standard_normal((n, n), np.float32))
        a, b, out = (tensor(memory, v, v.shape) for v in views)
        held = self.cupy.empty(cublaslt.WORKSPACE_BYTES, self.cupy.uint8)
        work = Tensor(held.data.ptr, DTYPES["u8"], held.shape)
        run = partial(cublaslt.product, out, a, b, work)
        run()
        begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        begin.record(self.stream)
        for _ in range(10):
            run()
        end.record(self.stream)
        end.synchronize()
        seconds = self.cupy.cuda.get_elapsed_time(begin, end) / 1e3
        del memory, held
        self.cupy.get_default_memory_pool().free_all_blocks()
        return 10 * 2 * n**3 / seconds


@functools.cache
def stream_of(index: int) -> Any:
    """The one stream on which everything of a GPU is launched, in order."""
    import cupy

    return cupy.cuda.Stream(non_blocking=True)


class CudaMemory(Memory):
    """Device arrays by name.  bf16 is held as its bits: CuPy moves them, Triton reads them."""

    def __init__(self) -> None:
        super().__init__()
        import cupy

        self.cupy = cupy
        self.pinned: dict[str, _Staging] = {}

    def address(self, view: View) -> int:
        return self.array(view).data.ptr

    def read(self, view: View) -> np.ndarray:
        values = self.cupy.asnumpy(self.array(view), stream=self.cupy.cuda.get_current_stream())
        return values.view(DTYPES[view.dtype])

    peek = read

    def write(self, view: View, values: Any) -> None:
        """Inputs, which are written before every step, go through pinned memory and do not wait."""
        array = self.array(view)
        if view.kind == "input":
            if view.name not in self.pinned:
                self.pinned[view.name] = _Staging(self.cupy, array)
            self.pinned[view.name].upload(array, np.asarray(values, DTYPES[view.dtype]))
        else:
            host = np.empty(view.shape, DTYPES[view.dtype])
            host[...] = values
            array.set(host.view(array.dtype), self.cupy.cuda.get_current_stream())

    def adopt(self, flat: View, values: np.ndarray) -> Any:
        return self.allocate(flat, values)

    def zeros(self, size: int, dtype: str) -> Any:
        return self.cupy.zeros(size, self.storage(dtype))

    def storage(self, dtype: str) -> np.dtype:
        return np.dtype(np.uint16) if dtype == "bf16" else DTYPES[dtype]

    def _fresh(self, view: View) -> Any:
        array = self.zeros(view.size, view.dtype)
        if view.kind == "act" and DTYPES[view.dtype].kind not in "iu":
            # All bits set is a NaN in every format; to store np.nan CuPy would compile a kernel.
            array.data.memset_async(0xFF, array.nbytes)
        if view.values is not None:
            array.set(view.values.astype(DTYPES[view.dtype]).reshape(-1))
        return array


class _Staging:
    """Page-locked host memory of one tensor, from which the GPU copies by itself."""

    def __init__(self, cupy: Any, array: Any):
        import cupyx

        self.host = cupyx.empty_pinned(array.shape, array.dtype)
        self.copied = cupy.cuda.Event(disable_timing=True)
        self.stream = cupy.cuda.get_current_stream()

    def upload(self, array: Any, values: np.ndarray) -> None:
        self.copied.synchronize()  # the last copy out of here
        self.host[...] = np.broadcast_to(values, self.host.shape).view(self.host.dtype)
        array.set(self.host, self.stream)
        self.copied.record(self.stream)


def usable_cupy() -> Any:
    """CuPy, if it and Triton are installed and a GPU answers.  Raises UserError otherwise."""
    missing = [m for m in ("cupy", "triton") if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(
            f"--device cuda needs {' and '.join(missing)}, which {'are' if missing[1:] else 'is'} "
            f"not installed: {INSTALL} (Linux, or WSL2 on Windows)"
        )
    try:
        import cupy
    except ImportError as error:
        raise UserError(
            f"--device cuda: CuPy is installed and cannot be imported: {one_line(error)}. "
            f"`backglass doctor` says which CuPy fits the driver."
        ) from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except RuntimeError as error:  # CUDARuntimeError is one
        raise UserError(why_no_gpu(cupy, error)) from None
    if count == 0:
        raise UserError("--device cuda found no NVIDIA GPU; --device cpu trains on the CPU")
    return cupy


def why_no_gpu(cupy: Any, error: Exception) -> str:
    """No driver, one that is too old, or one that shows no GPU."""
    driver, built = (
        f"{n // 1000}.{n % 1000 // 10}"
        for n in (cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion())
    )
    begin = f"--device cuda found no usable NVIDIA GPU ({one_line(error)})"
    if driver == "0.0":
        return (
            f"{begin}: there is no NVIDIA driver here. Install one, start a container with "
            f"`--gpus all`, choose a GPU as the notebook's runtime; or train with --device cpu."
        )
    if "InsufficientDriver" in str(error):
        return (
            f"{begin}: the driver knows CUDA {driver}, this CuPy wants {built}. Update the driver "
            f"(CUDA 13 needs 580 or newer), or take the CuPy for CUDA 12, which 525 suffices for: "
            f"{INSTALL_12} (in this repository: the extra gpu12 instead of gpu)"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    shown = "" if hidden is None else f" CUDA_VISIBLE_DEVICES is {hidden!r}: unset it?"
    return (
        f"{begin}: the driver is there (CUDA {driver}) and shows none.{shown} `nvidia-smi` should "
        f"list it; `backglass doctor` says more, and --device cpu trains on the CPU."
    )


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")


def index_of(name: str, cupy: Any) -> int:
    """1 of cuda:1.  Raises UserError (wrong use) if there are not so many."""
    count, index = cupy.cuda.runtime.getDeviceCount(), name.partition(":")[2] or "0"
    if not index.isdecimal() or int(index) >= count:
        there = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise wrong_use(f"--device {name}: there is {there}")
    return int(index)


def arch(index: int, cupy: Any) -> int:
    """90 for a Hopper GPU, sm_90."""
    return int(cupy.cuda.Device(index).compute_capability)


def dtypes_of(sm: int) -> tuple[str, ...]:
    """What kernels on sm_{sm} compute in: tensor cores for bf16 and TF32 came with Ampere."""
    return ("fp32", "tf32", "bf16") if sm >= 80 else ("fp32",)


def arch_of(name: str) -> int | None:
    """Of the GPU called `name`; None where it cannot be used, which opening it will explain."""
    try:
        cupy = usable_cupy()
        return arch(index_of(name, cupy), cupy)
    except UserError:
        return None


def activate_triton() -> None:
    """Launch a first kernel.  Raises UserError if this Triton, or its C compiler, cannot."""
    try:
        from backglass.device.triton_driver import activate

        activate()
    except (ImportError, AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as e:
        if explain(e):  # the GPU, not Triton
            raise
        raise UserError(
            f"--device cuda: Triton cannot launch a kernel: {type(e).__name__}: {one_line(e)}. It "
            f"must be version 3.6 to 3.9 and able to write ~/.triton, and it builds its launcher "
            f"with a C compiler and Python's headers: sudo apt install gcc python3-dev."
        ) from None
