"""What the studio's server answers about several recordings and about runs that go on: the curves
of a training, two recordings compared, a step done again with one number changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from backglass.debugger.live import MOST_RUNS, MOST_SECONDS, news, parse_cursor
from backglass.debugger.problem import Problem
from backglass.debugger.server import (
    RECORDING,
    as_json,
    job,
    query_number,
    reading_of,
    require_writable,
    streamed,
    studio_of,
)
from backglass.debugger.shelf import id_of
from backglass.errors import UserError

LARGEST_BODY_BYTES = 4 << 10


async def live(request: Request) -> Response:
    """?on=RUN:CURSOR,RUN&wait=SECONDS: what is new of these runs, at once if something is."""
    asked = request.query_params.get("on", "")
    pairs = [part.partition(":")[::2] for part in asked.split(",") if part]
    if len(pairs) > MOST_RUNS:
        raise Problem(400, f"on: at most {MOST_RUNS} runs can be followed, got {len(pairs)}")
    wait = query_number(request, "wait") if "wait" in request.query_params else 0
    shelf = studio_of(request).shelf
    cursors = [(given, parse_cursor(cursor)) for given, cursor in pairs]
    ending = request.app.state.ending
    return as_json({"runs": await news(shelf, cursors, min(wait, MOST_SECONDS), ending)})


def named(request: Request) -> Response:
    """?number=N: that version of a tensor, by its name."""
    tensor, number = request.path_params["tensor"], query_number(request, "number")
    return as_json(reading_of(request).named(tensor, number))


async def compare(request: Request) -> Response:
    """Two recordings, event by event: rows of compare.rows, one JSON object a line."""
    from backglass.debugger.compare import rows
    from backglass.debugger.guarded import GuardedTrace

    studio = studio_of(request)
    ids = request.path_params["r"], request.path_params["other"]
    a, b = [await run_in_threadpool(studio.shelf.reading, given) for given in ids]
    traces = [await run_in_threadpool(GuardedTrace, x, studio.cache) for x in (a, b)]

    def found() -> Iterator[dict[str, Any]]:
        try:
            yield from rows(*traces)
        except UserError as error:
            yield {"error": str(error)}
        finally:
            for trace in traces:
                trace.close()

    return streamed(iterate_in_threadpool(found()))


async def what_if(request: Request) -> Response:
    """{"version", "index", "value"}: the step done again with that cell changed."""
    from backglass.debugger import whatif

    require_writable(request, "a what-if computes and writes")
    asked = await body_of(request)
    studio = studio_of(request)
    reading = await run_in_threadpool(reading_of, request)
    wanted = (asked.get(k) for k in ("version", "index", "value"))
    edit, event = await run_in_threadpool(whatif.edit_of, reading, *wanted)
    await run_in_threadpool(whatif.require_room, reading.folder, studio.cap)

    def work(progress: Callable[[int, int], None]) -> dict[str, Any]:
        folder = whatif.what_if(reading, edit, event, progress, studio.cap)
        return {"recording": id_of(folder), "event": event}

    return job(request, work)


async def delete(request: Request) -> Response:
    """Delete a what-if."""
    from backglass.debugger import whatif

    require_writable(request, "deleting changes what is on disk")
    reading = await run_in_threadpool(reading_of, request)
    studio_of(request).shelf.forget(request.path_params["r"])
    await run_in_threadpool(whatif.remove, reading.folder)
    return as_json({"deleted": request.path_params["r"]})


async def body_of(request: Request) -> dict[str, Any]:
    """A JSON object that was sent.  Raises Problem for anything else."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY_BYTES:
            raise Problem(413, f"A request here has at most {LARGEST_BODY_BYTES} bytes.")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Problem(400, 'The request is no JSON object such as {"version": 3, …}.')
    return found


ROUTES: tuple[tuple[str, str, Callable], ...] = (
    ("GET", "/api/live", live),
    ("GET", RECORDING + "/named/{tensor:path}", named),
    ("GET", RECORDING + "/compare/{other}", compare),
    ("POST", RECORDING + "/what-if", what_if),
    ("POST", RECORDING + "/delete", delete),
)
