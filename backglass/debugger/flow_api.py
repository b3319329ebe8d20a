"""The addresses of attention and of the flow through the layers; who may ask is in guard.py."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from backglass.debugger.flow import attention, flow
from backglass.debugger.problem import Problem
from backglass.debugger.server import RECORDING, as_json, query_number, reading_of, studio_of


def flow_of_layers(request: Request) -> Response:
    return as_json(flow(reading_of(request), query_number(request, "run")))


def attention_maps(request: Request) -> Response:
    run, batch = (query_number(request, name) for name in ("run", "batch"))
    name = request.path_params["map"]
    if name not in ("att", "datt"):
        raise Problem(404, "There are maps of att and of datt.")
    octets = attention(reading_of(request), run, name, batch, studio_of(request).cache)
    headers = {"cache-control": "no-store"}
    return Response(octets, 200, headers, "application/octet-stream")


ROUTES: tuple[tuple[str, str, Callable], ...] = (
    ("GET", RECORDING + "/flow", flow_of_layers),
    ("GET", RECORDING + "/attention/{map}", attention_maps),
)
