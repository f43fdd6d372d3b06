"""`llmqueue why`: the command, and the sentences it makes of llmqueue.why()."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest
from psycopg.rows import class_row

from llmqueue.cli.model_reasons import sentences
from llmqueue.cli.reasons import Why
from tests.support.cli import run_cli
from tests.support.sql import T0, Queue
from tests.support.why import EARLIER, add, start_cooldown

WHY = """
    select %(key)s::text as key, w.state, w.reason, to_jsonb(w.until_at) #>> '{}' as until_at, w.model, w.detail,
           to_jsonb(%(now)s::timestamptz) #>> '{}' as now
      from llmqueue.why(%(key)s::llmqueue.task_id) w
"""


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Times are shown as the reader's clock shows them."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def one(queue: Queue) -> Queue:
    """One model, m, and one worker."""
    queue.model("m", rpm=60, hot_share=0)
    queue.rows("update llmqueue.worker set name = 'w'")
    return queue


def said(queue: Queue, key: object) -> list[str]:
    """The sentences, with the key as K."""
    with queue.conn.cursor(row_factory=class_row(Why)) as cursor:
        rows = cursor.execute(WHY, {"key": key, "now": queue.now}).fetchall()
    return [line.replace(f"task {key} ", "task K ").replace(f"retry {key}", "retry K") for line in sentences(rows)]


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def dsn(installed: str) -> str:
    with psycopg.connect(installed, autocommit=True) as conn:
        conn.execute(
            "insert into tasks (id, prompt, model, run_at) values (1, 'p', 'm', null), (2, 'p', 'n', 'infinity')"
        )
        conn.execute("insert into llmqueue.model_config (model, rpm, enabled) values ('m', 60, false)")
    return installed


def test_why_says_what_a_task_waits_for(dsn: str) -> None:
    shown = run_cli(dsn, "why", "1")

    assert (shown.code, shown.err) == (0, "")
    assert shown.out == "task 1 waits: model m is paused. Run: llmqueue models resume m\n"


def test_why_as_json_has_the_rows(dsn: str) -> None:
    shown = run_cli(dsn, "why", "1", "--json")

    (row,) = json.loads(shown.out)
    assert (row.pop("detail")["ahead"], row) == (
        0,
        {"state": "ready", "reason": "paused", "until_at": None, "model": "m"},
    )


def test_why_takes_infinite_times(dsn: str) -> None:
    assert run_cli(dsn, "why", "2").out == "task 2 waits: it is not due until infinity, because its run_at says so\n"


def test_no_such_task(dsn: str) -> None:
    shown = run_cli(dsn, "why", "42", "--json")

    assert (shown.code, shown.out, shown.err) == (1, "", "llmqueue: no task 42\n")


def test_key_of_the_wrong_type_is_wrong_usage(dsn: str) -> None:
    shown = run_cli(dsn, "why", "abc")

    assert (shown.code, shown.err) == (2, 'llmqueue: "abc" is no task id: the key is of type bigint\n')


def test_why_obeys_no_escape_sequence_of_a_backend(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("update tasks set status = 'failed', error = e'\\x1b]0;owned\\x07' where id = 1")

    assert "\x1b" not in run_cli(dsn, "why", "1").out


# --- what it says of the task ---------------------------------------------------------------------------------------


def test_ended_tasks(one: Queue) -> None:
    dead = add(one)
    one.bury(one.claim().only)
    solved = add(one, status="solved", finished_at=T0 - timedelta(days=1))
    cancelled = add(one, status="cancelled")
    one.advance(120)

    assert said(one, dead) == [
        "task K has been dead since 12:00:00 (2 min ago), after 1 attempt, because of rejected: 400",
        "its last attempt, on model m, was buried (rejected: 400)",
        "to run it again: llmqueue dead retry K",
    ]
    assert said(one, solved) == ["task K was solved at 2039-12-31 12:00:00 (24 h 2 min ago)"]
    assert said(one, cancelled) == ["task K was cancelled", "to run it again: llmqueue tasks retry K"]


def test_a_task_in_quarantine(one: Queue) -> None:
    key = add(one)
    query = (
        "insert into llmqueue.quarantine (task_id, step, reason, quarantined_at) values (%s, 'claim', 'too long', %s)"
    )
    one.rows(query, key, T0)

    assert said(one, key) == [
        "task K has been quarantined since 12:00:00 (0 s ago): its row could not be written (claim: too long)",
        "once that is cured: llmqueue dead retry K",
    ]


def test_running_tasks(one: Queue) -> None:
    key = add(one, max_attempts=2)
    by_hand = add(one, status="running")
    one.claim()
    one.advance(3)

    assert said(one, key) == [
        "task K has run since 12:00:00 (3 s ago): attempt 1 of 2 on model m, worker w (alive, heartbeat 3 s ago)",
        "it may take until 12:10:00 (in 9 min) at most (timeout 10 min)",
    ]
    assert said(one, by_hand) == [
        "task K says that it is running, but it was never claimed, and nobody runs it (a status written by hand?)",
        "to run it: llmqueue tasks retry K",
    ]
    one.advance(30)
    dead = "task K ran since 12:00:00 (33 s ago), attempt 1 of 2 on model m, but worker w is dead (heartbeat 33 s ago)"
    assert said(one, key) == [
        dead,
        "it comes back with the first sweep of a live worker, and there is none. Start one: llmqueue worker",
    ]
    one.register()
    assert said(one, key) == [dead, "it comes back with the next sweep of a worker that has lived for a lease"]


def test_delayed_tasks(one: Queue) -> None:
    failed, refused = add(one), add(one, deadline_at=T0 + timedelta(minutes=2))
    first, second = one.claim().grants
    one.retry(first, delay_s=30)
    one.rows("update llmqueue.attempt set outcome = 'refused', ended_at = %s where fence = %s", T0, second.fence)
    one.rows(
        "update tasks set status = 'delayed', error = '429', run_at = %s where id = %s",
        T0 + timedelta(minutes=1),
        refused,
    )
    due = add(one, status="delayed")

    assert said(one, failed) == [
        "task K waits: it is not due until 12:00:30 (in 30 s), because attempt 1 of 5 failed (timeout: no reply)"
    ]
    assert said(one, refused) == [
        "task K waits: it is not due until 12:01:00 (in 60 s), because model m refused it (429), which cost no attempt",
        "if it is not claimed by its deadline, 12:02:00 (in 2 min), it ends as a dead letter",
    ]
    one.rows("delete from llmqueue.worker")
    assert said(one, due) == [
        "task K waits: it has been due since 11:00:00 (60 min ago), and a live worker makes it ready within a second",
        "no worker is live. Start one: llmqueue worker",
    ]


def test_tasks_that_no_model_waits_for(one: Queue) -> None:
    late = add(one, deadline_at=T0)
    one.model("m", enabled=False)

    assert said(one, late) == [
        "task K is past its deadline, 12:00:00 (0 s ago): the next worker that looks ends it as a dead letter, unsent"
    ]
    assert said(one, add(one, model=None)) == [
        "task K waits: no enabled model with a weight may take it. Run: llmqueue models set NAME --rpm N"
    ]


# --- what it says of the models -------------------------------------------------------------------------------------


def test_models_that_somebody_must_look_after(one: Queue) -> None:
    unknown, key = add(one, model="my model"), add(one)

    (line,) = said(one, unknown)
    assert line == (
        "task K waits: model my model is not configured by anybody. Run: llmqueue models set 'my model' --rpm N"
    )
    one.model("m", rpm=0, max_concurrency=0)
    assert said(one, key) == ["task K waits: model m is paused: its rpm is 0 and its max_concurrency is 0"]
    one.model("m", rpm=60, max_concurrency=None, tpm=8, token_mode="split", output_tpm=9, max_output=10)
    assert said(one, key) == [
        (
            "task K waits: model m can never take it: it is charged 9 tokens and 9 of output (tpm 8, output_tpm 9); "
            "when its turn comes it ends as a dead letter"
        )
    ]
    one.model("m", tpm=100, token_mode="sum", output_tpm=None)
    one.rows("update llmqueue.worker set models = array['n']")
    assert said(one, key) == [
        "task K waits: model m has no live worker (1 for other models). Start one: llmqueue worker"
    ]


def test_a_model_in_cooldown(one: Queue) -> None:
    key = add(one)
    query = """
        insert into llmqueue.model_state (model, cooldown_started_at, cooldown_until, cooldown_reason)
        values ('m', %s, %s, '429')
    """
    one.rows(query, T0, T0 + timedelta(minutes=2))

    assert said(one, key) == ["task K waits: model m is in cooldown until 12:02:00 (in 2 min) because of 429"]
    one.rows("update llmqueue.model_state set cooldown_until = %s", T0)
    assert said(one, key) == ["task K could be claimed now: model m has room and 1 live worker"]
    one.claim()
    assert said(one, add(one)) == [
        "task K waits: model m is in cooldown because of 429; a probe is under way, and ends it if it succeeds"
    ]


def test_full_limits(one: Queue) -> None:
    one.model("m", rpm=1, max_concurrency=2, hot_share=0.5)
    add(one)
    one.claim()
    cold, hot = add(one), add(one, priority=100)

    assert said(one, cold)[0] == "task K waits: model m has its concurrency full (2 slots, 1 kept for hot tasks)"
    (line,) = said(one, hot)
    assert line.startswith("task K waits: model m has no quota until 12:01:0")
    assert line.endswith("): rpm 1, used up by 1 call in the last 60 s")
    one.model("m", rpm=60, max_concurrency=None, rpd=1, quota_timezone="Europe/Berlin")
    assert said(one, hot) == [
        "task K waits: model m has no quota until 23:00:00 (in 11 h 0 min): rpd 1, used up for today in Europe/Berlin"
    ]


def test_workers_that_may_be_busy(one: Queue) -> None:
    key = add(one)
    one.rows("update llmqueue.worker set running = 64")

    assert said(one, key) == [
        (
            "task K could be claimed now: model m has room and 1 live worker, none of them idle "
            "(64 calls in flight, their slots may be taken)"
        )
    ]


def test_a_pool(one: Queue) -> None:
    one.model("n", enabled=False)
    one.rows("insert into llmqueue.pool_member (pool, model) values ('p', 'm'), ('p', 'n')")

    assert said(one, add(one, model="p")) == [
        'task K could be claimed now (pool "p", 2 models):',
        "  model m has room and 1 live worker",
        "  model n is paused. Run: llmqueue models resume n",
    ]


def test_models_without_weight(one: Queue) -> None:
    one.model("m", weight=0)

    assert said(one, add(one, model=None)) == [
        "task K waits: it names no model, and no enabled model has a weight. Run: llmqueue models set m --weight 1"
    ]


def test_many_models_that_wait_for_the_same_are_one_line(one: Queue) -> None:
    for n in range(20):
        one.model(f"n{n:02}", rpm=60)
    one.rows("update llmqueue.worker set models = array['m']")

    assert said(one, add(one, model=None)) == [
        "task K could be claimed now (default pool, 21 models):",
        "  model m has room and 1 live worker",
        "  20 models have no live worker: n00, n01, n02 and 17 more. Start one: llmqueue worker",
    ]


def test_a_time_that_has_come_is_now() -> None:
    now = "2040-01-01T12:00:00+00:00"
    detail = {"effective_rpm": 60, "ahead": 0}

    assert sentences([Why("1", "ready", "pace", now, "m", detail, now)]) == [
        "task 1 waits: model m has no quota until now: its calls are spread over the minute (60 a minute)"
    ]


# --- what it says of its place --------------------------------------------------------------------------------------


def test_better_tasks(one: Queue) -> None:
    one.add(3, model="m", priority=7, run_at=EARLIER)
    one.add(70, model="m", run_at=EARLIER)
    one.add(2, model=None, priority=7, run_at=EARLIER)

    assert said(one, add(one)) == [
        "task K waits: model m has room and 1 live worker, but better tasks go first",
        "73 tasks of its lane go first: 3 of higher priority, 70 due before it",
        "2 tasks of higher priority in other lanes of model m",
        "they take 73 s at least, at 60 calls a minute",
        "its turn comes within 12 min while rpm is used in full, since one grant in ten goes to the oldest task",
    ]


def test_the_users_share(one: Queue) -> None:
    one.add(100, model="m", user_id="many", run_at=EARLIER)
    one.add(2, model="m", user_id="me", run_at=EARLIER - timedelta(minutes=1))

    assert said(one, add(one, user_id="me"))[1] == (
        "up to 5 tasks of its lane go first: 2 of its own user, up to 3 of 1 other user, who take turns with its own"
    )


def test_bounded_counts(one: Queue) -> None:
    one.add(10_001, model="m", run_at=EARLIER)

    assert said(one, add(one))[1:] == [
        "more than 10,000 tasks of its lane go first: more than 10,000 due before it",
        "they take 2 h 46 min at least, at 60 calls a minute",
    ]


def test_tokens_pace_what_goes_first(one: Queue) -> None:
    one.model("m", rpm=600, tpm=2_000, token_mode="input")
    one.add(20, model="m", run_at=EARLIER, prompt="p" * 3_968)

    assert said(one, add(one, prompt="p" * 3_968))[2:] == [
        "they take about 10 min, at 2 calls a minute: tpm paces, if each is charged as it is",
        "its turn comes within about 105 min while tpm is used in full, since one grant in ten goes to the oldest task",
    ]


def test_no_time_is_named_while_a_model_is_in_cooldown_or_its_day_is_used(one: Queue) -> None:
    one.model("m", rpm=60, rpd=1)
    one.add(70, model="m", run_at=EARLIER)
    key = add(one)
    one.claim()
    day = said(one, key)
    start_cooldown(one, 60)
    closed = said(one, key)

    assert "used up for today" in day[0]
    assert "is in cooldown until" in closed[0]
    assert [len(day), len(closed)] == [2, 2]
