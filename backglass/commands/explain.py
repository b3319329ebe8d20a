"""backglass explain"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from backglass.errors import wrong_use


@dataclass
class Explain:
    """Explain an op: formulas, derivation, NumPy lines, and an example whose gradient is proven
    cell by cell.  Explain a model: one block, each forward line with its backward.

    For example:
      backglass explain layernorm
      backglass explain d_matmul_w          the op that this call belongs to
      backglass explain linear_xent         a fused call
      backglass explain gpt2                one block, at the model's default size
      backglass explain tiny                the same at the size of a preset
    """

    name: Annotated[Positional[str], arg(help="op, call, model or preset", metavar="OP|MODEL")]
    json: Annotated[bool, arg(help="as JSON")] = False

    def run(self) -> int:
        from backglass import models, ops, presets

        if self.name in models.NAMES or self.name in presets.ALL:
            from backglass.tools import block

            found = block.walk(self.name)
            print(block.as_json(found) if self.json else block.page(found), end="")
            return 0
        for op in ops.table().values():
            if self.name in op.signatures:
                from backglass.tools import explain

                call = self.name if op.signatures[self.name].equals else op.name
                show = explain.as_json if self.json else explain.page
                print(show(op, call), end="")
                return 0
        known = ", ".join([*ops.table(), *models.NAMES, *presets.ALL])
        raise wrong_use(f"explain {self.name}: there is no such op or model; there are {known}")
