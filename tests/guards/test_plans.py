"""A claim, a flush and a promotion read only as many rows of a large table as they take, with any statistics.

The server itself counts the rows (pg_stat_xact_user_tables, pg_stat_user_indexes) while the real functions run, so a
plan that scans or sorts the table shows.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.support.sql import clock_at

Connection = psycopg.Connection[tuple[object, ...]]

READY, DELAYED, SOLVED = 20_000, 2_000, 3_000
BATCH = 10
# Rows read per row taken: heads, then locked, then updated by key; and a handful for lanes and priorities.
MOST_READ = 6 * BATCH + 20


@dataclass
class Touched:
    """Of the user's table: sequential scans, and rows that an index led to."""

    sequential: int = 0
    fetched: int = 0
    rows: list[tuple[object, ...]] = field(default_factory=list)


@pytest.fixture(params=["never analyzed", "analyzed", "analyzed when it was small"])
def large(conn: Connection, request: pytest.FixtureRequest) -> Connection:
    conn.execute("alter table tasks set (autovacuum_enabled = off)")
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 6000000)")
    conn.execute("select llmqueue.register(%s, 'w', '0', null, 20, 0.5)", (WORKER,))
    if request.param == "analyzed when it was small":
        conn.execute("insert into tasks (prompt, model) select 'p', 'm' from generate_series(1, 1000)")
        conn.execute("analyze tasks")
    conn.execute(
        "insert into tasks (prompt, model, priority) select 'p', case when n %% 3 = 0 then 'm' end, n %% 2 "
        "from generate_series(1, %s) n",
        (READY,),
    )
    conn.execute(
        "insert into tasks (prompt, status, run_at) select 'p', 'delayed', now() - interval '1 s' "
        "from generate_series(1, %s)",
        (DELAYED,),
    )
    conn.execute("insert into tasks (prompt, status) select 'p', 'solved' from generate_series(1, %s)", (SOLVED,))
    if request.param == "analyzed":
        conn.execute("analyze")
    return conn


WORKER = uuid4()


@contextmanager
def touching(conn: Connection, table: str = "tasks") -> Iterator[Touched]:
    """Counts what a transaction reads of a table; it is committed."""
    touched = Touched()
    with conn.transaction():
        sequential, fetched = _counts(conn, table)  # not 0: what was not yet flushed of earlier transactions is in it
        yield touched
        touched.sequential, touched.fetched = (
            now - then for now, then in zip(_counts(conn, table), (sequential, fetched), strict=True)
        )


def _counts(conn: Connection, table: str = "tasks") -> tuple[int, int]:
    query = "select coalesce(seq_scan, 0), coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables where relname = %s"
    row = conn.execute(query, (table,)).fetchone()
    assert row is not None
    return int(str(row[0])), int(str(row[1]))


def plan_as(conn: Connection, function: str) -> None:
    """Sets the planner as a function of the API sets it for all that it calls."""
    config = conn.execute("select unnest(proconfig) from pg_proc where proname = %s", (function,)).fetchall()
    for name, _, value in (str(setting).partition("=") for (setting,) in config):
        if name != "search_path":
            conn.execute("select set_config(%s, %s, false)", (name, value))


def scans(conn: Connection) -> dict[str, int]:
    """Returns how often each index of ours has been used."""
    conn.execute("select pg_stat_force_next_flush()")
    found = conn.execute("select indexrelname, idx_scan from pg_stat_user_indexes where relname = 'tasks'").fetchall()
    return {str(name): int(str(count)) for name, count in found}


def claim(conn: Connection, slots: int = BATCH) -> list[tuple[object, ...]]:
    query = "select (task).fence, (task).task_id from llmqueue.claim(%s, null, %s) where (task).task_id is not null"
    return conn.execute(query, (WORKER, slots)).fetchall()


def test_a_claim_reads_what_it_takes(large: Connection) -> None:
    before = scans(large)
    for _ in range(8):  # from the sixth call on plpgsql may keep a generic plan
        with touching(large) as touched:
            touched.rows = claim(large)

        assert len(touched.rows) == BATCH
        assert touched.sequential == 0
        assert touched.fetched <= MOST_READ
    after = scans(large)
    assert after["llmqueue_ready"] > before["llmqueue_ready"]


def test_a_claim_for_several_models_reads_what_it_takes(large: Connection) -> None:
    large.execute(
        "insert into llmqueue.model_config (model, rpm, weight) select 'idle ' || n, 60, 0 from generate_series(1, 8) n"
    )
    for _ in range(8):
        with touching(large) as touched:
            touched.rows = claim(large)

        assert len(touched.rows) == BATCH
        assert touched.sequential == 0
        assert touched.fetched <= MOST_READ


def test_a_claim_that_finds_only_tasks_of_other_models_reads_next_to_nothing(large: Connection) -> None:
    large.execute("update tasks set model = 'nobody' where status = 'unsolved'")
    large.execute("vacuum tasks")

    with touching(large) as touched:
        touched.rows = claim(large)

    assert touched.rows == []
    assert (touched.sequential, touched.fetched <= 5) == (0, True)


@pytest.mark.parametrize("verb", ["complete", "retry", "bury", "release"])
def test_a_flush_reads_the_tasks_that_it_settles(large: Connection, verb: str) -> None:
    for _ in range(7):
        items = [
            {"verb": verb, "fence": fence, "task_id": str(task_id), "answer": "42", "delay_s": 60, "counts": True}
            | {"error_class": "c", "error": "e", "sent_after_s": 0.1, "latency_s": 1.0}
            for fence, task_id in claim(large)
        ]
        with touching(large) as touched:
            query = "select outcome from llmqueue.settle(%s, %s::jsonb)"
            touched.rows = large.execute(query, (WORKER, json.dumps(items))).fetchall()

        assert len(touched.rows) == BATCH
        assert {outcome for (outcome,) in touched.rows} <= {"completed", "retried", "buried", "released"}
        assert touched.sequential == 0
        assert touched.fetched <= MOST_READ


def test_a_flush_reads_the_attempts_that_it_settles_though_its_plans_are_from_an_empty_log(large: Connection) -> None:
    large.execute("alter table llmqueue.attempt set (autovacuum_enabled = off)")
    reads = []
    for _ in range(60):
        items = [
            {"verb": "complete", "fence": fence, "task_id": str(task_id), "answer": "42"}
            for fence, task_id in claim(large)
        ]
        with touching(large, "attempt") as touched:
            large.execute("select outcome from llmqueue.settle(%s, %s::jsonb)", (WORKER, json.dumps(items)))
        reads.append(touched.fetched)

    assert max(reads) <= MOST_READ


def test_a_promotion_reads_what_is_due(large: Connection) -> None:
    large.execute(b"update tasks set run_at = now() + interval '1 h' where status = 'delayed' and id % 10 <> 0")
    large.execute("vacuum tasks")
    before = scans(large)
    plan_as(large, "maintain")

    with touching(large) as touched:
        touched.rows = large.execute("select llmqueue_internal.promote(%s)", (BATCH,)).fetchall()

    assert touched.rows == [(BATCH,)]
    assert touched.sequential == 0
    assert touched.fetched <= MOST_READ
    assert scans(large)["llmqueue_delayed"] > before["llmqueue_delayed"]


def test_the_end_of_what_is_past_its_deadline_reads_those_alone(large: Connection) -> None:
    large.execute(b"update tasks set deadline_at = now() + interval '1 d' where id % 3 = 0")
    late = b"update tasks set deadline_at = now() - interval '1 d' where id in "
    large.execute(late + b"(select id from tasks where status in ('unsolved', 'delayed') order by random() limit 40)")
    large.execute("vacuum tasks")
    before = scans(large)
    plan_as(large, "maintain")

    with touching(large) as touched:
        touched.rows = large.execute("select llmqueue_internal.expire(500)").fetchall()

    assert touched.rows == [(40,)]
    assert touched.sequential == 0
    assert touched.fetched <= MOST_READ
    assert scans(large)["llmqueue_deadline"] > before["llmqueue_deadline"]


def test_a_sweep_reads_the_tasks_of_the_dead(large: Connection) -> None:
    claim(large)
    large.execute("update llmqueue.worker set heartbeat_at = now() - interval '1 h'")
    other = uuid4()
    large.execute("select llmqueue.register(%s, 'other', '0', null, 20, 0.5)", (other,))
    # An hour from now, so that server and worker have been up for a lease.
    large.execute("update llmqueue.worker set heartbeat_at = now() + interval '1 h' where worker = %s", (other,))
    (in_an_hour,) = large.execute("select now() + interval '1 h'").fetchone() or ()
    plan_as(large, "maintain")

    with clock_at(large, in_an_hour), touching(large) as touched:
        touched.rows = large.execute("select llmqueue_internal.sweep(%s, 500)", (other,)).fetchall()

    assert touched.rows == [(BATCH,)]
    assert touched.sequential == 0
    assert touched.fetched <= MOST_READ


def test_the_inner_query_of_a_claim_walks_the_index_in_order(large: Connection) -> None:
    query = """
        explain (format json) select t.id from llmqueue.task t
         where t.is_ready and t.lane = 'm' and t.rank = 0 and t.user_key = '' and t.due_at <= now()
         order by t.due_at, t.id limit 10 for no key update skip locked
    """
    config = large.execute("select unnest(proconfig) from pg_proc where proname = 'claim'").fetchall()
    for (setting,) in config:
        name, _, value = str(setting).partition("=")
        large.execute("select set_config(%s, %s, false)", (name, value))

    row = large.execute(query.encode()).fetchone()

    assert row is not None
    nodes = list(_nodes(row[0][0]["Plan"]))  # type: ignore[index]
    assert "llmqueue_ready" in {node.get("Index Name") for node in nodes}
    assert {"Seq Scan", "Sort", "Incremental Sort"}.isdisjoint({str(node["Node Type"]) for node in nodes})


def _nodes(plan: dict[str, object]) -> Iterator[dict[str, object]]:
    yield plan
    for child in plan.get("Plans", []):  # type: ignore[attr-defined]
        yield from _nodes(child)


BATCH_OF_MANY = 100
ENTRIES = "select sum(pg_stat_get_xact_tuples_returned(c.oid)) from pg_class c where c.relname in ({})"


@pytest.mark.parametrize("others", [0, 1])
def test_a_claim_reads_no_more_while_somebody_elses_transaction_is_open(
    large: Connection, installed: str, others: int
) -> None:
    large.execute(
        "insert into llmqueue.model_config (model, rpm) select 'other', 6000000 from generate_series(1, %s)", (others,)
    )
    claim_state: dict[str, Any] | None = None
    with open_transaction(installed):
        reads = []
        for _ in range(60):
            reads.append((read := _read_by_claim(large, claim_state, BATCH_OF_MANY))[0])
            claim_state = read[1]
            if claim_state.get("cursors"):  # without looking behind the cursors, which would read all dead entries
                claim_state["look_at"] = time.time() + 30

    # the first ones find out
    assert max(reads[:20]) > 20 * BATCH_OF_MANY
    # each model looks at the lanes, and what is waiting is counted to be shared out
    assert max(reads[-20:]) <= 10 * BATCH_OF_MANY * (1 + others)


@contextmanager
def open_transaction(dsn: str) -> Iterator[None]:
    """Yields another session with a snapshot: until its end, VACUUM removes no row that it might see."""
    with psycopg.connect(dsn) as holder:
        holder.execute("set transaction isolation level repeatable read")
        holder.execute("select from tasks limit 1")
        yield


@pytest.mark.parametrize("most", [1000, None])
def test_the_count_of_open_attempts_reads_no_more_while_somebody_elses_transaction_is_open(
    large: Connection, installed: str, most: int | None
) -> None:
    large.execute("update llmqueue.model_config set max_concurrency = %s", (most,))
    claim_state: dict[str, Any] | None = None
    with open_transaction(installed):
        reads = []
        for _ in range(30):
            read, claim_state = _read_by_claim(large, claim_state, BATCH, "'attempt_running'")
            reads.append(read)

    assert max(reads) <= 3 * BATCH


def _read_by_claim(
    conn: Connection,
    claim_state: dict[str, Any] | None,
    slots: int,
    indexes: str = "'llmqueue_ready', 'llmqueue_oldest'",
) -> tuple[int, dict[str, Any]]:
    """Claims and settles; returns how many index entries the claim has read, and its claim_state."""
    entries = ENTRIES.format(indexes).encode()
    with conn.transaction():
        [(before,)] = conn.execute(entries).fetchall()
        query = (
            "select (task).fence, (task).task_id, claim_state from llmqueue.claim(%s, null, %s, p_claim_state => %s)"
        )
        rows = conn.execute(query, (WORKER, slots, None if claim_state is None else json.dumps(claim_state))).fetchall()
        [(after,)] = conn.execute(entries).fetchall()
    items = [
        {"verb": "complete", "fence": fence, "task_id": str(task_id), "answer": "42"}
        for fence, task_id, _ in rows
        if fence is not None
    ]
    assert len(items) == slots
    conn.execute("select outcome from llmqueue.settle(%s, %s::jsonb)", (WORKER, json.dumps(items)))
    told: list[Any] = [row[2] for row in rows if row[2] is not None]
    return int(str(after)) - int(str(before)), told[0]


def test_a_look_for_hot_tasks_alone_reads_none_of_the_others(large: Connection, installed: str) -> None:
    with open_transaction(installed):
        _, claim_state = _read_by_claim(large, None, 10 * BATCH_OF_MANY)
        entries = ENTRIES.format("'llmqueue_ready', 'llmqueue_oldest'").encode()
        with large.transaction():
            [(before,)] = large.execute(entries).fetchall()
            query = "select from llmqueue.claim(%s, null, 0, p_hot_slots => 1, p_claim_state => %s)"
            large.execute(query, (WORKER, json.dumps(claim_state)))
            [(after,)] = large.execute(entries).fetchall()

    assert int(str(after)) - int(str(before)) <= 5
