"""The studio inside a notebook: `bg.studio("runs/a")` shows it below the cell.

The page may be framed by one origin only, the notebook server that this kernel belongs to, and only
the page itself: everything else still wants the token, which is in the frame's address.
"""

from __future__ import annotations

import html
import json
import os
import re
import secrets
import threading
from pathlib import Path
from typing import Any

from backglass.errors import wrong_use

ORIGIN = re.compile(r"https?://([\w.-]+|\[[0-9a-f:]+\])(:\d{1,5})?", re.ASCII)


class Inline:
    """A studio's server in a thread of this process.  In a notebook it displays as a frame around
    the page; elsewhere `url` opens it.  stop() ends it, and so does the end of the process.

    notebook: the notebook's origin, http://localhost:8888; None: that of the server which started
    this kernel, if it can be told.  height: of the frame, in pixels.  Raises UserError (wrong use)
    if there is nothing at `root` or the origin is none.
    """

    def __init__(self, root: Path, notebook: str | None, height: int):
        from backglass.debugger import server
        from backglass.debugger.shelf import Shelf

        if not root.exists():
            raise wrong_use(f"studio {root}: there is no such run, folder or recording")
        self.frames = origins() if notebook is None else (checked(notebook),)
        token, self.height = secrets.token_urlsafe(32), height
        at = server.listen(0)
        self.port = at.getsockname()[1]
        studio = server.Studio(Shelf(root), server.STATIC)
        self.server = server.server_of(server.app(studio, self.port, token, self.frames))
        self.url = f"http://127.0.0.1:{self.port}/#token={token}"
        self.thread = threading.Thread(target=self._serve, args=(at,), daemon=True)
        self.thread.start()

    def _serve(self, at: Any) -> None:
        with at:
            self.server.run(sockets=[at])

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def _repr_html_(self) -> str:
        url = html.escape(self.url)
        if not self.frames:
            return (
                f'<a href="{url}" target="_blank" rel="noreferrer">open the studio</a> (to show it '
                "here, say where the notebook is: notebook='http://localhost:8888')"
            )
        return (
            f'<iframe src="{url}" width="100%" height="{self.height}" style="border: 0" '
            'title="backglass studio" referrerpolicy="no-referrer"></iframe>'
        )

    def __repr__(self) -> str:
        """Without the token, which would stay in logs."""
        return f"the studio at port {self.port} of this machine; .url opens it"


def checked(origin: str) -> str:
    """An origin that may stand in a header."""
    if not ORIGIN.fullmatch(origin):
        raise wrong_use(f"notebook={origin!r} is no origin; it is like http://localhost:8888")
    return origin


def origins() -> tuple[str, ...]:
    """Of the notebook server that started this kernel, by its names on this machine; none if it
    cannot be told."""
    try:
        from jupyter_core.paths import jupyter_runtime_dir

        server = f"jpserver-{int(os.environ['JPY_PARENT_PID'])}.json"
        found = json.loads((Path(jupyter_runtime_dir()) / server).read_text("utf-8"))
        scheme, port = "https" if found["secure"] else "http", int(found["port"])
    except (ImportError, KeyError, ValueError, TypeError, OSError):
        return ()
    return tuple(f"{scheme}://{name}:{port}" for name in ("localhost", "127.0.0.1", "[::1]"))
