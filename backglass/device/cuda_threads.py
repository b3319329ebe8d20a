"""The CUDA thread model in Python: the first rungs of the GPU's ladders are written in it.

A kernel says what one thread does; numba-cuda runs it on a grid of blocks of threads:

    i, j = cuda.grid(2)                       which thread am I, in the grid
    cuda.threadIdx.x, cuda.blockIdx.x         … in my block, and which block
    s = cuda.shared.array((16, 16), float32)  memory that the threads of a block share
    cuda.syncthreads()                        wait for the other threads of the block
    block_sum(s, t, x), warp_sum(x)           over a block by shared memory, over the 32 threads
                                              that run in step by shuffles

On a GPU numba-cuda compiles it.  On the host its simulator runs every thread as a Python thread, so
a breakpoint() stops inside one of them.  It has no shuffles; `shuffle` imitates them, provided that
all threads of the block take part.

Operands are arrays.  One that is bf16 holds its bits, 16-bit integers: `f32` reads a number of it,
`like` makes one.  One that is absent has no elements.

NUMBA_ENABLE_CUDASIM is read when numba.cuda is first imported: a process compiles or simulates.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backglass.device.gpu import OutOfBounds, Tensor
from backglass.errors import UserError

if importlib.util.find_spec("numba_cuda") is None:
    raise UserError(
        "this rung is written in CUDA's thread model, which needs numba-cuda (Linux): "
        "python -m pip install 'numba-cuda>=0.30'"
    )
from numba import cuda

SIMULATED = cuda.config.ENABLE_CUDASIM
if not SIMULATED and not hasattr(np, "row_stack"):
    # NumPy 2.5 removed it; numba-cuda 0.30 fails without, at its first compilation.
    np.row_stack = np.vstack  # noqa: NPY201
SIDE = 4 if SIMULATED else 16  # of a square block of threads; Python's take a millisecond each
BLOCK = SIDE * SIDE  # threads of a block
WARP = 32  # threads that run in step
ALL = 0xFFFFFFFF  # of them take part in a shuffle

kernel = cuda.jit


def device(function: Any) -> Any:
    """A function that kernels call."""
    return function if SIMULATED else cuda.jit(device=True)(function)


instead: Callable[[Any, Any, tuple], None] | None = None  # of running: what the aot device does


def launch(run: Any, blocks: Any, threads: Any, *operands: Any) -> None:
    """Run a kernel on `blocks` × `threads` threads; each an int or a tuple (x, y)."""
    if instead:
        instead(run, threads, operands)
    elif SIMULATED:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(1e-4)  # the simulator's own thread waits by asking again and again
        try:
            run[blocks, threads](*map(host_array, operands))
        except IndexError as error:
            raise OutOfBounds(f"{run.__name__}: {error}") from None
        finally:
            sys.setswitchinterval(usual)
    else:
        import cupy

        stream = cuda.external_stream(cupy.cuda.get_current_stream().ptr)
        run[blocks, threads, stream](*map(device_array, operands))


def blocks_for(count: int, threads: int) -> int:
    """How many blocks of `threads` have at least `count` threads."""
    return -(-count // threads)


# ------------------------------------------------------------ what a thread calls


if SIMULATED:  # there `cuda` is the simulated one in a kernel's own module only

    def sync():
        threading.current_thread().syncthreads()

    def shuffle(x, step):
        thread: Any = threading.current_thread()
        given = thread._manager.__dict__.setdefault("shuffled", {})
        given[thread.thread_id] = x
        thread.syncthreads()
        found = given[thread.thread_id ^ step]
        thread.syncthreads()
        return found

else:

    @cuda.jit(device=True)
    def sync():
        """Wait for the other threads of the block."""
        cuda.syncthreads()

    @cuda.jit(device=True)
    def shuffle(x, step):
        """The x of the warp's thread whose number differs in the bit `step`."""
        return cuda.shfl_xor_sync(ALL, x, step)


@device
def block_sum(values, t, x):
    """The sum of x over the block, in every thread.  values: shared memory, a number for each of a
    power of two of threads; t: which of them this is."""
    values[t] = x
    half = values.shape[0] // 2
    while half > 0:
        sync()
        if t < half:
            values[t] += values[t + half]
        half //= 2
    sync()
    total = values[0]
    sync()  # before values is used again
    return total


@device
def block_max(values, t, x):
    """The largest x of the block, in every thread."""
    values[t] = x
    half = values.shape[0] // 2
    while half > 0:
        sync()
        if t < half:
            values[t] = max(values[t], values[t + half])
        half //= 2
    sync()
    largest = values[0]
    sync()
    return largest


@device
def warp_sum(x):
    """The sum of x over the warp, in every thread: after the step of 16 each has the sum of two,
    after that of 8 of four, …"""
    for step in (16, 8, 4, 2, 1):
        x += shuffle(x, step)
    return x


@device
def warp_max(x):
    """The largest x of the warp, in every thread."""
    for step in (16, 8, 4, 2, 1):
        x = max(x, shuffle(x, step))
    return x


def f32(number):
    """A number of a tensor as fp32: bf16 is the upper half of one."""
    if isinstance(number, np.uint16):
        return (np.uint32(number) << np.uint32(16)).view(np.float32)
    return number


def like(value, number):
    """An fp32 value in the dtype of a tensor's `number`; bf16 is rounded to nearest even."""
    if isinstance(number, np.uint16):
        bits = np.float32(value).view(np.uint32)
        return np.uint16((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> 16)
    return value


if not SIMULATED:
    from numba.cuda import libdevice, types
    from numba.cuda.extending import overload

    @overload(f32, target="cuda")
    def _f32(number):
        if number == types.uint16:
            return lambda number: libdevice.int_as_float(
                np.int32(np.uint32(number) << np.uint32(16))
            )
        return lambda number: number

    @overload(like, target="cuda")
    def _like(value, number):
        def to_bf16(value, number):
            bits = np.uint32(libdevice.float_as_int(np.float32(value)))
            odd = (bits >> np.uint32(16)) & np.uint32(1)
            return np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

        return to_bf16 if number == types.uint16 else lambda value, number: np.float32(value)


# ------------------------------------------------------------ operands


@dataclass(frozen=True)
class Transposed:
    """A matrix seen with rows and columns exchanged; nothing is moved."""

    of: Tensor


def device_array(operand: Any) -> Any:
    """What numba-cuda takes for an operand: an array on the GPU, or a number."""
    if operand is None:
        operand = Tensor(0, np.dtype(np.float32), (0,))
    return cuda.as_cuda_array(_OnGpu(operand)) if has_memory(operand) else operand


def host_array(operand: Any) -> Any:
    """What the simulator takes for it: the memory itself; of a NumPy array it would copy."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    if operand is None:
        return FakeCUDAArray(np.empty(0, np.float32))
    if not has_memory(operand):
        return operand
    t = operand if isinstance(operand, Tensor) else operand.of
    raw = (ctypes.c_char * (math.prod(t.shape) * t.dtype.itemsize)).from_address(t.address)
    array = np.frombuffer(raw, held(t)).reshape(t.shape)
    return FakeCUDAArray(array if t is operand else array.T)


def has_memory(operand: Any) -> bool:
    return isinstance(operand, Tensor | Transposed)


def held(t: Tensor) -> np.dtype:
    """numba has no bf16."""
    return np.dtype(np.uint16) if t.dtype.name == "bfloat16" else t.dtype


class _OnGpu:
    """Device memory as numba and CuPy describe it to each other."""

    def __init__(self, operand: Tensor | Transposed):
        t = operand if isinstance(operand, Tensor) else operand.of
        shape, strides = t.shape, tuple(n * t.dtype.itemsize for n in t.stride())
        if isinstance(operand, Transposed):
            shape, strides = shape[::-1], strides[::-1]
        self.__cuda_array_interface__ = {
            "shape": shape, "strides": strides, "typestr": held(t).str,
            "data": (t.address, False), "version": 3, "stream": None,
        }  # fmt: skip
