"""backglass plot"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from backglass.commands.options import Number, opt
from backglass.errors import wrong_use


@dataclass
class Plot:
    """Draw loss, validation loss, gradient norm and learning rate of runs; also while they train.

    For example:
      backglass plot runs/a                              to plot.png
      backglass plot runs/a runs/b --out compare.png     two runs in one picture
      backglass plot runs/a --smooth 0.98
    """

    runs: Annotated[Positional[tuple[Path, ...]], arg(help="run directories", metavar="RUN...")]
    out: Annotated[Path, arg(help="picture to write: .png, .svg or .pdf", metavar="FILE.png")] = (
        Path("plot.png")
    )
    smooth: Annotated[
        Number,
        opt("memory of the exponential mean, in [0, 1); 0: none", "X",
            "(default: 0.9, less for short runs)"),
    ] = None  # fmt: skip
    json: Annotated[bool, arg(help="figures as JSON")] = False

    def run(self) -> int:
        from backglass.tools import curves

        if not self.runs:
            raise wrong_use("plot: no run given; give run directories, such as runs/a")
        if self.smooth is not None and not 0 <= self.smooth < 1:
            raise wrong_use(f"--smooth must be in [0, 1), got {self.smooth}")
        if self.out.suffix.lower() not in curves.SUFFIXES:
            raise wrong_use(f"--out {self.out}: the name must end in {', '.join(curves.SUFFIXES)}")
        logs, names = curves.load(self.runs), curves.run_names(list(self.runs))
        curves.draw(logs, names, self.smooth, self.out)
        rows = [curves.summary(log, name) for log, name in zip(logs, names, strict=True)]
        if self.json:
            print(json.dumps({"out": str(self.out), "rows": rows}))
            return 0
        for log, row in zip(logs, rows, strict=True):
            print_summary(row, curves.sparkline(log.step["loss"]))
        print(f"drawn in {self.out}")
        return 0


def print_summary(row: dict, line: str) -> None:
    """A few lines about one run."""
    print(f"{row['run']}: {row['steps']} steps{', still writing or cut off' * row['unfinished']}")
    if row["loss_first"] is not None:
        print(f"  loss  {row['loss_first']:.4f} {line} {row['loss_last']:.4f} (smoothed)")
    if row["val_best"] is not None:
        print(f"  validation loss {row['val_last']:.4f}, lowest {row['val_best']:.4f} at step "
              f"{row['val_best_step']}")  # fmt: skip
    if row["tokens_per_s"] is not None:
        print(f"  {row['tokens_per_s']:,.0f} tokens/s (median)")
    if row["not_finite"]:
        print(f"  {row['not_finite']} steps have a loss that is not finite")
