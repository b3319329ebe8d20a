"""The cuda device: Triton kernels on an NVIDIA GPU.  CuPy gives memory, streams, copies, graphs."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from backglass.device.gpu import Gpu, Tensor, tensor
from backglass.errors import UserError, wrong_use
from backglass.execute.memory import Memory
from backglass.view import DTYPES, View

INSTALL = "python -m pip install 'triton>=3.6,<3.10' cupy-cuda13x nvidia-cublas"


class Cuda(Gpu):
    """One GPU: cuda is the first, cuda:1 the second.  Raises UserError if it cannot be used."""

    name = "cuda"
    captures = True

    def __init__(self, name: str = "cuda", rungs: dict[str, str] | None = None):
        self.cupy = usable_cupy()
        count = self.cupy.cuda.runtime.getDeviceCount()
        index = name.partition(":")[2] or "0"
        if not index.isdigit() or int(index) >= count:
            raise wrong_use(f"--device {name}: there are {count} GPUs, cuda:0 to cuda:{count - 1}")
        self.index = int(index)
        self.cupy.cuda.Device(self.index).use()
        self.stream = stream_of(self.index)
        self.stream.use()
        from backglass.device.triton_driver import activate, capability

        activate()
        major, _ = capability(self.index)
        self.dtypes = ("fp32", "tf32", "bf16") if major >= 8 else ("fp32",)
        super().__init__(rungs)

    def memory(self) -> Memory:
        return CudaMemory()

    def capture(self, lines: list[Callable[[], None]]) -> Callable[[], None]:
        """The lines as one CUDA graph.  Every kernel must have been launched before."""
        self.stream.begin_capture()
        try:
            for line in lines:
                line()
        finally:
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
        """Of cuBLASLt on a product of 4096³."""
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
            array[...] = 0x7FC0 if view.dtype == "bf16" else np.nan
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
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise UserError(
            f"--device cuda found no usable NVIDIA GPU: {error}. `nvidia-smi` should list one; if "
            f"it does, its driver may be too old for this CuPy (CUDA 13 needs driver 580 or "
            f"newer): update it, or install cupy-cuda12x. `backglass doctor` says more."
        ) from None
    if count == 0:
        raise UserError("--device cuda found no NVIDIA GPU; --device cpu trains on the CPU")
    return cupy
