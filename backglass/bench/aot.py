"""bench ops --aot: the GPU kernels of GPT-2 124M's step, and those that LLaMA 3.2 1B's has besides,
compiled for chips that are not here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from backglass.errors import UserError
from backglass.models import gpt2, llama
from backglass.program.record import Call
from backglass.program.step import record_micro, record_update

if TYPE_CHECKING:
    from backglass.device.aot import Aot, Compiled


def rows(names: list[str], B: int, T: int, rungs: dict[str, str]) -> Iterator[Compiled]:
    """What each kernel takes on each chip, in bf16 and, where it differs, TF32."""
    try:
        from backglass.device import aot
    except ImportError:
        raise UserError(
            "bench ops --aot compiles with Triton, which is not installed (Linux only): "
            "python -m pip install 'triton>=3.6,<3.10'"
        ) from None
    for arch in aot.ARCHS:
        for dtype in ("bf16", "tf32"):
            device = aot.Aot(arch, rungs)
            for c in distinct(names, calls(device, B, T, dtype)):
                before = len(device.compiled)
                device.bind([c], device.memory())[0]()
                yield from device.compiled[before:]


def calls(device: Aot, B: int, T: int, dtype: str) -> Iterator[Call]:
    """GPT-2's step, and of LLaMA's the ops that GPT-2 has not got."""
    known = set()
    for call in gpt2_calls(device, B, T, dtype):
        known.add(kind_of(call))
        yield call
    shape = dict(layers=2, heads=32, kv_heads=8, channels=2048, hidden=8192)
    for changes in ({}, {"qk_norm": True, "window": 512}):
        c = llama.Config(**shape, max_seq_len=max(1024, T), **changes)
        program = record_micro(llama, c, B, T, dtype)
        for call in (*program.fuse(*device.fusable()), *program):
            if kind_of(call) not in known:
                yield call


def kind_of(c: Call) -> tuple[str, tuple[bool, ...]]:
    """The op, and which of its operands are there."""
    return c.op, tuple(v is None for v in (*c.outs, *c.ins))


def gpt2_calls(device: Aot, B: int, T: int, dtype: str) -> Iterator[Call]:
    """A step of two layers, fused, plain, and with attention and dropout spelled out."""
    for changes in ({}, {"attention": "explicit", "dropout": 0.1}):
        c = gpt2.Config(layers=2, max_seq_len=max(1024, T), **changes)
        program = record_micro(gpt2, c, B, T, dtype)
        yield from program.fuse(*device.fusable())
        yield from program
    yield from record_update(gpt2, gpt2.Config(), dtype)


def distinct(names: list[str], found: Iterable[Call]) -> Iterator[Call]:
    """Calls of the named ops, each op, shape and attrs once."""
    seen = set()
    for c in found:
        shapes = tuple(v and v.shape for v in (*c.outs, *c.ins))
        key = (c.op, c.add, shapes, tuple(c.attrs.items()))
        if key not in seen and (not names or c.op in names or c.signature.op in names):
            seen.add(key)
            yield c
