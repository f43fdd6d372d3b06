"""Tokens after the charge: topped up before the first byte, reconciled by the answer, refunded if unsent (I4, I5)."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.support.flow import answered, refused
from tests.support.sql import Grant, Queue, release

INPUT = 108  # what 400 bytes are taken for
PROMPT = "p" * 400


def ready(queue: Queue, how_many: int = 1, **columns: Any) -> None:
    queue.model("m", **{"rpm": 60000, "tpm": 60000, "max_output": 300, **columns})
    queue.add(how_many, prompt=PROMPT)


def by_cell(queue: Queue) -> dict[int, tuple[int, int]]:
    """Tokens and output tokens that are charged, by 250 ms since the first charge; cells with none are left out."""
    rows = queue.rows(
        """with open as (select max(g.cell) as cell from llmqueue.ledger_grant g)
           select x.cell - min(x.cell) over () as cell, sum(x.tokens)::bigint as tokens, sum(x.output)::bigint as output
             from (select c.cell, c.tokens, c.output_tokens as output from llmqueue.ledger_cell c
                   union all
                   select g.cell, g.tokens, g.output_tokens
                     from llmqueue.ledger_grant g cross join open where g.cell = open.cell) x
            group by x.cell order by x.cell"""
    )
    return {row["cell"]: (row["tokens"], row["output"]) for row in rows if row["tokens"] or row["output"]}


def top_up(queue: Queue, grant: Grant, to: int, worker: object = None) -> bool:
    query = "select llmqueue.top_up(%s, %s, %s)"
    return bool(queue.value(query, worker or grant.worker, grant.fence, to))


def settle(queue: Queue, item: dict[str, object], grant: Grant) -> None:
    queue.settle(item, worker=grant.worker)


@pytest.mark.parametrize(
    ("mode", "charged", "becomes"),
    [
        ("input", (108, 0), (150, 0)),
        ("sum", (408, 0), (450, 0)),
        ("max", (300, 0), (300, 0)),
        ("split", (108, 300), (150, 40)),
        ("actual", (408, 0), (190, 0)),
    ],
)
def test_an_answer_puts_right_what_its_provider_counts(
    queue: Queue, mode: str, charged: tuple[int, int], becomes: tuple[int, int]
) -> None:
    ready(queue, token_mode=mode)
    grant = queue.claim(1).only
    assert by_cell(queue) == {0: charged}
    queue.advance(20)

    settle(queue, answered(grant, 150, 40), grant)

    assert by_cell(queue) == {0: becomes}, "in the cell that was charged"
    attempt = queue.attempt(grant)
    assert (attempt["tokens_final"], attempt["output_tokens_final"]) == becomes
    assert (attempt["tokens"], attempt["input_tokens"], attempt["output_tokens"]) == (charged[0], 150, 40)


def test_an_answer_is_counted_once_however_often_it_is_sent(queue: Queue) -> None:
    ready(queue, token_mode="input")
    grant = queue.claim(1).only

    for usage in (150, 150, 9000):
        settle(queue, answered(grant, usage, 1), grant)

    assert by_cell(queue) == {0: (150, 0)}


def test_an_answer_counts_beside_others_of_its_cell(queue: Queue) -> None:
    ready(queue, 3, token_mode="input")
    first, second, _ = queue.claim(3).grants
    settle(queue, answered(first, 8, 1), first)
    settle(queue, answered(second, 9, 1), second)

    assert by_cell(queue) == {0: (8 + 9 + INPUT, 0)}


@pytest.mark.parametrize("usage", [0, -5000])
def test_a_prompt_of_no_tokens_is_no_usage(queue: Queue, usage: int) -> None:
    ready(queue, 2, token_mode="input")
    first, _ = queue.claim(2).grants

    settle(queue, answered(first, usage, 1), first)

    assert by_cell(queue) == {0: (2 * INPUT, 0)}


def test_output_never_falls_below_0_either(queue: Queue) -> None:
    ready(queue, 2, token_mode="split")
    first, _ = queue.claim(2).grants

    settle(queue, answered(first, 1, -5000), first)

    assert by_cell(queue) == {0: (INPUT + 1, 300)}


@pytest.mark.parametrize(("mode", "charged"), [("input", 108), ("sum", 408), ("max", 300), ("actual", 408)])
def test_without_usage_the_charge_stays(queue: Queue, mode: str, charged: int) -> None:
    ready(queue, token_mode=mode)
    grant = queue.claim(1).only

    settle(queue, answered(grant, None, None), grant)

    assert by_cell(queue) == {0: (charged, 0)}
    assert queue.attempt(grant)["tokens_final"] is None


@pytest.mark.parametrize(("mode", "final"), [("input", 90), ("sum", 390), ("max", 300), ("actual", None)])
def test_usage_of_the_input_alone_is_enough_where_only_that_counts(queue: Queue, mode: str, final: int | None) -> None:
    ready(queue, token_mode=mode)
    grant = queue.claim(1).only

    settle(queue, answered(grant, 90, None), grant)

    assert queue.attempt(grant)["tokens_final"] == final


def test_a_shortfall_is_charged_at_once(queue: Queue) -> None:
    ready(queue, 20, token_mode="actual", tpm=60000)
    grant = queue.claim(1).only
    settle(queue, answered(grant, 30000, 29900), grant)

    claimed = queue.claim(10)

    assert (claimed.grants, claimed.reasons) == ([], {"m": "tpm"})
    queue.advance(claimed.retry_in_s["m"])
    assert len(queue.claim(1).grants) == 1


def test_a_late_answer_is_put_right_too(queue: Queue) -> None:
    ready(queue, token_mode="input")
    grant = queue.claim(1).only
    queue.lose(grant)
    again = queue.claim(1).only
    cells = by_cell(queue)

    settle(queue, answered(grant, 8, 1), grant)

    assert queue.attempt(grant)["outcome"] == "late"
    assert by_cell(queue) == {**cells, 0: (8, 0)}
    settle(queue, answered(again, 9, 1), again)
    assert sorted(by_cell(queue).values()) == [(8, 0), (9, 0)]


def test_an_answer_for_a_cell_of_long_ago_changes_no_window(queue: Queue) -> None:
    ready(queue, 2, token_mode="input")
    grant = queue.claim(1).only
    queue.advance(600)
    queue.claim(1)
    queue.rows("select llmqueue_internal.prune_ledger()")

    settle(queue, answered(grant, 50000, 1), grant)

    (tokens,) = queue.values("select (llmqueue_internal.count_60s('m', %s)).tokens", queue.now)
    assert tokens == INPUT


@pytest.mark.parametrize("mode", ["input", "sum", "max", "split", "actual"])
def test_an_unsent_call_gives_its_tokens_back_once_in_its_cell(queue: Queue, mode: str) -> None:
    ready(queue, 2, token_mode=mode)
    grant = queue.claim(1).only
    queue.advance(1)
    queue.claim(1)
    charged = by_cell(queue)
    assert set(charged) == {0, 4}

    for _ in range(2):
        settle(queue, release(grant), grant)

    assert by_cell(queue) == {0: charged[4]} or by_cell(queue) == {4: charged[4]}
    assert queue.attempt(grant)["outcome"] == "released"


@pytest.mark.parametrize("verb", ["retry", "bury"])
def test_a_call_that_was_not_sent_gives_back_whatever_its_end(queue: Queue, verb: str) -> None:
    ready(queue)
    grant = queue.claim(1).only
    item = {"verb": verb, "fence": grant.fence, "task_id": str(grant.id), "error_class": "e", "error": "e"}

    settle(queue, {**item, "counts": True, "delay_s": 1, "is_unsent": True}, grant)

    assert by_cell(queue) == {}


def test_a_call_that_was_sent_stays_charged_whatever_its_end(queue: Queue) -> None:
    ready(queue, 3, token_mode="input")
    first, second, third = queue.claim(3).grants

    queue.retry(first)
    queue.bury(second)
    settle(queue, refused(third), third)

    assert by_cell(queue) == {0: (3 * INPUT, 0)}


@pytest.mark.parametrize(
    ("mode", "charged", "topped"),
    [("input", 108, 500), ("sum", 408, 800), ("max", 300, 500), ("split", 108, 500), ("actual", 408, 800)],
)
def test_a_top_up_is_charged_when_it_is_made(queue: Queue, mode: str, charged: int, topped: int) -> None:
    ready(queue, token_mode=mode)
    grant = queue.claim(1).only
    queue.advance(0.25)

    assert top_up(queue, grant, 500) is True

    assert [tokens for tokens, _ in by_cell(queue).values()] == [charged, topped - charged]
    attempt = queue.attempt(grant)
    assert (attempt["input_charge"], attempt["tokens"], attempt["top_up_tokens"]) == (500, charged, topped - charged)
    assert queue.values("select sum(calls) from llmqueue.ledger_grant") == [1], "a call is no second one for it"


def test_max_is_not_topped_up_below_its_output(queue: Queue) -> None:
    ready(queue, token_mode="max")
    grant = queue.claim(1).only

    assert top_up(queue, grant, 290) is True
    assert by_cell(queue) == {0: (300, 0)}


def test_an_estimate_below_the_charge_changes_nothing(queue: Queue) -> None:
    ready(queue, token_mode="input")
    grant = queue.claim(1).only

    assert top_up(queue, grant, 50) is True
    assert top_up(queue, grant, INPUT) is True

    assert by_cell(queue) == {0: (INPUT, 0)}
    assert top_up(queue, grant, 200) is True


def test_a_top_up_is_made_once(queue: Queue) -> None:
    ready(queue, token_mode="input")
    grant = queue.claim(1).only

    assert [top_up(queue, grant, 500), top_up(queue, grant, 900)] == [True, False]
    assert by_cell(queue) == {0: (500, 0)}


def test_only_the_worker_that_has_an_open_attempt_may_top_it_up(queue: Queue) -> None:
    ready(queue, 2, token_mode="input")
    first, second = queue.claim(2).grants

    assert top_up(queue, first, 500, queue.register()) is False
    queue.release(second)
    assert top_up(queue, second, 500) is False
    assert by_cell(queue) == {0: (INPUT, 0)}


def test_without_room_a_top_up_is_refused_and_the_next_claim_charges_it_at_once(queue: Queue) -> None:
    ready(queue, 1, token_mode="input", tpm=1000)
    grant = queue.claim(1).only

    assert top_up(queue, grant, 950) is True
    queue.add(prompt=PROMPT)
    queue.advance(62)
    second = queue.claim(1).only
    queue.add(prompt="p" * 2400)
    queue.advance(40)
    queue.claim(1)
    assert top_up(queue, second, 950) is False
    queue.release(second)

    queue.advance(20)
    assert queue.claim(1).reasons == {"m": "tpm"}, "950 do not fit beside 608"
    queue.advance(62)
    assert queue.claim(1).only.tokens == 950


def test_a_prompt_that_never_fits_is_found_out_by_the_next_claim(queue: Queue) -> None:
    ready(queue, token_mode="input", tpm=1000)
    grant = queue.claim(1).only

    assert top_up(queue, grant, 1001) is False
    queue.release(grant)

    assert by_cell(queue) == {}
    assert queue.claim(1).grants == []
    task = queue.task(grant.id)
    assert task["status"] == "failed"
    assert task["error"] == "exceeds_tpm: charged 1001 tokens (1001 of input), and m allows tpm 1000"


@pytest.mark.parametrize("columns", [{"enabled": False}, {"tpm": 0}])
def test_a_paused_model_is_not_topped_up(queue: Queue, columns: dict[str, Any]) -> None:
    ready(queue, token_mode="input")
    grant = queue.claim(1).only
    queue.model("m", 60000, **columns)

    assert top_up(queue, grant, 500) is False


def test_a_model_that_is_gone_is_not_topped_up(queue: Queue) -> None:
    ready(queue, token_mode="input")
    grant = queue.claim(1).only
    queue.rows("delete from llmqueue.model_config")

    assert top_up(queue, grant, 500) is False


def test_a_model_without_a_limit_on_tokens_is_not_topped_up(queue: Queue) -> None:
    ready(queue, tpm=None)
    grant = queue.claim(1).only

    assert top_up(queue, grant, 500) is False


def test_an_unsent_call_gives_its_top_up_back_too(queue: Queue) -> None:
    ready(queue, 2, token_mode="input")
    grant = queue.claim(1).only
    queue.advance(0.25)
    top_up(queue, grant, 500)
    queue.advance(0.25)
    queue.claim(1)

    settle(queue, release(grant), grant)

    assert list(by_cell(queue).values()) == [(INPUT, 0)]


def test_an_answer_puts_a_topped_up_charge_right_as_a_whole(queue: Queue) -> None:
    ready(queue, token_mode="input")
    grant = queue.claim(1).only
    queue.advance(0.25)
    top_up(queue, grant, 500)

    settle(queue, answered(grant, 450, 1), grant)

    assert by_cell(queue) == {0: (INPUT - 50, 0), 1: (500 - INPUT, 0)}
    assert queue.attempt(grant)["tokens_final"] == 450


def test_an_answer_below_the_top_up_takes_no_cell_below_0(queue: Queue) -> None:
    ready(queue, token_mode="input")
    grant = queue.claim(1).only
    queue.advance(0.25)
    top_up(queue, grant, 500)

    settle(queue, answered(grant, 3, 1), grant)

    assert all(tokens >= 0 for tokens, _ in by_cell(queue).values())


def test_a_top_up_waits_for_the_models_lock_only_for_a_moment(conn: psycopg.Connection[Any], installed: str) -> None:
    queue = Queue(conn)
    ready(queue, token_mode="input")
    grant = queue.claim(1).only
    with psycopg.connect(installed) as other:
        other.execute("select pg_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext('m'))")

        assert top_up(queue, grant, 500) is False

    assert by_cell(queue) == {0: (INPUT, 0)}
    assert top_up(queue, grant, 500) is True


def test_hot_calls_may_use_the_tokens_that_are_kept_for_them(queue: Queue) -> None:
    queue.model("m", 60000, tpm=10000, token_mode="input", hot_share=0.5)
    queue.add(priority=100, prompt=PROMPT)
    hot = queue.claim(1).only
    queue.add(100, prompt="p" * 2000)
    for _ in range(100):
        queue.claim(1)
        queue.advance(0.5)
    counted = sum(tokens for tokens, _ in by_cell(queue).values())
    free = 10000 - counted
    cold = queue.rows("select fence, worker from llmqueue.attempt where not is_hot order by fence desc limit 1")[0]

    assert free > 0
    given = queue.value("select llmqueue.top_up(%s, %s, %s)", cold["worker"], cold["fence"], 508 + free)
    assert given is False, "a part is kept for hot ones"
    assert top_up(queue, hot, INPUT + free) is True
