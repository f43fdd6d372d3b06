"""From outcomes to HTTP replies, in the shape of each endpoint."""

import json
import time

from aiohttp import web

from llmqueue.simulator.answers import Json, Usage
from llmqueue.simulator.parsing import Malformed
from llmqueue.simulator.simulation import Answered, Broken, Call, Outcome, Refused


def reply(body: Json, status: int = 200, retry_after_s: int | None = None) -> web.Response:
    """A JSON reply."""
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    return web.Response(body=json.dumps(body).encode(), status=status, headers=headers, content_type="application/json")


def malformed(error: Malformed) -> web.Response:
    """The reply to a body that cannot be used."""
    return reply({"error": {"type": "invalid_request", "message": error.message}}, error.status)


def single(calls: list[Call], outcomes: list[Outcome]) -> web.Response:
    """The reply of POST /single."""
    match outcomes[0]:
        case Answered() as answered:
            return reply(_answer(answered))
        case Refused() as refused:
            return _refusal(refused)
        case Broken():
            return _unreadable()


def batch(calls: list[Call], outcomes: list[Outcome]) -> web.Response:
    """The reply of POST /batch: an error belongs to its item, an unknown model to all of them."""
    if outcomes and all(isinstance(outcome, Refused) and outcome.status == 404 for outcome in outcomes):
        return single(calls, outcomes)
    results: list[Json] = []
    for call, outcome in zip(calls, outcomes, strict=True):
        match outcome:
            case Refused() as refused:
                results.append({"id": call.key, "error": _error(refused)})
            case Answered() as answered:
                results.append({"id": call.key, **_answer(answered)})
            case Broken():
                return _unreadable()
    return reply({"results": results})


def chat(calls: list[Call], outcomes: list[Outcome]) -> web.Response:
    """The reply of POST /v1/chat/completions."""
    match outcomes[0]:
        case Answered() as answered:
            return reply(_completion(calls[0], answered))
        case Refused() as refused:
            return _refusal(refused)
        case Broken():
            return _unreadable()


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


def _unreadable() -> web.Response:
    return web.Response(body=b'{"answer": "cut o', content_type="application/json")
