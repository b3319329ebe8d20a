"""backglass lines"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg


@dataclass
class Lines:
    """Count the code there is to read, by reading path; comments and docstrings are free.

    For example:
      backglass lines             a line per path, with its budget
      backglass lines --files     and every file
    """

    files: Annotated[bool, arg(help="a line for every file")] = False
    json: Annotated[bool, arg(help="rows as JSON")] = False

    def run(self) -> int:
        from backglass.tools.lines import rows

        found = rows()
        if self.json:
            print(json.dumps({"rows": found}))
        else:
            print_rows(found, self.files)
        return 0 if all(r["ok"] for r in found) else 1


def print_rows(found: list[dict], files: bool) -> None:
    """Path, lines, budget, and what it is."""
    print(f"{'path':12s} {'lines':>6s}  {'budget':>6s}")
    for r in found:
        budget = f"{r['budget']:6,d}" if r["budget"] else f"{'':6s}"
        over = "" if r["ok"] else f"   OVER by {r['lines'] - r['budget']:,}"
        print(f"{r['path']:12s} {r['lines']:6,d}  {budget}   {r['what']}{over}")
        for name, lines in r["files"].items() if files else ():
            print(f"{'':12s} {lines:6,d}     {name}")
    print(f"{'all':12s} {sum(r['lines'] for r in found):6,d}           code lines")
