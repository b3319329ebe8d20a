"""A training step: the tensors a model declares, and the programs recorded from its functions.

micro    forward and backward of one micro-batch; runs k times, gradients add up
update   gradient norm, clipping, AdamW over the flat buffers; zeroes the gradients
loss     the forward alone, for validation
logits   the forward without the loss, for generation
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from backglass.layout import Layout, Space, activations
from backglass.program.record import Program, Record
from backglass.view import HasMemory, View, wide


@dataclass(frozen=True)
class Tensors:
    """Every tensor of a step, by the names the model's functions use."""

    layout: Layout
    p: Space
    dp: Space
    m: Space
    v: Space
    master: Space | None  # fp32 parameters beside bf16 ones
    a: Space
    da: Space
    io: Space


def declare(
    model: ModuleType, c: Any, B: int, T: int, dtype: str = "fp32", memory: HasMemory | None = None
) -> Tensors:
    """The tensors of `model` (a module such as models.gpt2) for config c.  Symbolic unless memory
    is given."""
    sizes = c.sizes(B, T)
    if T > sizes["P"]:
        raise ValueError(f"sequences of {T} tokens, but the model has {sizes['P']} positions")
    layout, kept = Layout(model.PARAMS, sizes, dtype), wide(dtype)
    io = Space()
    io.ids = View("ids", (B, T), "i32", "input", memory=memory)
    io.targets = View("targets", (B, T), "i32", "input", memory=memory)
    io.seed = View("seed", (2,), "i64", "input", memory=memory)
    io.dloss = View("dloss", (B, T), kept, "input", memory=memory)
    io.hyper = View("hyper", (8,), kept, "input", memory=memory)
    io.loss = View("loss", (B, T), kept, "output", memory=memory)
    io.norm = View("norm", (1,), kept, "output", memory=memory)
    io.scale = View("scale", (1,), kept, "output", memory=memory)
    for name, values in (model.tables(c) if hasattr(model, "tables") else {}).items():
        io.put(name, None, View(name, values.shape, kept, "input", memory=memory, values=values))
    return Tensors(
        layout,
        p=layout.views("p", "param", memory),
        dp=layout.views("dp", "grad", memory),
        m=layout.views("m", "state", memory, kept),
        v=layout.views("v", "state", memory, kept),
        master=layout.views("master", "state", memory, kept) if dtype == "bf16" else None,
        a=activations(model.ACTS, sizes, dtype, memory=memory),
        da=activations(model.ACTS, sizes, dtype, mark="d", memory=memory),
        io=io,
    )


def run_micro(ops: Any, model: ModuleType, c: Any, t: Tensors) -> None:
    model.forward(ops, c, t.p, t.a, t.io)
    model.backward(ops, c, t.p, t.a, t.dp, t.da, t.io)


def run_update(ops: Any, t: Tensors) -> None:
    ops.global_norm(t.io.norm, t.dp.flat)
    ops.clip(t.io.scale, t.io.norm, t.io.hyper)
    ops.adamw(
        t.p.flat, t.m.flat, t.v.flat, t.dp.flat, t.master and t.master.flat, t.io.scale, t.io.hyper,
        decay_size=t.layout.decay_size,
    )  # fmt: skip


def record_micro(model: ModuleType, c: Any, B: int, T: int, dtype: str = "fp32") -> Program:
    ops = Record()
    run_micro(ops, model, c, declare(model, c, B, T, dtype))
    return ops.program


def record_update(model: ModuleType, c: Any, dtype: str = "fp32") -> Program:
    ops = Record()
    run_update(ops, declare(model, c, 1, 1, dtype))
    return ops.program


def record_loss(model: ModuleType, c: Any, B: int, T: int, dtype: str = "fp32") -> Program:
    ops, t = Record(), declare(model, c, B, T, dtype)
    model.forward(ops, c, t.p, t.a, t.io)
    return ops.program


def record_logits(model: ModuleType, c: Any, B: int, T: int, dtype: str = "fp32") -> Program:
    ops, t = Record(), declare(model, c, B, T, dtype)
    model.logits_forward(ops, c, t.p, t.a, t.io)
    return ops.program
