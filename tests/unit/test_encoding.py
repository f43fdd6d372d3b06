"""texts.read_task: a row as it comes, or why it cannot be sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmqueue.db.encoding import has_nul, read_task, why_unstorable
from llmqueue.types import ClaimRow, Json

ROW = ClaimRow(
    model="m",
    task_id=1,
    fence=17,
    attempt_no=2,
    max_attempts=5,
    restarts=3,
    prompt='{"looks": "like json"}',
    params='{"max_tokens": 5}',
    tokens=None,
    input_charge=None,
    is_hot=None,
    reason=None,
    retry_in_s=None,
    waited_s=0.0,
    clock_s=None,
    timeout_s=600.0,
    guard_s=0.5,
    dispatch="single",
    max_batch=1,
    char_class_ratio=None,
    turns=None,
    epoch=None,
)


def test_a_task_has_what_its_row_has() -> None:
    task = read_task(1, replace(ROW, tokens=1040, input_charge=16, is_hot=True), prompt_is_json=False)

    assert (task.fence, task.attempt_no, task.max_attempts, task.idempotency_key) == (17, 2, 5, "1:3")
    assert (task.prompt, task.params, task.unreadable) == (ROW.prompt, {"max_tokens": 5}, None)
    assert (task.tokens, task.input_charge, task.is_hot) == (1040, 16, True)


def test_json_is_read_only_from_a_json_column() -> None:
    assert read_task(1, ROW, prompt_is_json=True).prompt == {"looks": "like json"}
    assert read_task(1, ROW, prompt_is_json=False).prompt == '{"looks": "like json"}'
    assert read_task(1, ROW, prompt_is_json=False).is_hot is False


@pytest.mark.parametrize(
    ("prompt", "params"),
    [(None, None), ("no JSON", None), ("1e999", None), ('"\\ud800"', None), ("[" * 100_000, None), ("1", "no JSON")],
    ids=lambda value: str(value)[:20],
)
def test_what_cannot_be_read_says_why(prompt: str | None, params: str | None) -> None:
    assert read_task(1, replace(ROW, prompt=prompt, params=params), prompt_is_json=True).unreadable


def nested(inner: Json, depth: int) -> Json:
    value = inner
    for _ in range(depth):
        value = {"a": [value]}
    return value


def test_a_nul_is_found_however_deep_it_lies() -> None:
    # the stack of a test is not that of a worker: far deeper than either
    assert has_nul(nested("x\x00", 50_000))
    assert has_nul(nested({"x\x00": 1}, 50_000))
    assert not has_nul(nested("x", 50_000))
    assert not has_nul([1, None, True, 1.5])


def test_an_answer_as_deep_as_json_can_be_read_is_storable() -> None:
    assert why_unstorable(nested("x", 450)) is None
