"""The adapter of the Models Backend: POST /single and /batch. What they are called is a setting: backends differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from llmqueue.backend import http
from llmqueue.backend.classify import read_error
from llmqueue.backend.protocol import Call
from llmqueue.types import Answer, Json, Reply, TransientError, Usage


@dataclass(frozen=True, slots=True)
class Fields:
    """What the backend calls things."""

    single_path: str = "/single"
    batch_path: str = "/batch"
    model: str = "model"
    prompt: str = "prompt"
    params: str = "params"
    answer: str = "answer"
    usage: str = "usage"
    input_tokens: str = "prompt_tokens"
    output_tokens: str = "completion_tokens"


class ModelsBackend:
    """Calls `POST single_path` and `batch_path` of one base URL; `secret` goes out as a bearer token."""

    def __init__(self, base_url: str, secret: str | None, fields: Fields) -> None:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._base_url = base_url
        self._http = http.client(base_url, headers)
        self._fields = fields

    async def call(self, call: Call) -> Reply:
        asked = {self._fields.model: call.model, **self._asked(call)}
        reply = await http.post(self._http, self._fields.single_path, asked, call.idempotency_key)
        if not isinstance(reply, httpx.Response):
            return reply
        body = read_json(reply)
        return body if isinstance(body, TransientError) else self._read(body)

    async def call_batch(self, calls: Sequence[Call]) -> Sequence[Reply]:
        items = [{"id": call.idempotency_key, **self._asked(call)} for call in calls]
        asked = {self._fields.model: calls[0].model, "items": items}
        key = " ".join(call.idempotency_key for call in calls)
        reply = await http.post(self._http, self._fields.batch_path, asked, key)
        if not isinstance(reply, httpx.Response):
            return [reply] * len(calls)
        body = read_json(reply)
        if isinstance(body, TransientError):
            return [body] * len(calls)
        results = body.get("results") if isinstance(body, dict) else None
        if not isinstance(results, list):
            return [read_error(body) or TransientError("unreadable_reply", "200 without a list 'results'")] * len(calls)
        by_id = {result.get("id"): result for result in results if isinstance(result, dict) and _is_id(result)}
        return [self._read(by_id[key]) if (key := call.idempotency_key) in by_id else _nothing() for call in calls]

    def _asked(self, call: Call) -> dict[str, Json]:
        params = {} if call.params is None else {self._fields.params: call.params}
        return {self._fields.prompt: call.prompt, **params}

    def _read(self, body: Json) -> Reply:
        if not isinstance(body, dict) or body.get(self._fields.answer) is None:
            missing = TransientError("unreadable_reply", f"200 without a field {self._fields.answer!r}")
            return read_error(body) or missing
        usage = body.get(self._fields.usage)
        return Answer(
            body[self._fields.answer], read_usage(usage, self._fields.input_tokens, self._fields.output_tokens)
        )

    async def probe(self) -> str | None:
        return await http.probe(self._base_url)

    async def aclose(self) -> None:
        await self._http.aclose()


def read_json(response: httpx.Response) -> Json | TransientError:
    """Returns the JSON of a 200; a TransientError where there is none, or more of it than can be read."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return TransientError("unreadable_reply", f"200 without JSON, {len(response.content)} bytes")


def _is_id(result: dict[str, Json]) -> bool:
    return isinstance(result.get("id"), str)


def _nothing() -> Reply:
    return TransientError("no_result", "the reply to the batch has no result for this task")


def read_usage(usage: Json, input_field: str, output_field: str) -> Usage:
    """Returns the counts of a usage object; what is missing or no count is None."""
    if not isinstance(usage, dict):
        return Usage()
    return Usage(_count(usage.get(input_field)), _count(usage.get(output_field)))


def _count(value: Json) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if is_count else None
