"""Tokens before the call: the charge of each token_mode, tasks that wait, and tasks that can never be sent (I5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.support.flow import Flow, answered
from tests.support.sql import Grant, Queue

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
INPUT = 108  # what 400 bytes are taken for: a token per 4 bytes, and 8
PROMPT = "p" * 400


def charge(queue: Queue, grant: Grant) -> dict[str, Any]:
    attempt = queue.attempt(grant)
    return {name: attempt[name] for name in ("input_charge", "output_charge", "tokens", "output_tokens_charged")}


def counted(queue: Queue) -> tuple[int, int]:
    """Tokens and output tokens that the limiter counts in the last minute."""
    (row,) = queue.rows("select tokens, output_tokens from llmqueue_internal.count_60s('m', %s)", queue.now)
    return row["tokens"], row["output_tokens"]


@pytest.mark.parametrize(
    ("mode", "tokens", "output_tokens"),
    [("input", INPUT, 0), ("sum", INPUT + 300, 0), ("max", 300, 0), ("split", INPUT, 300), ("actual", INPUT + 300, 0)],
)
def test_each_mode_charges_what_its_providers_count(queue: Queue, mode: str, tokens: int, output_tokens: int) -> None:
    queue.model("m", tpm=60000, token_mode=mode, max_output=300)
    queue.add(prompt=PROMPT)

    grant = queue.claim(1).only

    assert charge(queue, grant) == {
        "input_charge": INPUT,
        "output_charge": 300,
        "tokens": tokens,
        "output_tokens_charged": output_tokens,
    }
    assert grant.tokens == tokens
    assert counted(queue) == (tokens, output_tokens)
    assert (queue.attempt(grant)["tpm"], queue.attempt(grant)["token_mode"]) == (60000, mode)


def test_max_charges_the_input_where_that_is_larger(queue: Queue) -> None:
    queue.model("m", tpm=60000, token_mode="max", max_output=100)
    queue.add(prompt=PROMPT)

    assert queue.claim(1).only.tokens == INPUT


def test_bytes_count_and_not_characters(queue: Queue) -> None:
    queue.model("m", tpm=60000, token_mode="input")
    queue.add(prompt="日本語" * 10)

    assert queue.claim(1).only.tokens == 31  # 90 bytes


def test_without_a_limit_on_tokens_nothing_is_charged_or_measured(queue: Queue) -> None:
    queue.model("m")
    queue.add(prompt=PROMPT, params='{"max_tokens": 5}')

    grant = queue.claim(1).only

    assert set(charge(queue, grant).values()) == {None}
    assert (grant.tokens, queue.attempt(grant)["token_mode"], counted(queue)) == (None, None, (0, 0))


@pytest.mark.parametrize(
    ("params", "output"),
    [
        ('{"max_completion_tokens": 11, "max_output_tokens": 12, "max_tokens": 13}', 11),
        ('{"max_tokens": 13, "max_output_tokens": 12}', 12),
        ('{"max_tokens": 13}', 13),
        ('{"max_tokens": "13"}', 13),
        ('{"max_tokens": 13.0}', 13),
        ('{"max_completion_tokens": null, "max_tokens": 13}', 13),
        ('{"max_tokens": 0}', 0),
        # not a number of tokens: the model's own
        ('{"max_tokens": -5}', 300),
        ('{"max_tokens": 1.5}', 300),
        ('{"max_tokens": 99999999999}', 300),
        ('{"max_tokens": "many"}', 300),
        ('{"max_tokens": {"of": 3}}', 300),
        ('{"max_tokens": [13]}', 300),
        ('{"max_tokens": true}', 300),
        ('["max_tokens", 13]', 300),
        ('"max_tokens"', 300),
        ("null", 300),
        ('{"options": {"max_tokens": 13}}', 300),
        ("{}", 300),
        (None, 300),
    ],
)
@pytest.mark.parametrize("type_", ["json", "jsonb"])
def test_the_output_is_what_the_params_allow_first(queue: Queue, params: str | None, output: int, type_: str) -> None:
    (allowed,) = queue.values(f"select llmqueue_internal.max_output_of((%s::{type_})::text)", params)
    assert (300 if allowed is None else allowed) == output

    queue.model("m", tpm=60000, token_mode="sum", max_output=300)
    queue.add(prompt=PROMPT, params=params)
    assert charge(queue, queue.claim(1).only)["output_charge"] == output


@pytest.mark.parametrize(
    ("columns", "output"),
    [
        ({"tpm": 60000}, 1024),
        ({"tpm": 1000}, 250),
        ({"tpm": 1000, "max_output": 7}, 7),
        ({"tpd": 2000}, 500),
        ({"tpm": 60000, "output_tpm": 400, "token_mode": "split"}, 100),
        ({"output_tpm": 400, "token_mode": "split"}, 100),
    ],
)
def test_without_any_maximum_a_quarter_of_the_limit_is_reserved(
    queue: Queue, columns: dict[str, Any], output: int
) -> None:
    queue.model("m", **columns)
    queue.add(prompt="")

    assert charge(queue, queue.claim(1).only)["output_charge"] == output


def test_what_an_earlier_attempt_was_charged_is_charged_again(queue: Queue) -> None:
    queue.model("m", tpm=60000, token_mode="input")
    queue.add(prompt=PROMPT)
    first = queue.claim(1).only
    assert queue.value("select llmqueue.top_up(%s, %s, 500)", queue.worker, first.fence)
    queue.retry(first, delay_s=1)
    queue.advance(1)
    queue.promote()

    assert queue.claim(1).only.tokens == 500


def test_what_another_model_was_charged_does_not_count(queue: Queue) -> None:
    queue.model("m", tpm=60000, token_mode="input")
    queue.add(prompt=PROMPT)
    first = queue.claim(1).only
    queue.rows("select llmqueue.top_up(%s, %s, 500)", queue.worker, first.fence)
    queue.release(first)
    queue.model("other", tpm=60000, token_mode="input")

    assert queue.claim(1, ["other"]).only.tokens == INPUT


def test_a_charge_that_can_never_fit_is_a_dead_letter_at_once_with_the_numbers(queue: Queue) -> None:
    queue.model("m", tpm=1000, token_mode="sum", max_output=900)
    (key,) = queue.add(prompt=PROMPT)
    (small,) = queue.add(prompt="p")

    assert queue.claim(10).ids == [small]

    task = queue.task(key)
    assert (task["status"], task["attempts"], task["finished_at"]) == ("failed", 0, queue.now)
    assert task["error"] == ("exceeds_tpm: charged 1008 tokens (input 108 + output 900), and m allows tpm 1000")
    assert queue.values("select task_id from llmqueue.attempt") == [small]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"tpm": 100, "token_mode": "input"}, "charged 108 tokens (108 of input), and m allows tpm 100"),
        ({"tpm": 200, "token_mode": "max", "max_output": 300},
         "charged 300 tokens (the larger of input 108 and output 300), and m allows tpm 200"),
        ({"tpd": 100, "token_mode": "input"}, "charged 108 tokens (108 of input), and m allows tpd 100"),
        ({"tpm": 5000, "tpd": 100, "token_mode": "sum", "max_output": 1},
         "charged 109 tokens (input 108 + output 1), and m allows tpd 100"),
    ],
)  # fmt: skip
def test_the_numbers_are_those_of_the_mode_and_the_limit(queue: Queue, columns: dict[str, Any], said: str) -> None:
    queue.model("m", **columns)
    (key,) = queue.add(prompt=PROMPT)

    assert queue.claim(10).grants == []
    assert queue.task(key)["error"] == f"exceeds_tpm: {said}"


def test_a_charge_of_exactly_the_limit_is_sent(queue: Queue) -> None:
    queue.model("m", tpm=INPUT, token_mode="input")
    queue.add(prompt=PROMPT)

    assert queue.claim(10).only.tokens == INPUT


def test_a_pools_task_is_dead_only_if_none_of_its_models_could_take_it(queue: Queue) -> None:
    for name, tpm in (("small", 100), ("large", 5000)):
        queue.model(name, tpm=tpm, token_mode="input")
    (for_large,) = queue.add(prompt=PROMPT)
    (for_none,) = queue.add(prompt="p" * 40000)
    (pinned,) = queue.add(prompt=PROMPT, model="small")

    assert queue.claim(10, ["small"]).grants == []
    assert [queue.task(key)["status"] for key in (for_large, for_none, pinned)] == ["unsolved", "failed", "failed"]
    assert queue.claim(10, ["large"]).ids == [for_large]


@pytest.mark.parametrize("columns", [{"enabled": False}, {"rpm": 0}, {"tpm": 0}, {"tpd": 0}])
def test_a_pools_task_waits_for_a_paused_model_that_could_take_it(queue: Queue, columns: dict[str, Any]) -> None:
    queue.model("small", tpm=100, token_mode="input")
    queue.model("large", **{"rpm": 600, **columns})
    (key,) = queue.add(prompt=PROMPT)

    queue.claim(10, ["small"])

    assert queue.task(key)["status"] == "unsolved", "pausing kills nothing"


def test_a_model_that_is_not_in_the_pool_keeps_nothing_waiting_for_it(queue: Queue) -> None:
    queue.model("small", tpm=100, token_mode="input")
    queue.model("large", weight=0)
    (key,) = queue.add(prompt=PROMPT)

    queue.claim(10, ["small"])

    assert queue.task(key)["status"] == "failed"


@pytest.mark.parametrize(
    "how_many",
    [1, 10, 45, 200],
)
def test_tasks_that_only_another_model_can_take_do_not_stop_those_behind_them(queue: Queue, how_many: int) -> None:
    queue.model("small", 60000, tpm=9000, token_mode="input")
    queue.model("large", 60)
    too_large = queue.add(how_many, prompt="p" * 40000)
    behind = queue.add(5, prompt="p")

    assert queue.claim(5, ["small"]).ids == behind
    assert {queue.task(key)["status"] for key in too_large} == {"unsolved"}


@pytest.mark.parametrize("columns", [{"tpm": 0}, {"rpd": 0}, {"tpd": 0}])
def test_a_limit_of_0_pauses_and_kills_nothing(queue: Queue, columns: dict[str, int]) -> None:
    queue.model("m", **columns)
    (key,) = queue.add(prompt=PROMPT)

    assert queue.claim(10).reasons == {"m": "paused"}
    assert queue.task(key)["status"] == "unsolved"

    queue.model("m", **dict.fromkeys(columns, 50000))
    assert queue.claim(10).ids == [key]


def test_a_prompt_that_does_not_fit_now_keeps_its_place_and_says_when(queue: Queue) -> None:
    queue.model("m", 60000, tpm=1000, token_mode="input", hot_share=0)
    first, large = queue.add(prompt="p" * 2000)[0], queue.add(prompt="p" * 2800)[0]
    small = queue.add(3, prompt="p")
    assert queue.claim(1).ids == [first]

    claimed = queue.claim(10)
    assert (claimed.grants, claimed.reasons) == ([], {"m": "tpm"})
    queue.advance(claimed.retry_in_s["m"] - 0.001)
    assert queue.claim(10).grants == []
    queue.advance(0.001)
    assert queue.claim(10).ids[:1] == [large]
    queue.advance(62)
    assert set(queue.claim(10).ids) <= set(small)


@pytest.mark.parametrize("priority", [0, 5])
def test_a_prompt_of_50000_at_60000_a_minute_is_sent_and_small_ones_do_not_overtake_it_for_ever(
    queue: Queue, priority: int
) -> None:
    queue.model("m", 600, tpm=60000, token_mode="input")
    queue.add(100, prompt="p" * 4000)
    flow = Flow(queue, lambda _: 1.0, settle=lambda grant: answered(grant, None, None))
    flow.run(60)
    (large,) = queue.add(prompt="p" * 199968, created_at=queue.now, priority=priority)
    queue.add(100, prompt="p" * 4000, created_at=queue.now)
    flow.run(300)

    sent_at = {grant.id: at_s for at_s, grant in flow.grants}
    overtaking = [key for key, at_s in sent_at.items() if key > large and at_s < sent_at[large]]
    assert len(overtaking) <= 1
    if priority:
        assert sent_at[large] - 60 <= 62
    after = [at_s for at_s in sent_at.values() if at_s > sent_at[large]]
    assert after[0] - sent_at[large] <= 62, "and then the small ones go on"
    for end, _ in flow.grants:
        assert sum(grant.tokens for at_s, grant in flow.grants if end - 60.5 <= at_s <= end) <= 60000


def test_a_large_prompt_whose_turn_has_come_by_age_does_not_hold_hot_tasks_up(queue: Queue) -> None:
    queue.model("m", 600, tpm=60000, token_mode="input")
    queue.add(100, prompt="p" * 4000, priority=5)
    flow = Flow(queue)
    flow.run(30)
    (large,) = queue.add(prompt="p" * 199968, created_at=LONG_AGO)
    flow.run(45)
    assert queue.claim(10).reasons == {"m": "tpm"}
    assert queue.task(large)["status"] == "unsolved"

    (hot,) = queue.add(priority=100, prompt="p")

    assert queue.claim(10).ids == [hot]


@pytest.mark.parametrize("mode", ["input", "sum", "max", "split", "actual"])
def test_no_minute_is_charged_more_than_its_limit(queue: Queue, mode: str) -> None:
    """Prompts of 1 to 4,000 tokens, answers of any length; a worker that comes back exactly when it was told to."""
    limits = {"tokens": 20000, "output_tokens": 8000 if mode == "split" else 0}
    queue.model("m", 600, tpm=20000, token_mode=mode, output_tpm=limits["output_tokens"] or None)
    queue.rows(
        """insert into tasks (prompt, params) select repeat('p', (n * 7919) %% 16000),
                  jsonb_build_object('max_tokens', (n * 104729) %% 3000) from generate_series(1, %s) n""",
        600,
    )
    flow = Flow(
        queue,
        lambda grant: 0.5 + grant.fence % 17,
        settle=lambda grant: answered(grant, grant.fence * 31 % 3000, grant.fence * 37 % 1000),
    )
    flow.on_claim = lambda claimed: assert_within(queue, limits) if claimed.grants else None
    flow.run(300)

    assert len(flow.grants) >= 20


def assert_within(queue: Queue, limits: dict[str, int]) -> None:
    """What the attempts of the last minute are charged by now, read from the log and not from the ledger."""
    (row,) = queue.rows(
        """select sum(coalesce(a.tokens_final, a.tokens)) as tokens,
                  sum(coalesce(a.output_tokens_final, a.output_tokens_charged)) as output_tokens
             from llmqueue.attempt a where a.granted_at > %s - interval '60 s'""",
        queue.now,
    )
    assert all(row[name] <= limit for name, limit in limits.items()), row
