"""A pretend GPU: CuPy's names on NumPy's memory, launches that do nothing, faults on demand.

The classes, texts and class names of the errors are CuPy 14.2's; so is what a function is called
and takes.  Kernels are bound to addresses as on a GPU and not run: every loss is 0.
"""

import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np

from backglass.device import cuda
from backglass.device.gpu import Gpu

GIB = 1 << 30
TEXTS = {
    2: "cudaErrorMemoryAllocation: out of memory",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    46: "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    214: "cudaErrorECCUncorrectable: uncorrectable ECC error encountered",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    719: "cudaErrorLaunchFailure: unspecified launch failure",
    999: "cudaErrorUnknown: unknown error",
}


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int):
        super().__init__(TEXTS[status])
        self.status = status


class CUDADriverError(RuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    def __init__(self, size: int, total: int):
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes)."
        )


class Array(np.ndarray):
    """What cupy.ndarray has besides."""

    def set(self, values, stream=None):
        self[...] = values

    @property
    def data(self):
        whole = self

        class Pointer:
            ptr = whole.ctypes.data

            def memset_async(self, value, size, stream=None):
                whole.reshape(-1).view(np.uint8)[:size] = value

        return Pointer()


class FakeGpu:
    """Installed, it is the GPU of this process.  free: bytes that memGetInfo reports."""

    def __init__(self, free=100 * GIB, total=143 * GIB, count=1, capability="90"):
        self.free, self.total, self.count, self.capability = free, total, count, capability
        self.driver, self.built = 13000, 13000
        self.launches, self.allocated = 0, 0
        self.used: list[int] = []  # indices of the devices that were made current
        self.faults: dict[int, Exception] = {}  # launch -> what it raises
        self.absent: Exception | None = None  # what getDeviceCount raises

    def fail(self, after: int, error: Exception) -> None:
        """The launch after so many more raises error."""
        self.faults[self.launches + after] = error

    def launch(self) -> None:
        self.launches += 1
        if self.launches - 1 in self.faults:
            raise self.faults[self.launches - 1]

    def device_count(self) -> int:
        if self.absent:
            raise self.absent
        return self.count

    def zeros(self, shape, dtype=np.float64) -> Array:
        array = np.zeros(shape, dtype).view(Array)
        if self.allocated + array.nbytes > self.free:
            raise OutOfMemoryError(array.nbytes, self.allocated)
        self.allocated += array.nbytes
        return array

    def install(self, monkeypatch) -> None:
        cupy, cupyx = modules(self)
        for module in (cupy, cupyx):
            module.__spec__ = ModuleSpec(module.__name__, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        driver = types.ModuleType("backglass.device.triton_driver")
        driver.activate = lambda: None
        monkeypatch.setitem(sys.modules, driver.__name__, driver)

        def line(device, c, memory):
            Gpu._line(device, c, memory)  # operands and workspace have addresses
            return self.launch

        monkeypatch.setattr(cuda.Cuda, "_line", line)
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
        cuda.stream_of.cache_clear()


class Stream:
    ptr = 1

    def __init__(self, non_blocking=False):
        self.capturing = False

    def use(self):
        return self

    def synchronize(self):
        pass

    def begin_capture(self):
        self.capturing = True

    def end_capture(self):
        self.capturing = False
        return types.SimpleNamespace(launch=Stream.replayed)

    replayed = staticmethod(lambda stream: None)


def modules(gpu: FakeGpu) -> tuple[types.ModuleType, types.ModuleType]:
    """cupy and cupyx."""
    cupy, cupyx = types.ModuleType("cupy"), types.ModuleType("cupyx")
    stream = Stream()

    def event(block=False, disable_timing=False):
        return types.SimpleNamespace(record=lambda stream=None: None, synchronize=lambda: None)

    def graph(stream):
        gpu.launch()

    Stream.replayed = staticmethod(graph)
    cupy.cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(
            getDeviceCount=gpu.device_count, CUDARuntimeError=CUDARuntimeError,
            memGetInfo=lambda: (gpu.free - gpu.allocated, gpu.total),
            driverGetVersion=lambda: gpu.driver, runtimeGetVersion=lambda: gpu.built,
            getDeviceProperties=lambda index: {"name": b"NVIDIA Pretend"},
        ),
        driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        Device=lambda index=0: types.SimpleNamespace(
            id=index, use=lambda: gpu.used.append(index), compute_capability=gpu.capability
        ),
        Stream=Stream, Event=event, get_current_stream=lambda: stream,
    )  # fmt: skip
    pool = types.SimpleNamespace(free_bytes=lambda: 0, free_all_blocks=lambda: None)
    cupy.get_default_memory_pool = lambda: pool
    cupy.zeros = cupy.empty = gpu.zeros
    cupy.asnumpy = lambda array, stream=None: np.array(array)
    cupy.uint8, cupy.float32 = np.uint8, np.float32
    cupyx.empty_pinned = np.empty
    return cupy, cupyx
