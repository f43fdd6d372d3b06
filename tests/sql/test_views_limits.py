"""The views of tokens, days, cooldowns and pools."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest

from tests.support.sql import Queue, retry

Conn = psycopg.Connection[tuple[object, ...]]

NOW = "timestamptz '2030-01-01 12:00:00.1Z'"
CELL = "floor(extract(epoch from timestamptz '2030-01-01 12:00:00.1Z') / 0.25)::bigint"
FULL = 1_000_000_000


def fetch(conn: Conn, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
    return conn.execute(query, values).fetchall()


def cell(conn: Conn, cells_ago: int, calls: int, tokens: int = 0, output: int = 0, of: str = CELL) -> None:
    fetch(
        conn,
        f"insert into llmqueue.ledger_cell (model, cell, calls, tokens, output_tokens)"
        f" values ('m', {of} - {cells_ago}, {calls}, {tokens}, {output}) returning 1",
    )


def grant(conn: Conn, cells_ago: int, calls: int, tokens: int = 0, output: int = 0, of: str = CELL) -> None:
    fetch(
        conn,
        f"insert into llmqueue.ledger_grant (model, cell, calls, tokens, output_tokens, level, granted_at)"
        f" values ('m', {of} - {cells_ago}, {calls}, {tokens}, {output}, 0, now()) returning 1",
    )


def minute(conn: Conn, minutes_ago: int, calls: int, tokens: int = 0, output: int = 0, of: str = CELL) -> None:
    fetch(
        conn,
        f"insert into llmqueue.ledger_minute (model, minute, calls, tokens, output_tokens)"
        f" values ('m', {of} / 240 - {minutes_ago}, {calls}, {tokens}, {output}) returning 1",
    )


def count_60s(conn: Conn) -> tuple[object, ...]:
    (row,) = fetch(conn, f"select calls, tokens, output_tokens from llmqueue_internal.count_60s('m', {NOW})")
    return row


def test_tokens_of_the_last_minute_are_those_of_its_cells(conn: Conn) -> None:
    assert count_60s(conn) == (0, 0, 0)

    cell(conn, 240, 9, 900, 90)
    cell(conn, 239, 1, 100, 10)
    cell(conn, 4, 1, 100, 10)
    grant(conn, 4, 1, 100, 10)
    grant(conn, 1, 1, 50, 5)
    grant(conn, 1, 1, 60, 6)

    assert count_60s(conn) == (4, 310, 31)


def test_reconciled_tokens_show_and_never_below_0(conn: Conn) -> None:
    cell(conn, 4, 1, 100, 10)
    cell(conn, 4, 0, -60, 5)
    assert count_60s(conn) == (1, 40, 15)

    cell(conn, 4, 0, -60)
    assert count_60s(conn) == (1, 0, 15)


@pytest.mark.parametrize(("calls", "tokens"), [(FULL, 0), (0, 10**15), (FULL, 10**15)])
def test_filled_ledger_is_no_token(conn: Conn, calls: int, tokens: int) -> None:
    cell(conn, 2, calls, tokens)
    cell(conn, 3, 1, 7)

    assert count_60s(conn) == (1, 7, 0)


def test_a_day_is_its_minutes_and_what_is_not_yet_in_there(conn: Conn) -> None:
    minute(conn, 12 * 60, 1, 10, 1)
    minute(conn, 12 * 60 + 1, 100, 1000, 100)
    minute(conn, 5, 2, 20, 2)
    cell(conn, 300, 4, 40, 4)
    cell(conn, 2, FULL)
    grant(conn, 0, 8, 80, 8)

    utc = fetch(conn, f"select calls, tokens from llmqueue_internal.count_today('m', 'UTC', {NOW})")
    tokyo = fetch(conn, f"select calls, tokens from llmqueue_internal.count_today('m', 'Asia/Tokyo', {NOW})")
    los_angeles = fetch(
        conn, f"select calls, tokens from llmqueue_internal.count_today('m', 'America/Los_Angeles', {NOW})"
    )

    assert utc == [(15, 165)]
    assert tokyo == [(115, 1265)]  # its day began 21 hours ago
    assert los_angeles == [(14, 154)]  # its day began 4 hours ago


HERE = "floor(extract(epoch from clock_timestamp()) / 0.25)::bigint"


def test_model_status_shows_what_is_used_of_each_limit(conn: Conn) -> None:
    fetch(
        conn,
        """
        insert into llmqueue.model_config (model, rpm, tpm, output_tpm, token_mode, rpd, tpd, weight, hot_share)
        values ('m', 60, 2000, 100, 'split', 500, 50000, 2, 0.2) returning 1
        """,
    )
    minute(conn, 1, 7, 70, 7, of=HERE)  # an hour around midnight UTC this one is of yesterday
    cell(conn, 8, 30, 500, 25, of=HERE)

    (row,) = fetch(
        conn,
        """
        select calls_60s, use_pct, tokens_60s, tpm_use_pct, output_tokens_60s, effective_rpm, effective_concurrency,
               tpm, output_tpm, token_mode, weight, hot_share, rpd, tpd, cooldown_until, cooldown_reason, burst_windows,
               calls_today in (30, 37), tokens_today in (525, 602)
          from llmqueue.model_status
        """,
    )

    assert row[:7] == (30, 50, 500, 25, 25, 60, None)
    assert row[7:14] == (2000, 100, "split", 2, 0.2, 500, 50000)
    assert row[14:] == (None, None, None, True, True)


def test_model_status_shows_a_closing_and_learned_ceilings_while_they_last(conn: Conn) -> None:
    fetch(conn, "insert into llmqueue.model_config (model, rpm, max_concurrency) values ('m', 100, 10) returning 1")
    fetch(
        conn,
        """
        insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until, cooldown_reason,
                                          rpm_ceiling, rpm_cut_at,
                                          concurrency_ceiling, concurrency_cut_at)
        select 'm', now, now + interval '1 hour', '429', 50, now, 4, now from (select clock_timestamp() as now) x
        returning 1
        """,
    )
    look = """
        select cooldown_until is not null, cooldown_reason, effective_rpm between 50 and 60,
               effective_concurrency between 4 and 9, rpm, max_concurrency
          from llmqueue.model_status
    """
    assert fetch(conn, look) == [(True, "429", True, True, 100, 10)]

    fetch(
        conn,
        """
        update llmqueue.model_state
           set cooldown_started_at = null, cooldown_until = null, rpm_cut_at = now() - interval '1 hour',
               concurrency_cut_at = now() - interval '1 hour' returning 1
        """,
    )
    assert fetch(conn, look) == [(False, None, False, False, 100, 10)]


def test_throughput_adds_minutes_and_cells_and_leaves_out_what_is_older_than_an_hour(conn: Conn) -> None:
    fetch(conn, "insert into llmqueue.model_config (model, rpm) values ('m', 60) returning 1")
    minute(conn, 60, 1000, 1000, 1000, of=HERE)
    minute(conn, 58, 3, 30, 3, of=HERE)
    cell(conn, 58 * 240, 2, 20, 2, of=HERE)
    cell(conn, 1, FULL, of=HERE)
    cell(conn, 4, 4, 40, 4, of=HERE)
    grant(conn, 4, 4, 40, 4, of=HERE)
    grant(conn, 0, 5, 50, 5, of=HERE)

    rows = fetch(conn, "select minute, calls, tokens, output_tokens from llmqueue.throughput order by minute")

    assert rows[0][1:] == (5, 50, 5)
    assert [sum(int(str(row[column])) for row in rows) for column in (1, 2, 3)] == [14, 140, 14]
    assert all(str(row[0]).partition("+")[0].endswith(":00") for row in rows)


@pytest.fixture
def pools(conn: Conn) -> Conn:
    fetch(
        conn,
        """
        insert into llmqueue.model_config (model, rpm, weight, enabled) values
            ('a', 600, 1, true), ('b', 60, 0, true), ('off', 6000, 1, false) returning 1
        """,
    )
    fetch(
        conn,
        """
        insert into llmqueue.pool_member (pool, model) values
            ('both', 'a'), ('both', 'b'), ('both', 'gone'), ('slow', 'b'), ('dark', 'off'), ('b', 'a') returning 1
        """,
    )
    return conn


@pytest.mark.parametrize(
    ("lane", "rpm", "seconds"),
    [
        (None, 600, 66),  # b has no weight
        ("a", 600, 66),
        ("both", 660, 60),
        ("slow", 60, 660),
        ("b", 660, 60),  # a model's own name, and a pool with another model
        ("dark", None, None),
        ("nobody", None, None),
    ],
)
def test_eta_of_a_lane_is_that_of_the_models_that_may_take_it(
    pools: Conn, lane: str | None, rpm: int | None, seconds: int | None
) -> None:
    fetch(
        pools,
        "insert into tasks (prompt, model) select 'x', %s::text from generate_series(1, 660) returning 1",
        (lane,),
    )

    assert fetch(pools, "select model, ready, rpm, seconds_left from llmqueue.eta") == [(lane or "", 660, rpm, seconds)]


def test_eta_of_a_pool_fills_what_its_models_have_left(pools: Conn) -> None:
    for lane, tasks in (("a", 600), ("both", 120)):
        fetch(
            pools,
            "insert into tasks (prompt, model) select 'x', %s::text from generate_series(1, %s) returning 1",
            (lane, tasks),
        )

    # a is busy with its own for 60 s, b takes 60 of the pool meanwhile; then both take the other 60
    rows = fetch(pools, "select model, seconds_left from llmqueue.eta order by model")

    assert rows == [("a", 60), ("both", 66)]


def test_a_model_is_able_until_one_of_its_limits_is_0(conn: Conn) -> None:
    query = "select llmqueue_internal.is_enabled(c) from llmqueue.model_config c"
    fetch(conn, "insert into llmqueue.model_config (model, rpm, token_mode) values ('m', 1, 'split') returning 1")
    assert fetch(conn, query) == [(True,)]

    for column in ("rpm", "tpm", "output_tpm", "rpd", "tpd", "max_concurrency"):
        fetch(conn, f"update llmqueue.model_config set {column} = 0 returning 1")
        assert fetch(conn, query) == [(False,)], column
        fetch(conn, f"update llmqueue.model_config set {column} = 5 returning 1")
    fetch(conn, "update llmqueue.model_config set enabled = false returning 1")

    assert fetch(conn, query) == [(False,)]


def test_what_is_counted_is_what_was_charged_and_what_the_usage_made_of_it(queue: Queue) -> None:
    queue.model("m", 600, tpm=100_000, token_mode="actual", max_output=100, rpd=1000)
    queue.add(3, model="m")
    grants = queue.claim(3).grants
    charged = queue.value("select sum(tokens) from llmqueue.attempt")
    counted = "select calls, tokens from llmqueue_internal.count_60s('m', %s)"
    today = "select calls, tokens from llmqueue_internal.count_today('m', 'UTC', %s)"
    assert charged > 300
    assert queue.rows(counted, queue.now) == queue.rows(today, queue.now) == [{"calls": 3, "tokens": charged}]

    queue.advance(1)
    for grant in grants:
        queue.complete(grant)
    used = queue.value("select sum(input_tokens + output_tokens) from llmqueue.attempt")
    assert queue.rows(counted, queue.now) == queue.rows(today, queue.now) == [{"calls": 3, "tokens": used}]

    queue.advance(400)
    queue.add(model="m")
    assert len(queue.claim(1).grants) == 1  # closes the cell of the others
    queue.rows("select llmqueue_internal.prune_ledger()")
    assert queue.value("select sum(calls) from llmqueue.ledger_minute") == 3
    assert queue.rows(today, queue.now)[0]["calls"] == 4
    assert queue.rows(counted, queue.now)[0]["calls"] == 1


def test_a_refusal_shows_until_the_model_is_opened(queue: Queue) -> None:
    queue.model("m", 600)
    queue.add(2, model="m")
    refused, _ = queue.claim(2).grants
    queue.settle(
        retry(refused, counts=False, refusal="quota", pause_s=3600, error_class="rate_limited", error="slow down")
    )

    look = "select cooldown_until - %s > interval '59 minutes' as is_closed, cooldown_reason from llmqueue.model_status"
    assert queue.rows(look, queue.now) == [{"is_closed": True, "cooldown_reason": "rate_limited: slow down"}]

    queue.rows("select llmqueue.end_cooldown('m')")
    assert queue.rows(look, queue.now) == [{"is_closed": None, "cooldown_reason": None}]
