"""estimate: input tokens by kinds of characters, closer than bytes and as cheap."""

from __future__ import annotations

import json
import string
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmqueue.estimate import FRAME_TOKENS, estimate_input_tokens


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("", 0),
        ("abcd", 1),
        ("abcde", 2),
        ("four word long text\n", 5),
        ("1234", 2),
        ("{}[]", 2),
        ("漢字", 2),
        ("Straße", 3),  # five light ones and one foreign
        ("🎉🎉", 2),
        ("e\u0301", 2),
        ("\x00\x01", 1),
        ("lone \ud800", 3),
    ],
)
def test_each_kind_of_character_has_its_weight(prompt: str, tokens: int) -> None:
    assert estimate_input_tokens(prompt) == tokens + FRAME_TOKENS


@pytest.mark.parametrize(
    "prompt", [None, 7, True, [], {"role": "user", "content": "漢字 and more"}, [{"a": [1.5, "x"]}]], ids=repr
)
def test_a_json_prompt_counts_as_its_text(prompt: object) -> None:
    assert estimate_input_tokens(prompt) == estimate_input_tokens(json.dumps(prompt, ensure_ascii=False))


def test_it_is_not_fooled_by_bytes() -> None:
    assert estimate_input_tokens("字" * 1000) == 1000 + FRAME_TOKENS
    assert estimate_input_tokens("7" * 1000) == 500 + FRAME_TOKENS
    assert estimate_input_tokens("seven " * 1000) == 1500 + FRAME_TOKENS


def by_character(text: str) -> float:
    """The definition, a character at a time."""

    def weight(character: str) -> float:
        if not character.isascii():
            return 1
        return 1 / 4 if character in string.ascii_letters + string.whitespace else 1 / 2

    return sum(map(weight, text))


@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=60))
def test_it_counts_every_character_once(text: str) -> None:
    assert by_character(text) <= estimate_input_tokens(text) - FRAME_TOKENS < by_character(text) + 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hello World, 12! ", "漢字かな交じり文", "hello é wörld 🎉 "])
def test_150_kb_take_less_than_a_millisecond(kind: str) -> None:
    prompt = (kind * 40_000)[:150_000]
    rounds = 50

    started_at = time.process_time()
    for _ in range(rounds):
        estimate_input_tokens(prompt)
    print(f"\n{kind}: {(time.process_time() - started_at) / rounds * 1000:.3f} ms")
