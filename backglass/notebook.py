"""The studio inside a notebook: `bg.studio("runs/a")` shows it below the cell."""

from __future__ import annotations

import html
import threading
from pathlib import Path

HEIGHT = 760  # pixels


class Inline:
    """A studio's server in a thread of this process.  In Jupyter it displays as a frame around the
    page; elsewhere `url` opens it.  stop() ends it, and so does the end of the process."""

    def __init__(self, root: Path, height: int = HEIGHT):
        import secrets

        from backglass.debugger import server
        from backglass.debugger.guard import NOTEBOOKS
        from backglass.debugger.shelf import Shelf

        token = secrets.token_urlsafe(32)
        self.at = server.listen(0)
        self.port, self.height = self.at.getsockname()[1], height
        app = server.app(server.Studio(Shelf(root), server.STATIC), self.port, token, NOTEBOOKS)
        self.server = server.server_of(app)
        self.url = f"http://127.0.0.1:{self.port}/#token={token}"
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        with self.at:
            self.server.run(sockets=[self.at])

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def _repr_html_(self) -> str:
        return (
            f'<iframe src="{html.escape(self.url)}" width="100%" height="{self.height}" '
            'style="border: 0" title="backglass studio" referrerpolicy="no-referrer"></iframe>'
        )

    def __repr__(self) -> str:
        """Without the token, which would stay in logs."""
        return f"the studio at port {self.port} of this machine; .url opens it"
