"""One declaration per tensor: dims, dtype, init, weight decay, checkpoint name.  Everything else
follows from it.

    PARAMS = (Param("wte", "Vp C", init=0.02, decay=True, hf="wte.weight"),
              Param("qkvw", "L 3*C C", init=0.02, decay=True, hf="h.{l}.attn.c_attn.weight^T"), …)
    layout = Layout(PARAMS, sizes, dtype="fp32")
    p = layout.views("p", "param")     # p.wte, p.h[3].qkvw; p.flat is the whole buffer

A dims text that starts with L declares one tensor per layer.  `a*b` multiplies sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, product

import numpy as np

from backglass.view import DTYPES, HasMemory, View, gradient_name, wide

# Elements between the starts of two tensors are a multiple of this, whatever their dtype: the same
# parameter has the same offset in p, dp, m, v and master.  128 bf16 numbers are 256 bytes, which is
# what GPUs want for coalesced and vector access and a multiple of every cache line.
ALIGN = 128


@dataclass(frozen=True)
class Param:
    """A parameter.  init: standard deviation of N(0, init²), or 1.0 with ones=True, else zero.

    residual: the standard deviation is divided by √(2L) (GPT-2's residual projections).
    only: what the sizes must say for it to exist, "qkv_bias".
    hf: Hugging Face name, `{l}` for the layer, ^T if it is stored transposed; or the names of the
    parts it is made of with their rows, "q.weight NH*HS, k.weight KV*HS".
    """

    name: str
    dims: str
    init: float = 0.0
    ones: bool = False
    residual: bool = False
    decay: bool = False
    only: str = ""
    hf: str = ""


@dataclass(frozen=True)
class Slot:
    """One tensor's place in the flat buffer; layer is None outside the blocks."""

    param: Param
    layer: int | None
    shape: tuple[int, ...]
    offset: int

    @property
    def name(self) -> str:
        return self.param.name if self.layer is None else f"h{self.layer}.{self.param.name}"

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Space:
    """Named views: space.wte, space.h[3].qkvw.  An unknown name says which ones there are."""

    flat: View

    def __init__(self, layers: int = 0):
        self.h = [Space() for _ in range(layers)]

    def put(self, name: str, layer: int | None, view: View) -> None:
        setattr(self if layer is None else self.h[layer], name, view)

    def __getattr__(self, name: str) -> View:
        if name.startswith("__"):
            raise AttributeError(name)
        known = ", ".join(k for k in vars(self) if k != "h")
        raise AttributeError(f"there is no tensor called {name!r} here; there are {known}")

    def __iter__(self) -> Iterator[View]:
        """Every tensor, outside the blocks first, then layer by layer."""
        yield from (v for k, v in vars(self).items() if k not in ("flat", "h"))
        yield from chain(*self.h)


class Layout:
    """Places parameters in one flat buffer: those with weight decay first, each aligned."""

    def __init__(self, params: tuple[Param, ...], sizes: dict[str, int], dtype: str):
        self.params = tuple(p for p in params if not p.only or sizes[p.only])
        self.sizes, self.dtype = sizes, dtype

    @cached_property
    def slots(self) -> list[Slot]:
        slots, at = [], 0
        layers = (None, *range(self.sizes["L"]))
        for decay, layer, param in product((True, False), layers, self.params):
            if param.decay == decay and is_layered(param.dims) == (layer is not None):
                slots.append(Slot(param, layer, shape_of(param.dims, self.sizes), at))
                at += aligned(slots[-1].size)
        return slots

    @cached_property
    def size(self) -> int:
        """Elements of the flat buffer, alignment gaps included; the gaps hold zeros."""
        return self.slots[-1].offset + aligned(self.slots[-1].size)

    @cached_property
    def decay_size(self) -> int:
        """How many leading elements of the flat buffer have weight decay."""
        return next((s.offset for s in self.slots if not s.param.decay), self.size)

    @property
    def count(self) -> int:
        """Parameters; rows that pad the vocabulary and alignment gaps are not counted."""
        return sum(s.size // s.shape[0] * self.rows(s) for s in self.slots)

    def rows(self, s: Slot) -> int:
        """Rows of a tensor that mean something: where they are tokens, the last ones pad."""
        return self.sizes["V"] if s.param.dims.startswith("Vp ") else s.shape[0]

    def views(
        self, group: str, kind: str, memory: HasMemory | None = None, dtype: str | None = None
    ) -> Space:
        """All tensors as views into the flat buffer called `group`; gradients get gradient
        names."""
        dtype = dtype or self.dtype
        space = Space(self.sizes["L"])
        space.flat = View(group, (self.size,), dtype, kind, group, 0, memory=memory)
        for s in self.slots:
            name = {"param": s.name, "grad": gradient_name(s.name)}.get(kind, f"{s.name}/{group}")
            view = View(name, s.shape, dtype, kind, group, s.offset, memory=memory)
            space.put(s.param.name, s.layer, view)
        return space

    def initial(self, seed: int) -> np.ndarray:
        """The flat buffer before training, not rounded to bf16 yet; rows that pad are zero."""
        rng = np.random.default_rng(seed)
        flat = np.zeros(self.size, DTYPES[wide(self.dtype)])
        for s in self.slots:
            w = flat[s.offset : s.offset + s.size].reshape(s.shape)
            if s.param.ones:
                w[...] = 1
            elif s.param.init:
                std = s.param.init / math.sqrt(2 * self.sizes["L"] if s.param.residual else 1)
                w[...] = std * rng.standard_normal(s.shape, dtype=np.float32)
            w[self.rows(s) :] = 0
        return flat


def activations(
    fields: dict[str, str], sizes: dict[str, int], dtype: str, mark: str = "",
    memory: HasMemory | None = None,
) -> Space:  # fmt: skip
    """Views of a model's activations, or with mark="d" of their gradients: h3.ln1, h3.dln1.

    `L B T | stat` marks statistics (a mean, a log-sum-exp), which stay fp32 beside bf16.
    """
    space = Space(sizes["L"])
    for name, text in fields.items():
        dims, _, role = (part.strip() for part in text.partition("|"))
        kept = wide(dtype) if role == "stat" else dtype
        for layer in range(sizes["L"]) if is_layered(dims) else (None,):
            full = mark + name if layer is None else f"h{layer}.{mark}{name}"
            view = View(full, shape_of(dims, sizes), kept, "act", memory=memory)
            space.put(name, layer, view)
    return space


def aligned(size: int) -> int:
    """size rounded up to a multiple of ALIGN elements."""
    return -(-size // ALIGN) * ALIGN


def is_layered(dims: str) -> bool:
    return dims.split()[0] == "L"


def shape_of(dims: str, sizes: dict[str, int]) -> tuple[int, ...]:
    """ "L 3*C C" -> (2304, 768): sizes multiplied out, the leading L dropped."""
    axes = dims.split()[is_layered(dims) :]
    return tuple(
        math.prod(int(d) if d.isdigit() else sizes[d] for d in axis.split("*")) for axis in axes
    )
