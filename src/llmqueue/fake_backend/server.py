"""The HTTP endpoints.

    POST /single               {"model","prompt","params"?} -> {"answer","usage"}
    POST /batch                {"model","items":[{"id","prompt","params"?}]} -> {"results":[…]}, all at once
    POST /v1/chat/completions  OpenAI's shape
    GET  /health               {"ok": true, "models": […]}
    GET  /calls                ?since=SEQ&model=NAME&limit=N: a page of the call log; pass `next` as `since`
    GET  /limits, PUT /limits  {"MODEL": calls per minute or null}; other models keep their limits
    GET  /faults, PUT /faults  {"error_rate": 0.5, …}: the rates of all models; other rates become 0

Markers in a prompt force a fault (faults.py) or an answer (answers.py).
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict

from aiohttp import web

from llmqueue.fake_backend import replies
from llmqueue.fake_backend.answers import Json
from llmqueue.fake_backend.call_log import Arrival, as_json
from llmqueue.fake_backend.parsing import (
    Malformed,
    parse_batch,
    parse_chat,
    parse_faults,
    parse_limits,
    parse_single,
)
from llmqueue.fake_backend.simulation import Broken, Call, Outcome, Simulation

_MAX_BODY_BYTES = 64 * 1024 * 1024
_PAGE_CALLS = 1_000
_MAX_PAGE_CALLS = 10_000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(simulation: Simulation) -> web.Application:
    """Returns the backend as an aiohttp application."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app.add_routes(
        [
            web.post("/single", _calls_handler(simulation, parse_single, replies.single)),
            web.post("/batch", _calls_handler(simulation, parse_batch, replies.batch)),
            web.post("/v1/chat/completions", _calls_handler(simulation, parse_chat, replies.chat)),
            web.get("/health", _health_handler(simulation)),
            web.get("/calls", _log_handler(simulation)),
            web.get("/limits", _limits_handler(simulation)),
            web.put("/limits", _change_limits_handler(simulation)),
            web.get("/faults", _faults_handler(simulation)),
            web.put("/faults", _change_faults_handler(simulation)),
        ]
    )
    return app


def _calls_handler(
    simulation: Simulation,
    parse: Callable[[bytes, str | None], list[Call]],
    render: Callable[[list[Call], list[Outcome]], web.Response],
) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        arrival = Arrival.now()
        try:
            calls = parse(await _body(request), request.headers.get("Idempotency-Key"))
        except Malformed as error:
            log = simulation.log
            log.finish(log.arrive(arrival, "", request.headers.get("Idempotency-Key")), error.status)
            return replies.malformed(error)
        outcomes = await _run_all(simulation, calls, arrival)
        for outcome in outcomes:
            if isinstance(outcome, Broken) and (stream := _STREAMS.get(outcome.how)):
                return await stream(request)
        return render(calls, outcomes)

    return handle


async def _run_all(simulation: Simulation, calls: list[Call], arrival: Arrival) -> list[Outcome]:
    if len(calls) == 1:
        return [await simulation.run(calls[0], arrival)]
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(simulation.run(call, arrival)) for call in calls]
    return [run.result() for run in runs]


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Malformed(413, f"the body is larger than {_MAX_BODY_BYTES} bytes") from None


async def _reset(request: web.Request) -> web.StreamResponse:
    """Sends a TCP reset and waits until the lost connection cancels it."""
    if request.transport is None:
        return web.Response()  # the client has left already
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    await asyncio.get_running_loop().create_future()
    return web.Response()


async def _endless(request: web.Request) -> web.StreamResponse:
    return await _stream(request, b"x" * 65_536, 0.0)


async def _drip(request: web.Request) -> web.StreamResponse:
    return await _stream(request, b"x", 0.05)


async def _stream(request: web.Request, piece: bytes, pause_s: float) -> web.StreamResponse:
    """Sends an answer that does not end until the client leaves."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with suppress(ConnectionError):
        await response.write(b'{"answer": "')
        while True:
            await response.write(piece)
            await asyncio.sleep(pause_s)
    return response


_STREAMS: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {
    "reset": _reset,
    "endless": _endless,
    "drip": _drip,
}


def _health_handler(simulation: Simulation) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return replies.reply({"ok": True, "models": list(simulation.config.models)})

    return handle


def _log_handler(simulation: Simulation) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            since = int(request.query.get("since", "0"))
            limit = min(int(request.query.get("limit", _PAGE_CALLS)), _MAX_PAGE_CALLS)
        except ValueError:
            return replies.malformed(Malformed(400, "since and limit must be whole numbers"))
        calls = simulation.log.calls(since, request.query.get("model"), limit)
        return web.json_response(
            {
                "calls": [as_json(call) for call in calls],
                "next": calls[-1].seq if calls else since,
                "dropped": simulation.log.dropped,
            }
        )

    return handle


def _limits_handler(simulation: Simulation) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return replies.reply(_limits(simulation))

    return handle


def _change_limits_handler(simulation: Simulation) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            limits = parse_limits(await _body(request))
            for model in limits:
                if not simulation.config.serves(model):
                    raise Malformed(404, f"there is no model {model}")
        except Malformed as error:
            return replies.malformed(error)
        simulation.limits.rpm.update(limits)
        return replies.reply(_limits(simulation))

    return handle


def _limits(simulation: Simulation) -> Json:
    return {**simulation.limits.rpm}


def _faults_handler(simulation: Simulation) -> Handler:
    async def handle(_: web.Request) -> web.StreamResponse:
        return replies.reply({**asdict(simulation.faults)})

    return handle


def _change_faults_handler(simulation: Simulation) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            simulation.faults = parse_faults(await _body(request))
        except Malformed as error:
            return replies.malformed(error)
        return replies.reply({**asdict(simulation.faults)})

    return handle
