"""llmqueue.claim: which tasks a worker gets, in which order, and what it can_listen when it gets none."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.support.sql import T0, Queue

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


def test_a_claimed_task_is_running_under_a_fence_with_an_attempt_and_a_charge(queue: Queue) -> None:
    queue.model("m", 60)
    (key,) = queue.add()

    grant = queue.claim(1).only

    task, attempt = queue.task(key), queue.attempt(grant)
    assert (task["status"], task["fence"], task["attempts"], task["started_at"]) == ("running", grant.fence, 1, T0)
    assert (attempt["task_id"], attempt["model"], attempt["worker"], attempt["attempt_no"]) == (
        key,
        "m",
        queue.worker,
        1,
    )
    assert (attempt["granted_at"], attempt["ended_at"], attempt["rpm"]) == (T0, None, 60)
    assert queue.rows("select model, cell, calls from llmqueue.ledger_grant") == [
        {"model": "m", "cell": attempt["cell"], "calls": 1}
    ]
    assert attempt["cell"] == int(T0.timestamp() * 4)


def test_what_the_worker_needs_comes_with_the_grant(queue: Queue) -> None:
    queue.model("m", timeout=timedelta(minutes=2))
    (key,) = queue.add(prompt="why not?", params='{"max_tokens": 5}', max_attempts=3)

    grant = queue.claim(1).only

    assert (grant.id, grant.prompt, grant.params) == (key, "why not?", '{"max_tokens": 5}')
    assert (grant.attempt_no, grant.max_attempts, grant.restarts) == (1, 3, 0)
    assert (grant.guard_s, grant.timeout_s) == (0.5, 120)


def test_a_running_task_is_not_claimed_again(queue: Queue) -> None:
    queue.model("m")
    queue.add(3)

    assert len(queue.claim(10).grants) == 3
    assert queue.claim(10).grants == []


def test_higher_priority_first_then_due_then_key_in_a_lane(queue: Queue) -> None:
    queue.model("m", 6000)
    early, late = LONG_AGO, LONG_AGO + timedelta(days=1)
    times = (early, early, late)
    plain = [queue.add(priority=priority, run_at=run_at)[0] for priority in (5, 0, -3) for run_at in times]

    order = [queue.claim(1).only.id for _ in range(9)]

    assert order == plain
    assert queue.claim(1).reasons == {"m": "empty"}


def test_one_claim_takes_the_same_order_as_many(queue: Queue) -> None:
    queue.model("m", 6000)
    keys = [queue.add(priority=9 - n // 4)[0] for n in range(40)]

    assert queue.claim(40).ids == keys


def test_lanes_of_a_model_take_turns_inside_a_priority(queue: Queue) -> None:
    queue.model("m", 6000)
    pool = queue.add(100, created_at=LONG_AGO)
    own = queue.add(30, model="m")

    first = queue.claim(20).ids

    assert len(set(first) & set(own)) >= 9, "a pool that has waited for longer does not starve the model's own tasks"
    assert len(set(first) & set(pool)) >= 9
    assert [key for key in first if key in own] == own[: len(set(first) & set(own))]


def test_every_priority_of_many_is_found(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.rows(
        "insert into tasks (prompt, priority) select 'why?', (n * 7919) % 1000 - 500 from generate_series(1, 1000) n"
    )
    expected = queue.values("select id from tasks order by priority desc, id")

    first = queue.claim(500).ids

    # nine in ten by priority, one in ten the oldest of the rest
    assert first[:450] == expected[:450]
    assert first[450:] == sorted(set(expected) - set(first[:450]))[:50]
    assert set(first + queue.claim(500).ids) == set(expected)


def test_the_highest_and_lowest_priorities_are_found(queue: Queue) -> None:
    queue.model("m", 6000)
    lowest, highest = queue.add(priority=-32768)[0], queue.add(priority=32767)[0]

    assert queue.claim(2).ids == [highest, lowest]


def test_nulls_inserted_explicitly_mean_default_pool_priority_0_and_due_at_once(queue: Queue) -> None:
    queue.model("m")
    queue.add(priority=1)
    (key,) = queue.add(
        priority=None, model=None, run_at=None, created_at=None, attempts=None, restarts=None, max_attempts=None
    )
    queue.add(priority=-1)

    grant = queue.claim(10).grants[1]

    assert (grant.id, grant.attempt_no, grant.restarts, grant.max_attempts) == (key, 1, 0, 5)


def test_a_task_whose_run_at_is_ahead_waits_and_blocks_nothing(queue: Queue) -> None:
    queue.model("m", 6000)
    (ahead,) = queue.add(priority=9, run_at=T0 + timedelta(seconds=60))
    behind, lower = queue.add(priority=9)[0], queue.add(priority=0)[0]

    assert queue.claim(10).ids == [behind, lower]
    assert queue.task(ahead)["status"] == "unsolved"
    queue.advance(60)
    assert queue.claim(10).ids == [ahead]


def test_a_task_past_its_deadline_fails_without_a_call(queue: Queue) -> None:
    queue.model("m", 6000)
    (expired,) = queue.add(deadline_at=T0 - timedelta(seconds=1), priority=3)
    (in_time,) = queue.add(deadline_at=T0 + timedelta(seconds=1))

    assert queue.claim(10).ids == [in_time]

    task = queue.task(expired)
    assert (task["status"], task["finished_at"], task["attempts"]) == ("failed", T0, 0)
    assert "deadline_at" in task["error"]
    assert queue.values("select sum(calls) from llmqueue.ledger_grant") == [1]


def test_expired_tasks_at_the_head_do_not_cost_those_behind_a_claim_each(queue: Queue) -> None:
    queue.model("m", 6000)
    queue.add(50, deadline_at=T0 - timedelta(seconds=1), run_at=LONG_AGO)
    (good,) = queue.add()
    queue.add(priority=-1)

    assert queue.claim(1).ids == [good]


def test_a_task_that_names_a_model_goes_to_no_other(queue: Queue) -> None:
    queue.model("a")
    queue.model("b")
    (key,) = queue.add(model="b")

    assert queue.claim(10, ["a"]).reasons == {"a": "empty"}
    assert queue.claim(10, ["b"]).ids == [key]


def test_the_slots_are_for_all_models_together(queue: Queue) -> None:
    for name in "abc":
        queue.model(name, 6000)
    queue.add(100)

    claimed = queue.claim(30)

    assert len(claimed.grants) == 30
    assert len({grant.id for grant in claimed.grants}) == 30


def test_a_pool_task_goes_to_the_model_that_has_room(queue: Queue) -> None:
    queue.model("full", 60)
    queue.model("free", 60)
    queue.add(4)
    assert len(queue.claim(2, ["full"]).grants) == 2
    assert queue.claim(2, ["full"]).reasons == {"full": "pace"}

    assert [grant.model for grant in queue.claim(2).grants] == ["free", "free"]


@pytest.mark.parametrize("columns", [{"rpm": 0}, {"rpm": 600, "enabled": False}])
def test_a_paused_model_gets_nothing_until_it_resumes(queue: Queue, columns: dict[str, int]) -> None:
    queue.model("m", **columns)
    (key,) = queue.add(model="m")

    assert queue.claim(10, ["m"]).reasons == {"m": "paused"}
    assert queue.task(key)["status"] == "unsolved"

    queue.model("m", 600, enabled=True)
    assert queue.claim(10, ["m"]).ids == [key]


def test_a_disabled_model_is_not_asked_when_all_are(queue: Queue) -> None:
    queue.model("on")
    queue.model("off", enabled=False)
    queue.add()

    assert set(queue.claim(10).reasons) == {"on"}


def test_an_unknown_model_is_named(queue: Queue) -> None:
    queue.add()

    assert queue.claim(10, ["nobody"]).reasons == {"nobody": "unknown"}


def test_a_model_without_a_row_is_told_from_one_without_tasks_among_several(queue: Queue) -> None:
    queue.model("m")
    queue.model("idle")

    assert queue.claim(10, ["m", "nobody", "idle"]).reasons == {"m": "empty", "nobody": "unknown", "idle": "empty"}


def test_max_concurrency_holds_over_two_workers_and_frees_with_each_end(queue: Queue) -> None:
    queue.model("m", 6000, max_concurrency=3, hot_share=0)
    queue.add(10)
    other = queue.register()

    first = queue.claim(2)
    second = queue.claim(10, worker=other)
    assert (len(first.grants), len(second.grants), second.reasons) == (2, 1, {"m": "concurrency"})
    assert queue.claim(1).reasons == {"m": "concurrency"}

    queue.complete(first.grants[0])
    queue.retry(second.only)
    assert len(queue.claim(10).grants) == 2


def test_a_call_that_goes_on_counts_though_hundreds_came_and_went_after_it(queue: Queue) -> None:
    queue.model("m", 6000, max_concurrency=3, hot_share=0)
    queue.add(400)
    old = queue.claim(1).only
    for _ in range(100):
        for grant in queue.claim(10).grants:
            queue.complete(grant)
        queue.advance(1)

    assert len(queue.claim(10).grants) == 2
    queue.complete(old)
    assert len(queue.claim(10).grants) == 1


def test_calls_count_that_began_while_there_was_no_limit(queue: Queue) -> None:
    queue.model("m", 6000, hot_share=0)
    queue.add(30)
    queue.claim(2)
    for grant in queue.claim(10).grants:
        queue.complete(grant)

    queue.model("m", 6000, max_concurrency=0, hot_share=0)
    assert queue.claim(10).grants == []
    queue.model("m", 6000, max_concurrency=3, hot_share=0)
    assert len(queue.claim(10).grants) == 1


def test_a_lowered_max_concurrency_waits_for_the_running(queue: Queue) -> None:
    queue.model("m", 6000, max_concurrency=4, hot_share=0)
    queue.add(10)
    running = queue.claim(4).grants

    queue.model("m", 6000, max_concurrency=2)
    queue.complete(running[0])
    queue.complete(running[1])
    assert queue.claim(5).grants == []
    queue.complete(running[2])
    assert len(queue.claim(5).grants) == 1
    queue.model("m", 6000, max_concurrency=0)
    assert queue.claim(5).reasons == {"m": "paused"}


def test_a_grant_without_a_task_is_not_charged(queue: Queue) -> None:
    queue.model("m", 60)
    queue.add()

    assert queue.claim(2).reasons == {"m": "empty"}
    assert queue.claim(2).reasons == {"m": "empty"}

    assert queue.values("select sum(calls) from llmqueue.ledger_grant") == [1]


def test_an_ended_task_set_back_by_plain_sql_starts_anew(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    first = queue.claim(1).only
    queue.retry(first, delay_s=0)
    queue.promote()
    queue.complete(queue.claim(1).only)

    queue.rows("update tasks set status = 'unsolved' where id = %s", key)
    again = queue.claim(1).only

    task = queue.task(key)
    assert (again.attempt_no, again.restarts) == (1, 1)
    assert (task["attempts"], task["restarts"], task["finished_at"], task["error"]) == (1, 1, None, None)


def test_an_unregistered_worker_is_told_so(queue: Queue) -> None:
    queue.model("m")

    with pytest.raises(psycopg.DatabaseError) as raised:
        queue.claim(1, worker=uuid4())
    assert raised.value.sqlstate == "LQ002"


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_claim_under_another_isolation_is_refused(shared: str, level: str) -> None:
    with psycopg.connect(shared) as conn:
        conn.execute(f"set transaction isolation level {level}")

        with pytest.raises(psycopg.DatabaseError) as raised:
            conn.execute("select llmqueue.claim(gen_random_uuid(), null, 1)")
        assert raised.value.sqlstate == "LQ001"


def test_a_claim_is_durable_even_if_the_session_is_not(queue: Queue) -> None:
    queue.model("m")
    queue.rows("set synchronous_commit = off")

    queue.claim(1)

    assert queue.value("select current_setting('synchronous_commit')") == "on"
    queue.rows("set synchronous_commit = off")
    queue.settle()
    assert queue.value("select current_setting('synchronous_commit')") == "on"


def test_waited_s_is_the_time_of_the_statement_before_the_grant(queue: Queue) -> None:
    queue.model("m")
    queue.now = None
    queue.add()

    (row, _) = queue.rows("select * from llmqueue.claim(%s, (select array['m'] from pg_sleep(0.1)), 2)", queue.worker)

    assert 0.1 <= row["waited_s"] < 10


def test_clock_at_is_the_databases_clock_at_the_grant(queue: Queue) -> None:
    queue.model("m")
    queue.add()
    (row, _) = queue.rows("select clock_at from llmqueue.claim(%s, null, 2)", queue.worker)

    assert row["clock_at"] == T0


def test_maintenance_runs_in_a_claim(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add()
    queue.retry(queue.claim(1).only, delay_s=1)
    queue.advance(2)

    claimed = queue.claim(1, maintenance=["heartbeat", "promote", "sweep", "prune", "idle"])

    assert claimed.ids == [key]
    assert queue.value("select heartbeat_at from llmqueue.worker where worker = %s", queue.worker) == queue.now
    assert queue.values("select worker from llmqueue.idle_worker") == [queue.worker]
    queue.claim(1, maintenance=["busy"])
    assert queue.values("select worker from llmqueue.idle_worker") == []


def test_a_set_aside_task_at_the_head_hides_nothing(queue: Queue) -> None:
    queue.model("m", 6000)
    blocked = queue.add(3, model="m", run_at=LONG_AGO)
    for key in blocked:
        queue.rows("select llmqueue_internal.quarantine(%s, 'claim', 'theirs')", key)
    in_pool, lower = queue.add()[0], queue.add(priority=-1)[0]

    assert queue.claim(1).ids == [in_pool]
    assert queue.claim(1).ids == [lower]


def test_large_prompts_pass_through_no_temporary_files(queue: Queue) -> None:
    queue.model("m", 60000)
    keys = queue.add(20, prompt="why? " * 100_000)

    query = "explain (analyze, buffers, format json) select * from llmqueue.claim(%s, null, 20)"
    plan = queue.value(query, queue.worker)

    assert queue.values("select id from tasks where status = 'running' order by id") == keys
    assert plan[0]["Plan"]["Temp Written Blocks"] == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_task_that_is_set_aside_is_not_taken_wherever_it_waits(queue: Queue, place: int) -> None:
    queue.model("m", 600)
    keys = queue.add(3)
    queue.rows("select llmqueue_internal.quarantine(%s, 'claim', 'its row cannot be written')", keys[place])

    assert queue.claim(10).ids == [key for key in keys if key != keys[place]]


def marks(queue: Queue, old: Sequence[tuple[object, ...]], new: Sequence[tuple[object, ...]]) -> list[tuple[str, int]]:
    """What is kept of marks of (user, taken), in the default pool at priority 0."""
    made = """array(select ('', 0, x->>0, now(), 1, (x->>1)::integer)::llmqueue_internal.resume_cursor
                      from jsonb_array_elements(%s) x)"""
    query = f"select user_key, taken from unnest(llmqueue_internal.advance_cursors({made}, {made}))"
    return [(row["user_key"], row["taken"]) for row in queue.rows(query, Jsonb(old), Jsonb(new))]


def test_ten_marks_are_kept_the_newest_and_those_that_save_most(queue: Queue) -> None:
    old = [(f"heavy {n}", 1000 + n) for n in range(8)] + [(f"light {n}", 1) for n in range(50)]
    new = [(f"new {n}", 3) for n in range(9)] + [("heavy 0", 10)]

    kept = dict(marks(queue, old, new))

    assert len(kept) == 10
    assert kept["heavy 0"] == 1010
    assert {f"heavy {n}" for n in range(3, 8)} <= set(kept)
    assert sum(name.startswith("new") for name in kept) >= 3


@pytest.mark.parametrize(
    "nonsense",
    [
        {"cursors": 1},
        {"cursors": [1]},
        {"cursors": [{"lane": "", "due_at": "yesterday, perhaps", "task_id": 1}]},
        {"cursors": [{"lane": "", "rank": 0, "due_at": "now", "task_id": 1}]},
        {"cursors": [{"lane": "", "due_at": "now", "task_id": "one"}]},
        {"cursors": [], "look_at": "soon"},
        {"cursors": [], "look_at": [1]},
        {"seen": [1]},
        {"seen": 1.5},
        {"epoch": [1]},
        [],
        7,
    ],
    ids=str,
)
def test_turns_that_are_nonsense_stop_no_claim(queue: Queue, nonsense: object) -> None:
    queue.model("m", 600)
    (key,) = queue.add()
    queue.rows("select setval('llmqueue.fence_seq', 1000)")  # a low `seen` is then no proof of a lost state
    queue.claim_state[queue.worker] = nonsense

    assert queue.claim(1).ids == [key]
