"""The interpret device: the plain Triton kernels as Python on NumPy memory, no GPU.

Triton's interpreter runs a kernel program by program, each tile operation in NumPy, so a
`breakpoint()` inside a GPU kernel stops there and its tiles print as arrays.  As shipped (3.6 to
3.9) it needs mending in four places, which `mend` does once per process:

1. bf16 is kept as uint16 bit patterns: casts truncate, and +, *, tl.dot, tl.max work on the bits,
   silently wrong.  ml_dtypes gives NumPy a true bfloat16, rounded to nearest even like the GPU's.
2. Operands are copied to "the host" and back by torch methods.  Ours lie there already.
3. Each launch, and each tl.sum or tl.max in a kernel, patches the whole of triton.language anew,
   milliseconds each.  Once is enough: a process either interprets or compiles.
4. With NumPy ≥ 2.4, Triton 3.6 cannot turn a one-element array into an int.

Every load and store is held against the operands of the line that runs: an address outside them
raises OutOfBounds, where a GPU would read rubbish and the bare interpreter might crash.

TRITON_INTERPRET is read when a kernel is decorated, Triton's own helpers (tl.sum) included: a
process that has imported triton to compile can no longer interpret.  The same holds for numba-cuda,
in whose simulator the rungs in the CUDA thread model run (cuda_threads.py).
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from backglass.device.gpu import Gpu, OutOfBounds, Tensor
from backglass.errors import UserError
from backglass.execute.memory import Memory
from backglass.program.record import Call

BF16 = np.dtype(ml_dtypes.bfloat16)
SWITCHES = {"triton": "TRITON_INTERPRET", "numba.cuda": "NUMBA_ENABLE_CUDASIM"}  # at import


class Interpret(Gpu):
    """Kernels of ops/<op>/gpu.py in Triton's interpreter.  Raises UserError where there is none."""

    name = "interpret"

    def __init__(self, rungs: dict[str, str] | None = None):
        if importlib.util.find_spec("triton") is None:
            raise UserError(
                "--device interpret runs the GPU kernels in Triton's interpreter, and Triton is "
                "not installed (Linux only): python -m pip install 'triton>=3.6,<3.10'"
            )
        for module, switch in SWITCHES.items():
            if module in sys.modules and os.environ.get(switch) != "1":
                raise UserError(
                    f"--device interpret: this process has imported {module} to compile kernels; "
                    f"interpret them in a new one, or set {switch}=1 before it starts"
                )
            os.environ[switch] = "1"
        read_switches_anew()
        mend()
        super().__init__(rungs)

    def _line(self, c: Call, memory: Memory) -> Callable[[], None]:
        from triton.runtime.errors import InterpreterError

        line = super()._line(c, memory)
        given = (*line.args, *line.keywords.values())
        tensors = [a for a in given if isinstance(a, Tensor)]
        spans = [(t.address, t.address + math.prod(t.shape) * t.dtype.itemsize) for t in tensors]

        def checked() -> None:
            _spans[:] = spans
            try:
                line()
            except InterpreterError as error:
                if isinstance(error.__cause__, OutOfBounds):
                    raise OutOfBounds(f"{c}: {error.__cause__}") from None
                raise

        return checked


def read_switches_anew() -> None:
    """A Numba that was imported earlier, for the CPU, has read its variables then.  When it reads
    them again it forgets the cache folder that device/host.py gave it."""
    if numba := sys.modules.get("numba"):
        folder = numba.config.CACHE_DIR
        numba.config.reload_config()
        numba.config.CACHE_DIR = folder


def mend() -> None:
    """Patch Triton's interpreter; a second call does nothing."""
    from triton.runtime import interpreter

    if not hasattr(interpreter, "mended_by_backglass"):
        interpreter.mended_by_backglass = True
        _right_bf16(interpreter)
        _host_operands(interpreter)
        _index_by_tensor(interpreter)
        _patch_once(interpreter)


def _right_bf16(interpreter: Any) -> None:
    import triton.language as tl

    handle, builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
    numpy_type, load = interpreter._get_np_dtype, builder.create_masked_load
    store, dot = builder.create_masked_store, builder.create_dot

    def is_bf16(t: Any) -> bool:
        return not isinstance(t.scalar, tl.pointer_type) and t.scalar == tl.bfloat16

    def get_np_dtype(t: Any) -> np.dtype:
        return BF16 if is_bf16(t) else numpy_type(t)

    def casting(shipped: Any) -> Any:
        def cast(self, src, to, *rest):
            if is_bf16(src.dtype) or is_bf16(to):
                return handle(src.data.astype(get_np_dtype(to)), to.scalar)
            return shipped(self, src, to, *rest)

        return cast

    def masked_load(self, pointers, mask, other, *rest, **options):
        check_bounds(pointers, mask, "read")
        if pointers.get_element_ty() != tl.bfloat16:
            return load(self, pointers, mask, other, *rest, **options)
        raw = handle(pointers.data, tl.pointer_type(tl.uint16))
        if other is not None:
            other = handle(other.data.view(np.uint16), tl.uint16)
        found = load(self, raw, mask, other, *rest, **options)
        return handle(found.data.view(BF16), tl.bfloat16)

    def masked_store(self, pointers, value, mask, *rest):
        check_bounds(pointers, mask, "written")
        if value.data.dtype == BF16:
            value = handle(value.data.view(np.uint16), tl.uint16)
        return store(self, pointers, value, mask, *rest)

    def create_dot(self, a, b, acc, *rest):  # a product of two bf16 is exact in fp32
        if is_bf16(a.dtype):
            a, b = (handle(x.data.astype(np.float32), tl.float32) for x in (a, b))
        return dot(self, a, b, acc, *rest)

    interpreter._get_np_dtype = get_np_dtype
    builder.cast_impl = casting(builder.cast_impl)
    builder.create_fp_to_fp = casting(builder.create_fp_to_fp)
    builder.get_bf16 = lambda self, v: handle(np.array([v], BF16), tl.bfloat16)
    builder.create_masked_load, builder.create_masked_store = masked_load, masked_store
    builder.create_dot = create_dot


_spans: list[tuple[int, int]] = []  # the operands of the line that runs: [first byte, end)


def check_bounds(pointers: Any, mask: Any, verb: str) -> None:
    """Raises OutOfBounds if an unmasked pointer is outside the operand that most of them are in."""
    at = pointers.data[mask.data] if mask is not None else pointers.data
    if not at.size:
        return
    low, high = int(at.min()), int(at.max())
    width = pointers.get_element_ty().primitive_bitwidth // 8
    if not any(first <= low and high + width <= end for first, end in _spans):
        raise OutOfBounds(f"bytes {low:#x} to {high + width:#x} are {verb}, outside every operand")


def _host_operands(interpreter: Any) -> None:
    executor = interpreter.GridExecutor
    executor._init_args_hst = lambda self, args, named: (args, named)
    executor._restore_args_dev = lambda self, *args: None


def _index_by_tensor(interpreter: Any) -> None:
    patch = interpreter._patch_lang_tensor

    def patch_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = patch_tensor


def _patch_once(interpreter: Any) -> None:
    """A function's globals decide what must be patched for it; the patches then stay."""
    import triton.language as tl

    patch, patched = interpreter._patch_lang, {}

    def patch_lang(fn):
        key = frozenset(id(v) for v in fn.__globals__.values() if v is tl or v is tl.core)
        if key not in patched:
            patched[key] = patch(fn)
        return _Stay

    interpreter._patch_lang = patch_lang


class _Stay:
    """What the interpreter restores after a launch: nothing."""

    @staticmethod
    def restore() -> None:
        pass
