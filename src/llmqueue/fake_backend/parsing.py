"""Parses request bodies into calls, for the three forms of a request."""

import json
from dataclasses import fields as fields_of

from llmqueue.fake_backend.answers import Json
from llmqueue.fake_backend.faults import FaultRates
from llmqueue.fake_backend.simulation import Call


class Malformed(Exception):
    """The body is invalid: 400 if it is not JSON, 422 if its content is wrong."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def parse_single(body: bytes, key: str | None) -> list[Call]:
    """Returns the single call of POST /single."""
    return [_call(parse_object(body), key)]


def parse_batch(body: bytes, key: str | None) -> list[Call]:
    """Returns the calls of POST /batch. The key of each item is its id; the header is ignored."""
    fields = parse_object(body)
    items = fields.get("items")
    if not isinstance(items, list):
        raise Malformed(422, "items must be a list")
    return [_item(item, fields.get("model")) for item in items]


def parse_chat(body: bytes, key: str | None) -> list[Call]:
    """Returns the single call of POST /v1/chat/completions.

    A single user message with plain text counts as that text, so it gets the same answer as through /single.
    """
    fields = parse_object(body)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise Malformed(422, "messages must be a list with at least one message")
    if fields.get("stream"):
        raise Malformed(400, "streaming is not simulated")
    return [_call({"model": fields.get("model"), "prompt": _plain(messages), "params": fields}, key)]


def parse_limits(body: bytes) -> dict[str, int | None]:
    """Returns the limits of PUT /limits: calls per minute by model, null for no limit."""
    limits: dict[str, int | None] = {}
    for model, rpm in parse_object(body).items():
        if rpm is not None and (not isinstance(rpm, int) or isinstance(rpm, bool) or rpm < 0):
            raise Malformed(422, f"the limit of {model} must be a whole number from 0 or null")
        limits[model] = rpm
    return limits


def parse_faults(body: bytes) -> FaultRates:
    """Returns the rates of PUT /faults: shares of calls, by the names of FaultRates."""
    rates: dict[str, float] = {}
    names = {field.name for field in fields_of(FaultRates)}
    for name, rate in parse_object(body).items():
        if name not in names or not isinstance(rate, int | float) or isinstance(rate, bool):
            raise Malformed(422, f"a rate must be a number, by one of the names {', '.join(sorted(names))}")
        rates[name] = rate
    try:
        return FaultRates(**rates)
    except ValueError as error:
        raise Malformed(422, str(error)) from None


def parse_object(body: bytes) -> dict[str, Json]:
    """Returns the body as a JSON object."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Malformed(400, "the body is not JSON") from None
    if not isinstance(fields, dict):
        raise Malformed(422, "the body must be a JSON object")
    return fields


def _item(item: Json, model: Json) -> Call:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str | int):
        raise Malformed(422, "each item needs an id")
    return _call({**item, "model": model}, str(item["id"]))


def _call(fields: dict[str, Json], key: str | None) -> Call:
    model, prompt, params = fields.get("model"), fields.get("prompt"), fields.get("params") or {}
    if not isinstance(model, str) or not model:
        raise Malformed(422, "model must be a name")
    if prompt is None:
        raise Malformed(422, "prompt is missing")
    if not isinstance(params, dict):
        raise Malformed(422, "params must be an object")
    return Call(model, prompt, params, key)


def _plain(messages: list[Json]) -> Json:
    match messages:
        case [{"role": "user", "content": str(text)}]:
            return text
    return messages
