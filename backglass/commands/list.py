"""backglass list"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from backglass.errors import wrong_use


@dataclass
class List:
    """List what there is: presets, ops, models, devices, data sources, tokenizers.

    For example:
      backglass list              everything
      backglass list ops          each op, and which tiers and rungs it has
    """

    kinds: Annotated[
        Positional[tuple[str, ...]],
        arg(help="presets, ops, models, devices, data or tokenizers", metavar="[KIND ...]"),
    ] = ()  # fmt: skip
    json: Annotated[bool, arg(help="as JSON")] = False

    def run(self) -> int:
        from backglass.tools.catalogue import KINDS

        for kind in self.kinds:
            if kind not in KINDS:
                raise wrong_use(f"list {kind}: there is no such kind; there are {', '.join(KINDS)}")
        found = {kind: KINDS[kind]() for kind in self.kinds or KINDS}
        if self.json:
            print(json.dumps(found))
            return 0
        for kind, rows in found.items():
            print(f"{kind}")
            for row in rows:
                print("  " + "\n  ".join(described(row)))
            print()
        return 0


def described(row: dict[str, Any]) -> list[str]:
    """One thing as a line or two."""
    if "parameters" in row:
        return [
            f"{row['name']:12s} {row['parameters']:>13,d} parameters   {row['layers']} layers, "
            f"{row['heads']} heads, {row['channels']} channels, {row['seq_len']} tokens, "
            f"vocabulary {row['vocab_size']:,d}"
        ]
    if "tiers" in row:
        ladder = f"; rungs {', '.join(row['rungs'])}" if row["rungs"] else ""
        return [
            f"{row['name']:15s} {row['sentence']}",
            f"{'':15s} {', '.join(row['tiers'])}{ladder}; calls {', '.join(row['calls'])}",
        ]
    return [f"{row['name']:15s} {row['sentence']}"]
