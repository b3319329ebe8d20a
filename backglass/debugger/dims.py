"""The names of a tensor's axes, from what the model declares: h3.dqkv is B T 3 NH HS."""

from __future__ import annotations

from functools import cache

from backglass.layout import is_layered

HOST = {
    "ids": "B T", "targets": "B T", "dloss": "B T", "loss": "B T", "seed": "2", "hyper": "8",
    "norm": "1", "scale": "1",
}  # fmt: skip


def dims_of(tensor: str, shape: list[int], model: str) -> list[str]:
    """As many names as the shape has axes; an axis that nothing declares is called by its size."""
    last = tensor.rpartition(".")[2].partition("/")[0]
    known = declared(model)
    text = known.get(last) or known.get(last.removeprefix("d"), "")
    axes = text.split()[1:] if text and is_layered(text) else text.split()
    return axes if len(axes) == len(shape) else [str(n) for n in shape]


@cache
def declared(model: str) -> dict[str, str]:
    """Name without the layer -> dims, of a model's parameters, activations and tables."""
    from backglass import models

    module = models.get(model)
    found = HOST | getattr(module, "TABLES", {})
    found |= {p.name: p.dims for p in module.PARAMS}
    return found | {field: text.partition("|")[0] for field, text in module.ACTS.items()}
