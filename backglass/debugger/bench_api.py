"""The gradient bench over HTTP.  What computes is a POST, one at a time, and streams its progress;
numbers of a recorded update are read like any others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from backglass.debugger.bench import Bench, bench_of, gradients, of_parameter, plan
from backglass.debugger.bench_checks import Cell, curve, kernel_check, maths_check
from backglass.debugger.bench_model import model_check
from backglass.debugger.bench_update import update_of
from backglass.debugger.bench_values import cell_of
from backglass.debugger.problem import Problem
from backglass.debugger.server import (
    RECORDING,
    as_json,
    job,
    path_number,
    query_number,
    reading_of,
    require_writable,
    studio_of,
)

LONGEST_NAME = 200


def bench(request: Request) -> Response:
    return as_json(plan(bench_at(request), tensor_asked(request)))


def update(request: Request) -> Response:
    row, column = query_number(request, "row"), query_number(request, "column")
    cache, tensor = studio_of(request).cache, tensor_asked(request)
    return as_json(update_of(reading_of(request), cache, tensor, row, column))


async def maths(request: Request) -> Response:
    return await started(request, lambda b: partial(maths_check, only=cell_asked(request, b)))


async def kernel(request: Request) -> Response:
    return await started(request, lambda b: kernel_check)


async def step_sizes(request: Request) -> Response:
    return await started(request, lambda b: partial(curve, cell=cell_asked(request, b)))


async def model(request: Request) -> Response:
    require_writable(request, "checking computes")
    reading = await run_in_threadpool(reading_of, request)
    cache = studio_of(request).cache
    return job(request, lambda progress: model_check(reading, cache, progress=progress))


async def started(request: Request, work: Callable[[Bench], Callable]) -> Response:
    """A check of an event, begun."""
    require_writable(request, "checking computes")
    cache = studio_of(request).cache

    def prepared() -> Callable:
        b = of_parameter(bench_at(request), tensor_asked(request))
        return partial(work(b), b, cache)

    check = await run_in_threadpool(prepared)
    return job(request, lambda progress: check(progress=progress))


EVENT = RECORDING + "/events/{k}"
ROUTES: tuple[tuple[str, str, Callable], ...] = (
    ("GET", EVENT + "/bench", bench),
    ("POST", EVENT + "/bench/maths", maths),
    ("POST", EVENT + "/bench/kernel", kernel),
    ("POST", EVENT + "/bench/steps", step_sizes),
    ("POST", RECORDING + "/bench/model", model),
    ("GET", RECORDING + "/bench/update", update),
)

# ------------------------------------------------------------------ requests


def bench_at(request: Request) -> Bench:
    return bench_of(reading_of(request), path_number(request, "k"))


def tensor_asked(request: Request) -> str | None:
    """A parameter of AdamW's."""
    return short(request, "tensor")


def cell_asked(request: Request, b: Bench) -> Cell | None:
    """operand, row and column: a cell of an input, seen as a matrix."""
    of = short(request, "operand")
    if of is None:
        return None
    x = next((r["x"] for r in gradients(b) if r["of"] == of), None)
    if x is None:
        raise Problem(404, f"event {b.event['k']} has no gradient of an operand {of!r}")
    row, column = query_number(request, "row"), query_number(request, "column")
    return Cell(of, cell_of(x["shape"], row, column))


def short(request: Request, name: str) -> str | None:
    text = request.query_params.get(name)
    if text is not None and len(text) > LONGEST_NAME:
        raise Problem(400, f"{name} is longer than a name can be")
    return text
