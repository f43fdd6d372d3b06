"""Calls of the last minute, from the ledger: every cell within 60 s once, refunds off, the open cell too."""

from __future__ import annotations

import psycopg
import pytest

Conn = psycopg.Connection[tuple[object, ...]]

NOW = "timestamptz '2030-01-01 12:00:00.1Z'"
CELL = "floor(extract(epoch from timestamptz '2030-01-01 12:00:00.1Z') / 0.25)::bigint"


def calls(conn: Conn) -> object:
    row = conn.execute(f"select calls from llmqueue_internal.count_60s('m', {NOW})").fetchone()
    return row and row[0]


def ledger(conn: Conn, table: str, cells_ago: int, n: int) -> None:
    extra = ", level, granted_at" if table == "ledger_grant" else ""
    values = ", 0, now()" if extra else ""
    conn.execute(
        f"insert into llmqueue.{table} (model, cell, calls{extra}) values ('m', {CELL} - {cells_ago}, {n}{values})"
    )


def test_model_that_never_ran_has_no_calls(conn: Conn) -> None:
    assert calls(conn) == 0


def test_open_cell_is_summed_from_its_grants(conn: Conn) -> None:
    ledger(conn, "ledger_cell", 4, 3)
    ledger(conn, "ledger_grant", 4, 3)
    ledger(conn, "ledger_grant", 1, 2)
    ledger(conn, "ledger_grant", 1, 2)

    assert calls(conn) == 7


def test_refund_is_taken_off(conn: Conn) -> None:
    ledger(conn, "ledger_cell", 4, 3)
    ledger(conn, "ledger_cell", 4, -1)

    assert calls(conn) == 2


@pytest.mark.parametrize(("cells_ago", "counted"), [(239, 5), (240, 0)])
def test_only_cells_within_sixty_seconds_count(conn: Conn, cells_ago: int, counted: int) -> None:
    ledger(conn, "ledger_cell", cells_ago, 5)

    assert calls(conn) == counted


def test_open_cell_that_is_over_a_minute_old_does_not_count(conn: Conn) -> None:
    ledger(conn, "ledger_grant", 300, 5)

    assert calls(conn) == 0


def test_filled_ledger_is_no_call(conn: Conn) -> None:
    ledger(conn, "ledger_cell", 2, 1_000_000_000)
    ledger(conn, "ledger_cell", 3, 4)

    assert calls(conn) == 4


def test_model_status_and_throughput_show_the_same_calls(conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 60)")
    conn.execute("insert into tasks (prompt, model) select 'x', 'm' from generate_series(1, 3)")
    conn.execute("insert into llmqueue.ledger_cell (model, cell, calls) "
                 "select 'm', floor(extract(epoch from clock_timestamp()) / 0.25)::bigint - 8, 30")  # fmt: skip

    status = conn.execute("select calls_60s, use_pct, running, ready from llmqueue.model_status").fetchone()
    throughput = conn.execute("select model, sum(calls)::int from llmqueue.throughput group by model").fetchone()

    assert status == (30, 50, 0, 3)
    assert throughput == ("m", 30)
