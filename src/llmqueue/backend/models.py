"""The adapter of the Models Backend: POST /single. Field names and path are settings: people's backends differ."""

from __future__ import annotations

from dataclasses import dataclass

import httpx

from llmqueue.backend import http
from llmqueue.backend.inner_error import read_error
from llmqueue.backend.protocol import Call
from llmqueue.models import Answer, Breakdown, Json, Reply, Usage


@dataclass(frozen=True, slots=True)
class Fields:
    """What the backend calls things."""

    single_path: str = "/single"
    model: str = "model"
    prompt: str = "prompt"
    params: str = "params"
    answer: str = "answer"
    usage: str = "usage"
    input_tokens: str = "prompt_tokens"
    output_tokens: str = "completion_tokens"


class ModelsBackend:
    """Calls `POST single_path` of one base URL; `secret` goes out as a bearer token."""

    def __init__(self, base_url: str, secret: str | None, fields: Fields) -> None:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._base_url = base_url
        self._http = http.client(base_url, headers)
        self._fields = fields

    async def call(self, call: Call) -> Reply:
        fields = self._fields
        body: dict[str, Json] = {fields.model: call.model, fields.prompt: call.prompt}
        if call.params is not None:
            body[fields.params] = call.params
        reply = await http.post(self._http, fields.single_path, body, call.idempotency_key)
        return self._read(reply) if isinstance(reply, httpx.Response) else reply

    def _read(self, response: httpx.Response) -> Reply:
        try:
            body = response.json()
        except (ValueError, RecursionError):
            return Breakdown("unreadable_reply", f"200 without JSON, {len(response.content)} bytes")
        if not isinstance(body, dict) or body.get(self._fields.answer) is None:
            missing = Breakdown("unreadable_reply", f"200 without a field {self._fields.answer!r}")
            return read_error(body) or missing
        usage = body.get(self._fields.usage)
        return Answer(
            body[self._fields.answer], read_usage(usage, self._fields.input_tokens, self._fields.output_tokens)
        )

    async def probe(self) -> str | None:
        return await http.probe(self._base_url)

    async def aclose(self) -> None:
        await self._http.aclose()


def read_usage(usage: Json, input_field: str, output_field: str) -> Usage:
    """Returns the counts of a usage object; what is missing or no count is None."""
    if not isinstance(usage, dict):
        return Usage()
    return Usage(_count(usage.get(input_field)), _count(usage.get(output_field)))


def _count(value: Json) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return value if is_count else None
