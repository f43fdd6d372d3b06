"""Builds HTTP replies from outcomes, in the form of each endpoint."""

import json
import time
import zlib
from functools import cache

from aiohttp import web

from llmqueue.fake_backend.answers import Json, Usage
from llmqueue.fake_backend.parsing import Malformed
from llmqueue.fake_backend.simulation import Answered, Broken, Call, Outcome, Refused


def reply(body: Json, status: int = 200, retry_after_s: int | None = None) -> web.Response:
    """Returns a JSON reply."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.Response(body=json.dumps(body).encode(), status=status, headers=headers, content_type="application/json")


def malformed(error: Malformed) -> web.Response:
    """Returns the reply to an invalid body."""
    return reply({"error": {"type": "invalid_request", "message": error.message}}, error.status)


def single(calls: list[Call], outcomes: list[Outcome]) -> web.Response:
    """Returns the reply of POST /single."""
    match outcomes[0]:
        case Answered() as answered:
            return reply(_answer(answered))
        case Refused() as refused:
            return _refusal(refused)
        case Broken() as broken:
            return _broken(broken, calls[0])


def batch(calls: list[Call], outcomes: list[Outcome]) -> web.Response:
    """Returns the reply of POST /batch: an error belongs to its item, but an unknown model to the whole batch."""
    if outcomes and all(isinstance(outcome, Refused) and outcome.status == 404 for outcome in outcomes):
        return single(calls, outcomes)
    results: list[Json] = []
    for call, outcome in zip(calls, outcomes, strict=True):
        match outcome:
            case Refused() as refused:
                results.append({"id": call.key, "error": _error(refused)})
            case Answered() as answered:
                results.append({"id": call.key, **_answer(answered)})
            case Broken() as broken:
                return _broken(broken, call)
    return reply({"results": results})


def chat(calls: list[Call], outcomes: list[Outcome]) -> web.Response:
    """Returns the reply of POST /v1/chat/completions."""
    match outcomes[0]:
        case Answered() as answered:
            return reply(_completion(calls[0], answered))
        case Refused() as refused:
            return _refusal(refused)
        case Broken() as broken:
            return _broken(broken, calls[0])


def _completion(call: Call, answered: Answered) -> Json:
    message: Json = {"role": "assistant", "content": answered.answer}
    usage = _usage(answered.usage)
    return {
        "id": "chatcmpl-simulated",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": call.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }


def _answer(answered: Answered) -> dict[str, Json]:
    return {"answer": answered.answer, "usage": {**_usage(answered.usage)}}


def _usage(usage: Usage) -> dict[str, int]:
    return {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}


def _error(refused: Refused) -> dict[str, Json]:
    error: dict[str, Json] = {"type": refused.kind, "message": refused.message}
    return error if refused.retry_after_s is None else error | {"retry_after": refused.retry_after_s}


def _refusal(refused: Refused) -> web.Response:
    return reply({"error": _error(refused)}, refused.status, refused.retry_after_s)


def _broken(broken: Broken, call: Call) -> web.Response:
    """Returns an unusable reply, with one of the faults of faults.py."""
    match broken.how:
        case "redirect":
            return web.Response(status=307, headers={"Location": "/single?secret=of-the-location"})
        case "error-inside":
            return reply({"error": {"type": "server_error", "message": "simulated error inside a 200"}})
        case "no-answer":
            return reply({"usage": {"prompt_tokens": 1, "completion_tokens": 0}})
        case "other-key":
            answer = reply({"answer": "of another call", "usage": {}})
            answer.headers["Idempotency-Key"] = f"not {call.key}"
            return answer
        case "bomb":
            headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
            return web.Response(body=_bomb(), headers=headers)
        case _:
            return web.Response(body=b'{"answer": "cut o', content_type="application/json")


@cache
def _bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return b"".join([*(packer.compress(bytes(1_000_000)) for _ in range(100)), packer.flush()])
