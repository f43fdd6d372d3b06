"""The adapter of servers that speak OpenAI's POST /v1/chat/completions."""

from __future__ import annotations

import httpx

from llmqueue.backend import http
from llmqueue.backend.classify import read_error
from llmqueue.backend.models_backend import read_json, read_usage
from llmqueue.backend.protocol import Call
from llmqueue.types import Answer, Json, PermanentError, Reply, TransientError


class OpenAIBackend:
    """Calls `POST /v1/chat/completions`; `params` are the other fields of the request."""

    def __init__(self, base_url: str, secret: str | None) -> None:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._base_url = base_url
        self._http = http.client(base_url, headers)

    async def call(self, call: Call) -> Reply:
        if call.params is not None and not isinstance(call.params, dict):
            return PermanentError("params_no_object", "params must be a JSON object: they are fields of the request")
        body: dict[str, Json] = {**(call.params or {}), "model": call.model, "messages": messages(call.prompt)}
        reply = await http.post(self._http, "/v1/chat/completions", body, call.idempotency_key)
        return _read(reply) if isinstance(reply, httpx.Response) else reply

    async def probe(self) -> str | None:
        return await http.probe(self._base_url)

    async def aclose(self) -> None:
        await self._http.aclose()


def messages(prompt: Json) -> Json:
    """Returns a JSON prompt that is a list as it is, anything else as one message of the user."""
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]


def _read(response: httpx.Response) -> Reply:
    body = read_json(response)
    if isinstance(body, TransientError):
        return body
    try:
        content = body["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        missing = f"200 without choices[0].message.content, {len(response.content)} bytes"
        return read_error(body) or TransientError("unreadable_reply", missing)
    if content is None:
        return read_error(body) or TransientError("unreadable_reply", "200 with a message without content")
    return Answer(content, read_usage(body.get("usage"), "prompt_tokens", "completion_tokens"))
