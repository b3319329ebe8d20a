"""backglass studio"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg

from backglass.commands.options import Count, Text, opt
from backglass.commands.plan import parse_bytes
from backglass.errors import wrong_use


@dataclass
class Studio:
    """Step through a recorded training step in the browser: op by op, forwards and backwards.

    Every tensor, the formula and derivation of every op, and the kernel's lines that ran; the
    curves of a run while it trains, two recordings compared, a number changed to see what follows.
    The page is served on this machine only (127.0.0.1), to whoever has the token in the printed
    address; nothing is loaded from elsewhere. Ctrl-C ends it. From another machine:
    ssh -L PORT:127.0.0.1:PORT, with --port PORT here.

    For example:
      backglass trace runs/a --level 3                  record a step with all tensors, then
      backglass studio runs/a                           look at it
      backglass studio runs                             at several runs, what is recorded of them
                                                        and how their training goes
      backglass studio runs/a/trace/step-00000100       at one recording
      backglass studio runs --port 8000 --no-browser
    """

    path: Annotated[
        Positional[Path], arg(help="a run, a folder of runs, or a recording", metavar="PATH")
    ]
    port: Annotated[Count, opt("port of this machine", "P", "(default: a free one)")] = None
    no_browser: Annotated[FlagCreatePairsOff[bool], arg(help="only print the address")] = False
    read_only: Annotated[
        FlagCreatePairsOff[bool], arg(help="nothing can be started from the page")
    ] = False
    max_disk: Annotated[
        Text, opt("what all what-ifs of a recording may take", "4GiB", "(default: 4GiB)")
    ] = None

    def run(self) -> int:
        port = self.port or 0
        if not 0 <= port < 1 << 16:
            raise wrong_use(f"--port must be from 0 (a free one) to 65535, got {port}")
        if not self.path.exists():
            raise wrong_use(f"studio {self.path}: there is no such run, folder or recording")
        from backglass.debugger.reading import Reading
        from backglass.debugger.server import STATIC, serve
        from backglass.debugger.shelf import Shelf

        runs = Shelf(self.path).runs()
        found = [recording for run in runs for recording in run.recordings]
        if len(found) == 1:
            Reading(found[0])  # says at once what is wrong with it
        if not runs:
            raise wrong_use(
                f"studio {self.path}: there is no run and nothing recorded. `backglass train tiny "
                "--out runs/a` trains, `backglass trace tiny` records a step."
            )
        if not (STATIC / "index.html").is_file():
            raise wrong_use(
                f"the studio's page is not built: {STATIC} has no index.html. In a clone of the "
                "repository: cd web && npm ci && npm run build. The wheel brings it."
            )
        cap = parse_bytes(self.max_disk or "4GiB", "--max-disk")
        serve(self.path, port, self.read_only, cap, self.ready)
        return 0

    def ready(self, url: str) -> None:
        print(url, flush=True)
        if not self.no_browser and has_screen():
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def has_screen() -> bool:
    """Whether a browser would open beside the terminal, and not in it."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in names)
