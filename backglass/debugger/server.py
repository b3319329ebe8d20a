"""The studio's server: a recording over HTTP, on this machine only.  Routes and their answers are
listed in ROUTES; who may ask is in guard.py; pixels are in pyramid.py, exact numbers in matrix.py.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from backglass.debugger.formulas import formulas
from backglass.debugger.guard import Guard
from backglass.debugger.highlight import highlight
from backglass.debugger.job import Job
from backglass.debugger.matrix import Cache, cells, matrix_of
from backglass.debugger.pictures import histogram, picture
from backglass.debugger.problem import Problem
from backglass.debugger.pyramid import PLANES, shades, tile
from backglass.debugger.reading import Reading
from backglass.debugger.shelf import Shelf
from backglass.debugger.verify import verification
from backglass.errors import UserError, wrong_use

PACKAGE = Path(__file__).parent.parent
STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css",
    ".woff2": "font/woff2", ".svg": "image/svg+xml", ".png": "image/png",
    ".json": "application/json", ".txt": "text/plain; charset=utf-8",
}  # fmt: skip
FOREVER, ASK_AGAIN = "private, max-age=31536000, immutable", "private, no-cache"


@dataclass(frozen=True)
class Studio:
    """What the handlers share."""

    shelf: Shelf
    static: Path
    read_only: bool = False
    cap: int = 4 << 30  # bytes of all what-ifs of a recording together
    cache: Cache = field(default_factory=Cache)
    busy: threading.Lock = field(default_factory=threading.Lock)  # with one job at a time


def app(studio: Studio, port: int, token: str, frames: tuple[str, ...] = ()) -> Guard:
    """The ASGI app, guarded.  frames: origins of pages that may show it in a frame."""
    from backglass.debugger.bench_api import ROUTES as BENCH  # which answer with what is here
    from backglass.debugger.flow_api import ROUTES as FLOW
    from backglass.debugger.runs_api import ROUTES as RUNS

    routes = (*ROUTES, *RUNS, *BENCH, *FLOW)
    made = Starlette(
        routes=[Route(path, handler, methods=[m]) for m, path, handler in routes],
        exception_handlers={kind: told for kind in (UserError, OSError, HTTPException, Exception)},
    )
    made.router.redirect_slashes = False
    made.state.studio = studio
    return Guard(made, port, token, frames)


# ------------------------------------------------------------------ answers


def runs(request: Request) -> Response:
    return as_json(studio_of(request).shelf.rows())


def recording(request: Request) -> Response:
    return as_json(reading_of(request).overview())


def event(request: Request) -> Response:
    return as_json(reading_of(request).event(path_number(request, "k")))


def version(request: Request) -> Response:
    return as_json(reading_of(request).version_with_neighbours(path_number(request, "v")))


def version_picture(request: Request) -> Response:
    reading, v = reading_of(request), path_number(request, "v")
    digest = reading.version(v)["hash"]
    return unless_known(request, digest, "picture", lambda: picture(reading, v))


def version_histogram(request: Request) -> Response:
    return as_json(histogram(reading_of(request), path_number(request, "v")))


def version_tile(request: Request) -> Response:
    level, i, j = (query_number(request, name) for name in ("level", "i", "j"))
    plane = request.query_params.get("plane")
    if plane not in (None, *PLANES):
        raise Problem(400, f"plane is not one of {', '.join(PLANES)}")
    reading, cache = reading_of(request), studio_of(request).cache
    v = reading.version(path_number(request, "v"))

    def make() -> bytes:
        found = tile(matrix_of(reading, v, cache), cache, level, i, j)
        if plane:
            x = v["statistics"]
            largest = np.float32(max(abs(x["min"]), abs(x["max"]))) or np.float32(1)
            head = np.array([0, *found.shape[1:]], "<u4").tobytes() + largest.tobytes()
            return head + shades(found, plane, float(largest)).tobytes()
        return np.array(found.shape, "<u4").tobytes() + found.astype("<f4").tobytes()

    return unless_known(request, v["hash"], f"{level}-{i}-{j}-{plane or ''}", make)


def version_cells(request: Request) -> Response:
    wanted = (query_number(request, name) for name in ("row", "column", "height", "width"))
    reading = reading_of(request)
    v = reading.version(path_number(request, "v"))
    return as_json({"values": cells(matrix_of(reading, v, studio_of(request).cache), *wanted)})


def source(request: Request) -> Response:
    name = request.path_params["name"]
    text = reading_of(request).source(name)
    today = PACKAGE / name
    changed = today.read_bytes() != text if today.is_file() else None  # None: an op of a user's
    return as_json({"lines": highlight(text.decode("utf-8", "replace")), "changed": changed})


def maths(request: Request) -> Response:
    return as_json(formulas(reading_of(request), request.path_params["op"]))


async def verify(request: Request) -> Response:
    require_writable(request, "verifying computes")
    reading = await run_in_threadpool(reading_of, request)
    return job(request, partial(verification, reading))


def page(request: Request) -> Response:
    return static_file(studio_of(request).static / "index.html", "no-cache")


def asset(request: Request) -> Response:
    """A file of the built page, if the folder has one of exactly this name."""
    folder, name = studio_of(request).static / "assets", request.path_params["name"]
    if name not in {p.name for p in folder.iterdir() if p.is_file()}:
        raise Problem(404, "The page has no such file.")
    return static_file(folder / name, FOREVER)


RECORDING = "/api/recordings/{r}"
VERSION = RECORDING + "/versions/{v}"
ROUTES: tuple[tuple[str, str, Callable], ...] = (
    ("GET", "/", page),
    ("GET", "/assets/{name}", asset),
    ("GET", "/api/runs", runs),
    ("GET", RECORDING, recording),
    ("GET", RECORDING + "/events/{k}", event),
    ("GET", VERSION, version),
    ("GET", VERSION + "/picture", version_picture),
    ("GET", VERSION + "/histogram", version_histogram),
    ("GET", VERSION + "/tile", version_tile),
    ("GET", VERSION + "/cells", version_cells),
    ("GET", RECORDING + "/source/{name:path}", source),
    ("GET", RECORDING + "/maths/{op}", maths),
    ("POST", RECORDING + "/verify", verify),
)

# ------------------------------------------------------------------ requests


def studio_of(request: Request) -> Studio:
    return request.app.state.studio


def reading_of(request: Request) -> Reading:
    return studio_of(request).shelf.reading(request.path_params["r"])


def require_writable(request: Request, why: str) -> None:
    if studio_of(request).read_only:
        raise Problem(403, f"This studio was started with --read-only, and {why}.")


def path_number(request: Request, name: str) -> int:
    return natural(request.path_params[name], name, 404)


def query_number(request: Request, name: str) -> int:
    if name not in request.query_params:
        raise Problem(400, f"{name} is missing; it is a whole number from 0")
    return natural(request.query_params[name], name, 400)


def natural(text: str, name: str, status: int) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 15):
        raise Problem(status, f"{name} is not a whole number from 0")
    return int(text)


# ------------------------------------------------------------------ responses


def as_json(value: Any, status: int = 200) -> Response:
    try:
        text = json.dumps(cleaned(value), allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise Problem(422, "The manifest of this recording is nested too deeply.") from None
    return Response(text, status, {"cache-control": "no-store"}, "application/json")


def cleaned(value: Any) -> Any:
    """JSON has no word for numbers that are not finite: they become "nan", "inf", "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: cleaned(v) for k, v in value.items()}
    return [cleaned(v) for v in value] if isinstance(value, (list, tuple)) else value


def unless_known(request: Request, digest: str, what: str, make: Callable[[], bytes]) -> Response:
    """Octets that belong to a tensor's hash; 304 if the client has them.  The address names a
    version, which another recording may have some day, so the client has to ask again, unless the
    address has the hash too (&hash=…)."""
    tag = f'"{digest}-{what}"'
    certain = request.query_params.get("hash") == digest
    headers = {"etag": tag, "cache-control": FOREVER if certain else ASK_AGAIN}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(make(), 200, headers, "application/octet-stream")


def job(request: Request, work: Callable[..., dict[str, Any]]) -> Response:
    """Its progress and outcome, one JSON object a line.  One job at a time."""
    if not (busy := studio_of(request).busy).acquire(blocking=False):
        raise Problem(409, "Something is being computed already. Wait until that has ended.")
    return streamed(Job(work, busy).rows())


def streamed(rows: AsyncIterator[dict[str, Any]]) -> Response:
    lines = (json.dumps(cleaned(row)) + "\n" async for row in rows)
    headers = {"cache-control": "no-store"}
    return StreamingResponse(lines, headers=headers, media_type="application/x-ndjson")


def static_file(path: Path, caching: str) -> Response:
    kind = TYPES.get(path.suffix, "application/octet-stream")
    return Response(path.read_bytes(), 200, {"cache-control": caching}, kind)


def told(request: Request, error: Exception) -> Response:
    """What went wrong, as JSON."""
    if isinstance(error, UserError):
        return as_json({"error": str(error)}, getattr(error, "status", 422))
    if isinstance(error, OSError):
        return as_json({"error": f"A file of the recording cannot be read: {error}"}, 422)
    if isinstance(error, HTTPException):
        why = {405: f"This address does not answer {request.method}."}
        what = why.get(error.status_code, "There is nothing at this address.")
        return as_json({"error": what}, error.status_code)
    return as_json({"error": f"This is a fault of backglass: {error!r}"}, 500)


# ------------------------------------------------------------------ serving


def serve(root: Path, port: int, read_only: bool, cap: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.  ready: called with the address, once connections are taken."""
    studio, token = Studio(Shelf(root), STATIC, read_only, cap), secrets.token_urlsafe(32)
    with listen(port) as at:
        port = at.getsockname()[1]
        server = server_of(app(studio, port, token))
        with contextlib.suppress(KeyboardInterrupt):  # which uvicorn may raise once more
            ready(f"http://127.0.0.1:{port}/#token={token}")
            server.run(sockets=[at])


def server_of(guarded: Guard) -> uvicorn.Server:
    config = uvicorn.Config(
        guarded, log_level="warning", access_log=False, lifespan="off", ws="none",
        proxy_headers=False, server_header=False, limit_concurrency=64,
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    guarded.app.state.ending = lambda: server.should_exit  # for answers that wait
    return server


def listen(port: int) -> socket.socket:
    """A socket on the loopback address, which no other machine reaches."""
    at = socket.socket()
    try:
        if os.name == "posix":  # elsewhere it would let two programs have one port
            at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        at.bind(("127.0.0.1", port))
        at.listen(128)
    except (OSError, OverflowError) as error:
        at.close()
        raise wrong_use(
            f"--port {port} cannot be used: {error}. Choose another, or leave it out for a free one"
        ) from None
    return at
