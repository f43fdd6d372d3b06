"""Answers of a simulated model: the same answer to the same prompt, so that a test can verify every answer."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

_WISHED_ANSWER = re.compile(r"\[\[answer:(.*?)\]\]", re.DOTALL)
_BYTES_PER_INPUT_TOKEN = 4  # the usual rule of thumb for English
_OUTPUT_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens that one call uses."""

    input_tokens: int
    output_tokens: int


def canonical_text(prompt: Json) -> str:
    """Returns the prompt itself if it is text, else its JSON with sorted keys and no spaces."""
    if isinstance(prompt, str):
        return prompt
    return json.dumps(prompt, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def texts_in(prompt: Json) -> Iterator[str]:
    """Yields every string value inside the prompt, unescaped; each may contain a marker such as `[[fault:500]]`."""
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, dict):
        for value in prompt.values():
            yield from texts_in(value)
    elif isinstance(prompt, list):
        for value in prompt:
            yield from texts_in(value)


def expected_answer(prompt: Json) -> str:
    r"""Returns the answer to `prompt`: "answer:" and 32 hex digits of the SHA-256 of its canonical text.

    A prompt that contains `[[answer:TEXT]]` gets the answer TEXT, decoded as the inside of a JSON string (`\u0000` is a
    NUL), or unchanged if it cannot be decoded.
    """
    for text in texts_in(prompt):
        if wish := _WISHED_ANSWER.search(text):
            return _decoded(wish[1])
    return f"answer:{_digest(prompt).hex()[:32]}"


def expected_usage(prompt: Json, params: Mapping[str, Json] | None = None) -> Usage:
    """Returns the usage of `prompt`: a quarter of its bytes in, 16 to 271 out, or less if `params` limits it."""
    size_bytes = len(canonical_text(prompt).encode("utf-8", "surrogatepass"))
    output_tokens = 16 + _digest(prompt)[-1]
    limits = [limit for name in _OUTPUT_LIMITS if isinstance(limit := (params or {}).get(name), int)]
    return Usage(
        input_tokens=max(1, -(-size_bytes // _BYTES_PER_INPUT_TOKEN)),
        output_tokens=max(0, min([output_tokens, *limits[:1]])),
    )


def _digest(prompt: Json) -> bytes:
    # A lone surrogate is valid in JSON and must get an answer too.
    return hashlib.sha256(canonical_text(prompt).encode("utf-8", "surrogatepass")).digest()


def _decoded(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text
