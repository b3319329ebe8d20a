"""cuBLASLt through ctypes: out = op(a)·op(b) (+ out) (+ bias), row-major; or the bias gradient too.

CuPy's own binding refuses cuBLAS calls while a CUDA graph is captured; these work there.  The
library is column-major, where a row-major matrix reads as its transpose, so it is asked for
outᵀ = op(b)ᵀ·op(a)ᵀ: b comes first and nothing is moved.

For every shape the library's heuristic names up to CANDIDATES algorithms.  They are timed when the
shape is first met on a GPU, and the fastest is remembered in a file: algorithms differ in the order
of their sums, so a choice made anew in every run would change bits.
"""

from __future__ import annotations

import ctypes
import functools
import json
import math
from dataclasses import dataclass
from typing import Any

from backglass.cache import cache_folder
from backglass.device.cuda_faults import LibraryError
from backglass.device.gpu import Tensor
from backglass.errors import UserError
from backglass.training.files import write_json

WORKSPACE_BYTES = 32 << 20
CANDIDATES = 16
FP32, BF16 = 0, 14  # cudaDataType_t
COMPUTE_FP32, COMPUTE_TF32 = 68, 77  # cublasComputeType_t
TRANSA, TRANSB, EPILOGUE, BIAS_POINTER, BIAS_TYPE = 3, 4, 7, 8, 26  # cublasLtMatmulDescAttributes_t
PLAIN, ADD_BIAS, BIAS_GRADIENT = 1, 4, 512  # cublasLtEpilogue_t
PREFERENCE_WORKSPACE = 1
RESULT_WORDS, ALGORITHM_WORDS = 12, 8  # of 64 bits: cublasLtMatmulHeuristicResult_t, …Algo_t


@dataclass
class Product:
    """A product of fixed shapes and dtypes: descriptors and the algorithm."""

    description: ctypes.c_void_p
    layouts: tuple[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    candidates: list[Any]
    algorithm: Any = None


def product(
    out: Tensor, a: Tensor, b: Tensor, work: Tensor, transpose_a: bool = False,
    transpose_b: bool = False, bias: Tensor | None = None, add: bool = False,
    bias_gradient: Tensor | None = None,
) -> None:  # fmt: skip
    """out (M, N) (+)= op(a) (M, K)·op(b) (K, N) + bias (N,), on CuPy's current stream.

    bias_gradient (M,) becomes Σ_K op(a): where out is dw, that is db.
    """
    M, N = out.shape
    K = a.shape[0] if transpose_a else a.shape[1]
    vector = bias if bias_gradient is None else bias_gradient
    epilogue = PLAIN if vector is None else ADD_BIAS if bias else BIAS_GRADIENT
    widths = a.dtype.itemsize, out.dtype.itemsize
    key = (M, N, K, transpose_a, transpose_b, *widths, a.precision, epilogue)
    p = _product(*key)
    if vector is not None:
        _set(p.description, BIAS_POINTER, ctypes.c_uint64(vector.address))
    if p.algorithm is None:
        p.algorithm = p.candidates[_chosen(key, p, out, a, b, work, add)]
    _call(p, p.algorithm, out, a, b, work, add)


@functools.cache
def _product(
    M: int, N: int, K: int, ta: bool, tb: bool, width: int, out_width: int, precision: str,
    epilogue: int,
) -> Product:  # fmt: skip
    kind, out_kind = ({2: BF16, 4: FP32}[w] for w in (width, out_width))
    description = ctypes.c_void_p()
    compute = COMPUTE_TF32 if precision == "tf32" else COMPUTE_FP32
    _check(library().cublasLtMatmulDescCreate(ctypes.byref(description), compute, FP32))
    _set(description, TRANSA, ctypes.c_int32(tb))
    _set(description, TRANSB, ctypes.c_int32(ta))
    _set(description, EPILOGUE, ctypes.c_uint32(epilogue))
    if epilogue != PLAIN:
        _set(description, BIAS_TYPE, ctypes.c_int32(kind))
        _set(description, BIAS_POINTER, ctypes.c_uint64(256))  # the heuristic asks whether it is 0
    layouts = (
        _layout(*((K, N) if tb else (N, K)), kind),
        _layout(*((M, K) if ta else (K, M)), kind),
        _layout(N, M, out_kind),
    )
    return Product(description, layouts, _candidates(description, layouts))


def _candidates(description: ctypes.c_void_p, layouts: tuple) -> list[Any]:
    """Algorithms that can compute it, the most promising first."""
    lib, preference, count = library(), ctypes.c_void_p(), ctypes.c_int()
    _check(lib.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
    size = ctypes.c_uint64(WORKSPACE_BYTES)
    _check(
        lib.cublasLtMatmulPreferenceSetAttribute(
            preference, PREFERENCE_WORKSPACE, ctypes.byref(size), ctypes.c_size_t(8)
        )
    )
    results = (ctypes.c_uint64 * (RESULT_WORDS * CANDIDATES))()
    b, a, out = layouts
    _check(
        lib.cublasLtMatmulAlgoGetHeuristic(
            _handle(), description, b, a, out, out, preference, CANDIDATES,
            ctypes.byref(results), ctypes.byref(count),
        )
    )  # fmt: skip
    _check(lib.cublasLtMatmulPreferenceDestroy(preference))
    if count.value == 0:
        raise UserError(
            "cuBLASLt knows no algorithm on this GPU for one of the products; multiply with our "
            "own kernels: --matmul own"
        )
    starts = range(0, count.value * RESULT_WORDS, RESULT_WORDS)
    return [(ctypes.c_uint64 * ALGORITHM_WORDS)(*results[i : i + ALGORITHM_WORDS]) for i in starts]


def _chosen(
    key: tuple, p: Product, out: Tensor, a: Tensor, b: Tensor, work: Tensor, add: bool
) -> int:
    """The number of the fastest candidate, timed now or remembered."""
    import cupy

    gpu = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    file = (
        cache_folder()
        / "cublaslt"
        / f"{gpu.replace(' ', '-')}-{library().cublasLtGetVersion()}.json"
    )
    known = json.loads(file.read_text()) if file.exists() else {}
    name = " ".join(map(str, key))
    if known.get(name, CANDIDATES) >= len(p.candidates):
        fastest = _fastest(p, out, a, b, work, add)
        if fastest is None:
            return 0  # the heuristic's favourite; not remembered
        known[name] = fastest
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
    return known[name]


def _fastest(
    p: Product, out: Tensor, a: Tensor, b: Tensor, work: Tensor, add: bool
) -> int | None:  # fmt: skip
    """Time every candidate; on an output of its own if what `out` holds is still needed, None if
    there is no room for it.

    A plan does not count that output: it is gone before the first step, and back with the driver.
    """
    import cupy

    stream, pool = cupy.cuda.get_current_stream(), cupy.get_default_memory_pool()
    try:
        held = cupy.empty(math.prod(out.shape) * out.dtype.itemsize if add else 0, cupy.uint8)
    except cupy.cuda.memory.OutOfMemoryError:
        return None
    trial = Tensor(held.data.ptr, out.dtype, out.shape) if add else out
    times = []
    for algorithm in p.candidates:
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        _call(p, algorithm, trial, a, b, work, False)
        begin.record(stream)
        for _ in range(3):
            _call(p, algorithm, trial, a, b, work, False)
        end.record(stream)
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(begin, end))
    del held
    pool.free_all_blocks()
    return times.index(min(times))


def _call(
    p: Product, algorithm: Any, out: Tensor, a: Tensor, b: Tensor, work: Tensor, add: bool
) -> None:
    import cupy  # not above: what a call's workspace is can be asked without it

    lb, la, lo = p.layouts
    one, beta = ctypes.c_float(1), ctypes.c_float(add)
    at = ctypes.c_void_p(out.address)
    _check(
        library().cublasLtMatmul(
            _handle(), p.description, ctypes.byref(one), ctypes.c_void_p(b.address), lb,
            ctypes.c_void_p(a.address), la, ctypes.byref(beta), at, lo, at, lo,
            ctypes.byref(algorithm), ctypes.c_void_p(work.address),
            ctypes.c_size_t(WORKSPACE_BYTES),
            ctypes.c_void_p(cupy.cuda.get_current_stream().ptr),
        )
    )  # fmt: skip


def _layout(rows: int, columns: int, kind: int) -> ctypes.c_void_p:
    """A packed column-major matrix."""
    made = ctypes.c_void_p()
    sizes = ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows)
    _check(library().cublasLtMatrixLayoutCreate(ctypes.byref(made), kind, *sizes))
    return made


def _set(description: ctypes.c_void_p, attribute: int, value: Any) -> None:
    size = ctypes.c_size_t(ctypes.sizeof(value))
    _check(
        library().cublasLtMatmulDescSetAttribute(description, attribute, ctypes.byref(value), size)
    )


@functools.cache
def library() -> Any:
    try:
        from cuda import pathfinder  # comes with CuPy 14

        return ctypes.CDLL(pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (ImportError, RuntimeError, OSError) as error:  # DynamicLibNotFoundError is the second
        raise UserError(
            f"cuBLASLt was not found ({str(error).splitlines()[0]}): python -m pip install "
            f"nvidia-cublas (for CUDA 12 nvidia-cublas-cu12), or multiply with our own kernels: "
            f"--matmul own"
        ) from None


@functools.cache
def _handle() -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _check(library().cublasLtCreate(ctypes.byref(made)))
    return made


def _check(status: int) -> None:
    if status:
        raise LibraryError(f"cuBLASLt failed with status {status} (cublasStatus_t)")
