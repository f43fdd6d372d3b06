"""`llmqueue tasks` and `llmqueue dead`."""

from __future__ import annotations

import json
from typing import LiteralString

import psycopg
import pytest

from tests.support.cli import run_cli

TASKS = """
    insert into tasks (id, prompt, answer, status, model, attempts, error, finished_at) values
        (1, 'ready', null, 'unsolved', 'm', 0, null, null),
        (2, 'failed', null, 'failed', 'm', 5, 'boom', now() - interval '3 hours'),
        (3, 'failed lately', null, 'failed', null, 5, 'bang', now()),
        (4, 'solved', 'yes', 'solved', 'm', 1, null, now()),
        (5, 'aside', null, 'unsolved', 'm', 1, null, null);
    insert into llmqueue.quarantine (task_id, step, reason, quarantined_at)
        values (5, 'complete', 'value too long', now() - interval '1 hour');
    insert into llmqueue.attempt (fence, task_id, model, worker, attempt_no, granted_at, cell, rpm, ended_at, outcome,
                                  error_class, error, latency_s)
        values (1, 2, 'm', gen_random_uuid(), 5, now(), 1, 60, now(), 'buried', 'task', 'boom', 1.5)
"""


@pytest.fixture
def dsn(installed: str) -> str:
    with psycopg.connect(installed, autocommit=True) as conn:
        conn.execute(TASKS)
    return installed


def fetch(dsn: str, query: LiteralString) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query).fetchall()


def test_show_has_the_task_and_its_attempts(dsn: str) -> None:
    shown = dict(run_cli(dsn, "tasks", "show", "2").rows)

    assert (shown["id"], shown["prompt"], shown["status"], shown["error"]) == ("2", "failed", "failed", "boom")
    assert shown["attempt 5"].startswith("buried on m, granted ")
    assert shown["attempt 5"].endswith("1.5 s, task: boom")
    as_json = json.loads(run_cli(dsn, "tasks", "show", "2", "--json").out)
    assert (as_json["task"]["attempts"], as_json["attempts"][0]["outcome"]) == (5, "buried")


def test_show_cuts_long_text_unless_told_otherwise(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update tasks set answer = repeat('x', 2000) where id = 4")

    assert dict(run_cli(dsn, "tasks", "show", "4").rows)["answer"].endswith("x… (2,000 characters; --full shows all)")
    assert dict(run_cli(dsn, "tasks", "show", "4", "--full").rows)["answer"] == "x" * 2000


def test_show_obeys_no_escape_sequence_of_a_backend(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update tasks set error = e'\\x1b]0;owned\\x07' where id = 4")

    assert "\x1b" not in run_cli(dsn, "tasks", "show", "4").out


def test_show_takes_infinite_times(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update tasks set run_at = 'infinity' where id = 1")

    assert dict(run_cli(dsn, "tasks", "show", "1").rows)["run_at"] == "infinity"


@pytest.mark.parametrize("verb", ["show", "retry", "cancel"])
def test_key_of_the_wrong_type_is_wrong_usage(dsn: str, verb: str) -> None:
    refused = run_cli(dsn, "tasks", verb, "abc")

    assert (refused.code, refused.err) == (2, 'llmqueue: "abc" is no task id: the key is of type bigint\n')


def test_unknown_task(dsn: str) -> None:
    shown = run_cli(dsn, "tasks", "show", "42")

    assert (shown.code, shown.out, shown.err) == (1, "", "llmqueue: no task 42\n")


def test_retry_runs_ended_tasks_again_and_names_the_rest(dsn: str) -> None:
    done = run_cli(dsn, "tasks", "retry", "4", "2", "1", "42")

    assert (done.code, done.out) == (1, "retried 2 of 4 tasks\n")
    assert done.err.splitlines() == ["not retried: 1: it is ready to run", "not retried: 42: no such task"]
    assert fetch(dsn, "select id from llmqueue.task where is_ready order by id") == [(1,), (2,), (4,), (5,)]


def test_cancel_ends_what_has_not_ended(dsn: str) -> None:
    done = run_cli(dsn, "tasks", "cancel", "1", "4", "--json")

    assert (done.code, json.loads(done.out)) == (1, {"cancelled": ["1"], "left": {"4": "it has ended"}})
    assert fetch(dsn, "select status from tasks where id in (1, 4) order by id") == [("cancelled",), ("solved",)]


def test_dead_list_has_failed_and_quarantined_tasks_newest_first(dsn: str) -> None:
    rows = run_cli(dsn, "dead", "list").rows

    assert [row[:5] for row in rows] == [
        ["3", "", "5", "", "bang"],
        ["5", "m", "1", "quarantined", "complete: value too long"],
        ["2", "m", "5", "task", "boom"],
    ]
    assert len(run_cli(dsn, "dead", "list", "--limit", "1").rows) == 1


def test_dead_retry_takes_only_dead_letters(dsn: str) -> None:
    done = run_cli(dsn, "dead", "retry", "2", "4")

    assert (done.code, done.out, done.err) == (1, "retried 1 dead letter\n", "not retried: 4: no dead letter\n")
    assert fetch(dsn, "select status from tasks where id in (2, 4) order by id") == [("unsolved",), ("solved",)]


def test_dead_retry_all_leaves_none(dsn: str) -> None:
    done = run_cli(dsn, "dead", "retry", "--all")

    assert (done.code, done.out) == (0, "retried 3 dead letters\n")
    assert run_cli(dsn, "dead", "list").out == ""
    assert fetch(dsn, "select count(*) from llmqueue.task where is_ready") == [(4,)]


def test_row_that_cannot_be_retried_does_not_hold_up_the_others(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "create function refuse() returns trigger language plpgsql as "
            "$$ begin if new.id = 2 then raise 'hands off'; end if; return new; end $$"
        )
        conn.execute("create trigger refuse before update on tasks for each row execute function refuse()")

    done = run_cli(dsn, "dead", "retry", "--all")

    assert (done.code, done.out, done.err) == (1, "retried 2 dead letters\n", "not retried: 2: hands off\n")


def test_purge_asks_for_yes_when_piped(dsn: str) -> None:
    refused = run_cli(dsn, "dead", "purge", "2")

    assert (refused.code, refused.err) == (2, "llmqueue: dead purge deletes rows of your table: say --yes\n")
    assert fetch(dsn, "select count(*) from tasks") == [(5,)]


def test_purge_deletes_dead_letters_only(dsn: str) -> None:
    done = run_cli(dsn, "dead", "purge", "2", "4", "--yes")

    assert (done.code, done.out, done.err) == (1, "purged 1 dead letter\n", "not purged: 4: no dead letter\n")
    assert fetch(dsn, "select id from tasks order by id") == [(1,), (3,), (4,), (5,)]


def test_purge_by_age_keeps_the_newer(dsn: str) -> None:
    done = run_cli(dsn, "dead", "purge", "--older-than", "2h", "--yes")

    assert (done.code, done.out) == (0, "purged 1 dead letter\n")
    assert fetch(dsn, "select id from tasks order by id") == [(1,), (3,), (4,), (5,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retry"], "name the dead letters by ID, or say --all"),
        (["retry", "1", "--all"], "name the dead letters by ID, or say --all"),
        (["purge", "--yes"], "name the dead letters by ID, or say --older-than DURATION"),
        (["purge", "--yes", "--older-than", "old"],
         "--older-than must be a duration such as 90m, 12h or 30d (got 'old')"),
    ],
)  # fmt: skip
def test_dead_wrong_usage(dsn: str, arguments: list[str], message: str) -> None:
    refused = run_cli(dsn, "dead", *arguments)

    assert (refused.code, refused.err) == (2, f"llmqueue: {message}\n")
