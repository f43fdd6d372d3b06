"""The views that people and dashboards read: right, and bounded at any size."""

from __future__ import annotations

import json
from collections.abc import Sequence

import psycopg
import pytest

Conn = psycopg.Connection[tuple[object, ...]]


def fetch(conn: Conn, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
    return conn.execute(query, values).fetchall()


def add_attempt(conn: Conn, fence: int, model: str, **columns: object) -> None:
    values = {"fence": fence, "task_id": fence, "model": model, "attempt_no": 1, "cell": 1, "rpm": 60, **columns}
    names = ", ".join(values)
    marks = ", ".join(f"%({name})s" for name in values)
    conn.execute(
        f"insert into llmqueue.attempt (worker, granted_at, {names}) values (gen_random_uuid(), now(), {marks})", values
    )


def test_backlog_counts_each_lane_and_status(conn: Conn) -> None:
    conn.execute(
        """
        insert into tasks (prompt, model, status, finished_at, run_at) values
            ('a', 'm', 'unsolved', null, null), ('b', 'm', 'unsolved', null, null), ('c', null, 'unsolved', null, null),
            ('d', 'm', 'delayed', null, now() + interval '1 hour'), ('e', null, 'failed', now(), null),
            ('f', 'm', 'solved', now(), null), ('g', 'm', 'cancelled', now(), null)
        """
    )
    add_attempt(conn, 1, "m")
    add_attempt(conn, 2, "m", ended_at="now", outcome="completed")

    rows = fetch(conn, "select model, status, tasks, is_estimate from llmqueue.backlog order by 1, 2")

    assert rows == [
        ("", "failed", 1, False),
        ("", "unsolved", 1, False),
        ("m", "delayed", 1, False),
        ("m", "running", 1, False),
        ("m", "unsolved", 2, False),
    ]


def desired(conn: Conn) -> object:
    return fetch(conn, "select llmqueue.desired_inflight()")[0][0]


def test_calls_useful_at_once_follow_the_quota_and_not_the_backlog(conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, weight) values ('m', 60, 0), ('n', 30, 1)")
    assert desired(conn) == 0
    conn.execute("insert into tasks (prompt, model) select 'p', 'm' from generate_series(1, 5000)")
    assert desired(conn) == 12  # 1 a second, taken for calls of 10 s, and a fifth more

    for fence, latency_s in enumerate((20, 40), 1):
        add_attempt(conn, fence, "m", ended_at="now", outcome="completed", latency_s=latency_s)
    add_attempt(conn, 3, "m", ended_at="now", outcome="released")  # was not sent

    assert desired(conn) == 36
    conn.execute("insert into tasks (prompt, model) select 'p', 'm' from generate_series(1, 5000)")
    assert desired(conn) == 36


def test_calls_useful_at_once_end_where_the_tasks_or_the_allowed_calls_do(conn: Conn) -> None:
    conn.execute(
        "insert into llmqueue.model_config (model, rpm, weight) values ('m', 6000, 1), ('n', 6000, 1), ('o', 0, 1)"
    )
    conn.execute("insert into tasks (prompt) select 'p' from generate_series(1, 50)")
    add_attempt(conn, 1, "m")
    assert desired(conn) == 51  # each of two models could take them all

    conn.execute("update llmqueue.model_config set max_concurrency = 7")
    assert desired(conn) == 14

    conn.execute("update llmqueue.model_config set enabled = false where model = 'n'")
    conn.execute(
        """
        insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until)
        values ('m', now(), now() + interval '1 minute')
            on conflict (model) do update set cooldown_started_at = now(), cooldown_until = excluded.cooldown_until
        """
    )
    assert desired(conn) == 2  # what is running, and the probe

    conn.execute("delete from tasks")
    assert desired(conn) == 1
    conn.execute("update llmqueue.model_config set enabled = false")
    assert desired(conn) == 1, "what is running is not cut off when its model is paused"


def test_a_delayed_task_alone_asks_for_a_worker(conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 60)")
    conn.execute("insert into tasks (prompt, status, run_at) values ('p', 'delayed', now())")

    assert desired(conn) == 1


def test_calls_that_failed_say_nothing_about_the_latency(conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 600)")
    conn.execute("insert into tasks (prompt) select 'p' from generate_series(1, 500)")
    for fence in range(1, 10):
        add_attempt(conn, fence, "m", ended_at="now", outcome="retried", latency_s=0.001)
    add_attempt(conn, 10, "m", ended_at="now", outcome="completed", latency_s=20)

    assert desired(conn) == 240


def test_backlog_knows_the_oldest_whatever_its_priority(conn: Conn) -> None:
    conn.execute("insert into tasks (prompt, model, priority) select 'new', 'm', 9 from generate_series(1, 10100)")
    conn.execute("insert into tasks (prompt, model, created_at) values ('old', 'm', '2001-01-01 00:00Z')")

    ((oldest, is_estimate),) = fetch(
        conn, "select extract(year from oldest_at)::int, is_estimate from llmqueue.backlog"
    )

    assert (oldest, is_estimate) == (2001, True)


@pytest.mark.parametrize("analyzed", ["never", "when it was small", "now"])
def test_the_oldest_of_a_large_lane_is_one_probe(conn: Conn, analyzed: str) -> None:
    conn.execute("alter table tasks set (autovacuum_enabled = off)")
    conn.execute("insert into tasks (prompt, model) values ('x', 'm')")
    if analyzed == "when it was small":
        conn.execute("analyze tasks")
    conn.execute(
        "insert into tasks (prompt, model, priority) select 'x', 'm', i % 300 from generate_series(1, 30000) i"
    )
    if analyzed == "now":
        conn.execute("analyze tasks")

    with conn.transaction():
        query = "select idx_tup_fetch, coalesce(seq_scan, 0) from pg_stat_xact_user_tables where relname = 'tasks'"
        ((before, _),) = fetch(conn, query)
        conn.execute("select llmqueue_internal.count_ready('m')")
        ((after, sequential),) = fetch(conn, query)

    assert int(str(after)) - int(str(before)) <= 10_001 + 1
    assert sequential == 0


def test_large_lane_is_estimated_within_a_tenth(conn: Conn) -> None:
    conn.execute("insert into tasks (prompt, model) select 'x', 'large' from generate_series(1, 40000)")
    conn.execute("insert into tasks (prompt, model) select 'x', 'small' from generate_series(1, 10000)")
    before = fetch(conn, "select tasks from llmqueue.backlog where model = 'large'")
    conn.execute("analyze tasks")

    rows = fetch(conn, "select model, tasks, is_estimate from llmqueue.backlog order by model")

    assert before[0][0] in range(10_001, 50_001)  # no statistics yet: at least what was counted
    ((_, large, estimated), small) = rows
    assert estimated is True
    assert isinstance(large, int)
    assert abs(large - 40_000) < 4_000
    assert small == ("small", 10_000, False)


def test_backlog_never_reads_the_whole_table(conn: Conn) -> None:
    conn.execute("insert into tasks (prompt, model) select 'x', 'm' || i % 3 from generate_series(1, 60000) i")
    conn.execute("insert into tasks (prompt, status, answer) select 'x', 'solved', 'y' from generate_series(1, 60000)")

    conn.execute("set track_functions = 'none'")
    ((plan,),) = fetch(conn, "explain (analyze, buffers, format json) select * from llmqueue.backlog")

    assert isinstance(plan, list), json.dumps(plan)
    # 3 lanes of 10,001 rows; a table of 120,000 rows in order of insertion has about 33 rows of a lane on each page
    assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 40_000


def test_minus_infinity_is_no_time_for_people(conn: Conn) -> None:
    conn.execute("insert into tasks (prompt, created_at) values ('x', null)")

    assert fetch(conn, "select tasks, oldest_at from llmqueue.backlog") == [(1, None)]


def test_dead_letters_are_failed_and_quarantined_tasks(conn: Conn) -> None:
    conn.execute(
        """
        insert into tasks (id, prompt, model, status, attempts, error, finished_at) values
            (101, 'a', 'm', 'failed', 5, 'boom', now() - interval '1 hour'), (102, 'b', null, 'unsolved', 1, null, null)
        """
    )
    add_attempt(conn, 101, "m", ended_at="now", outcome="buried", error_class="task")
    add_attempt(conn, 102, "n", ended_at="now", outcome="quarantined")
    conn.execute("insert into llmqueue.quarantine (task_id, step, reason) values (102, 'complete', 'too long')")

    rows = fetch(
        conn, "select task_id, model, attempts, error_class, error from llmqueue.dead_letters order by failed_at desc"
    )

    assert rows == [(102, "n", 1, "quarantined", "complete: too long"), (101, "m", 5, "task", "boom")]


def test_eta_is_the_time_that_the_limits_leave(conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('fast', 600), ('slow', 60), ('zero', 0)")
    conn.execute("insert into tasks (prompt, model) select 'x', 'slow' from generate_series(1, 60)")
    conn.execute("insert into tasks (prompt, model) select 'x', 'unknown' from generate_series(1, 10)")
    conn.execute("insert into tasks (prompt) select 'x' from generate_series(1, 600)")

    rows = fetch(conn, "select model, ready, rpm, seconds_left from llmqueue.eta order by model")

    # slow is busy with its own for the 60 s that fast takes for the pool alone
    assert rows == [("", 600, 660, 60), ("slow", 60, 60, 60), ("unknown", 10, None, None)]


def test_worker_status_tells_dead_draining_working_and_idle(conn: Conn) -> None:
    conn.execute(
        """
        insert into llmqueue.worker (worker, name, version, lease_s, started_at, heartbeat_at, beating_since, running,
                                     is_draining)
        values (gen_random_uuid(), 'a', '1', 20, now(), now(), now(), 3, false),
               (gen_random_uuid(), 'b', '1', 20, now(), now(), now(), 0, false),
               (gen_random_uuid(), 'c', '1', 20, now(), now(), now(), 3, true),
               (gen_random_uuid(), 'd', '1', 20, now(), now() - interval '21 s', now(), 3, false)
        """
    )

    rows = fetch(conn, "select name, state from llmqueue.worker_status order by name")

    assert rows == [("a", "working"), ("b", "idle"), ("c", "draining"), ("d", "dead")]
