"""promote: due tasks become ready, other delayed tasks stay out of the ready index."""

from __future__ import annotations

from datetime import timedelta

import psycopg

from tests.support.sql import T0, Queue, retry


def test_only_what_is_due_is_promoted_oldest_first(queue: Queue) -> None:
    queue.model("m", 60000)
    queue.add(4)
    grants = queue.claim(4).grants
    queue.settle(*(retry(grant, delay_s=delay_s) for grant, delay_s in zip(grants, (3, 1, 2, 60), strict=True)))

    queue.advance(10)

    assert queue.promote(2) == 2
    assert [queue.task(grant.id)["status"] for grant in grants] == ["delayed", "unsolved", "unsolved", "delayed"]
    assert queue.promote() == 1
    assert queue.promote() == 0


def test_a_source_may_insert_delayed_tasks_itself(queue: Queue) -> None:
    queue.model("m")
    (key,) = queue.add(status="delayed", run_at=T0 + timedelta(seconds=5))

    assert queue.promote() == 0
    queue.advance(5)
    assert queue.promote() == 1
    assert queue.claim(1).ids == [key]


def test_a_promoted_task_keeps_its_place_behind_what_was_due_before(queue: Queue) -> None:
    queue.model("m", 60000)
    (first,) = queue.add()
    queue.retry(queue.claim(1).only, delay_s=30)
    queue.advance(10)
    (second,), (third,) = queue.add(run_at=T0 + timedelta(seconds=10)), queue.add(run_at=T0 + timedelta(seconds=35))
    queue.advance(30)
    queue.promote()

    assert queue.claim(3).ids == [second, first, third]


def test_rows_whose_promotion_is_swallowed_do_not_stand_before_all_others(queue: Queue) -> None:
    queue.model("m")
    bad = queue.add(3, status="delayed", prompt="bad", run_at=T0 - timedelta(days=1))
    (good,) = queue.add(status="delayed", run_at=T0)
    queue.owners_trigger("if new.prompt = 'bad' then return null; end if")

    queue.promote(3)

    assert queue.promote(3) == 1
    assert queue.task(good)["status"] == "unsolved"
    assert queue.quarantined() == dict.fromkeys(bad, "promote")


def test_an_owners_deferred_trigger_costs_its_row_and_no_other_maintenance(installed: str) -> None:
    """With autocommit, as a worker's statements are: a constraint that is deferred would raise at the COMMIT."""
    with psycopg.connect(installed, autocommit=True) as conn:
        conn.execute(
            "insert into tasks (prompt, status, run_at) select p, 'delayed', now() from unnest('{bad,good}'::text[]) p"
        )
        conn.execute(
            "create function public.refuse() returns trigger language plpgsql as $$ begin "
            "if new.prompt = 'bad' then raise exception 'no'; end if; return null; end $$"
        )
        conn.execute(
            "create constraint trigger refuse after update on tasks deferrable initially deferred "
            "for each row execute function public.refuse()"
        )

        conn.execute("select llmqueue.maintain(gen_random_uuid(), array['promote'], 0)")

        found = conn.execute("select prompt, status from tasks order by prompt").fetchall()
        assert found == [("bad", "delayed"), ("good", "unsolved")]
        assert conn.execute("select step, reason from llmqueue.quarantine").fetchall() == [("promote", "no")]
