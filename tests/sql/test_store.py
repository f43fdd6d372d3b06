"""store.Store calls the real functions and passes arguments and results unchanged."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.db.store import Store
from llmqueue.errors import DatabaseSilent, NotInitialised, SqlError
from llmqueue.types import Claim, Complete, Grant, Release, Retry, Room, Settlement, Usage

pytestmark = pytest.mark.anyio
Conn = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
async def store(installed: str, anyio_backend: str) -> AsyncIterator[Store]:
    store = Store(installed, uuid4(), prompt_is_json=False, answer_is_json=False, is_pooled=False)
    await store.open()
    await store.register("a worker", "0", None, 20.0, 0.5)
    yield store
    await store.aclose()


def add(conn: Conn, prompt: str = "why?", model: str = "m", priority: int = 0) -> None:
    conn.execute("insert into tasks (prompt, model, priority) values (%s, %s, %s)", (prompt, model, priority))


def value(conn: Conn, query: str) -> object:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


async def claim(store: Store, room: Room = Room(10, 0), claim_state: str | None = None) -> Claim:  # noqa: B008 - frozen
    return await store.claim(None, room, [], 0, claim_state)


async def only(store: Store) -> Grant:
    """The one task there is; asked for until the pace lets it go."""
    with anyio.fail_after(60):
        while not (grants := (await claim(store)).grants):
            await anyio.sleep(0.02)
    [grant] = grants
    return grant


async def test_a_function_that_an_upgrade_has_dropped_is_asked_for_again(store: Store, conn: Conn) -> None:
    conn.execute("alter function llmqueue.heartbeat rename to dropped")
    with pytest.raises(SqlError, match="heartbeat"):
        await store.heartbeat(0)
    conn.execute("alter function llmqueue.dropped rename to heartbeat")

    await store.heartbeat(0)

    assert not store.outgrown.is_set()


async def test_a_schema_that_is_gone_is_not_waited_for(store: Store, conn: Conn) -> None:
    conn.execute("alter schema llmqueue rename to gone")

    with pytest.raises(NotInitialised, match="run llmqueue init"):
        await store.heartbeat(0)


async def test_a_model_without_a_limit_on_tokens_says_nothing_of_them(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 600)")
    add(conn)

    grant = await only(store)

    assert (grant.task.tokens, grant.char_class_ratio, grant.task.is_hot) == (None, None, False)


async def test_what_a_task_was_charged_comes_with_it(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, tpm, max_output) values ('m', 600, 60000, 100)")
    add(conn, "x" * 4000)

    grant = await only(store)

    assert grant.task.input_charge is not None
    assert grant.task.tokens == grant.task.input_charge + 100
    assert grant.char_class_ratio == 1.0


async def test_a_charge_is_raised_when_it_fits(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, tpm, max_output) values ('m', 600, 6000, 100)")
    add(conn)
    fence = (await only(store)).task.fence

    assert await store.top_up(fence, 2_000)
    assert value(conn, "select input_charge from llmqueue.attempt") == 2_000
    assert value(conn, "select sum(tokens) from llmqueue.ledger_grant") == 2_100


async def test_a_charge_that_does_not_fit_is_not_raised(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, tpm, max_output) values ('m', 600, 6000, 100)")
    add(conn)
    task = (await only(store)).task
    fence = task.fence

    assert not await store.top_up(fence, 50_000)
    assert not await store.top_up(fence + 1, 10)
    assert not await store.top_up(2**40, 2**31 - 1)
    assert value(conn, "select sum(tokens) from llmqueue.ledger_grant") == task.tokens


async def test_slots_for_hot_tasks_take_no_others(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 6000)")
    for _ in range(5):
        add(conn)

    nothing = await claim(store, Room(0, 3))
    add(conn, "hot", priority=100)
    [hot] = (await claim(store, Room(0, 3))).grants
    both = await claim(store, Room(2, 3))

    assert nothing.grants == ()
    assert [refusal.retry_in_s for refusal in nothing.refusals] == [None]
    assert (hot.task.prompt, hot.task.is_hot) == ("hot", True)
    assert [grant.task.is_hot for grant in both.grants] == [False, False]


async def test_whose_turn_it_is_comes_back_and_is_taken_as_it_came(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 6000), ('n', 6000)")
    for _ in range(5):
        conn.execute("insert into tasks (prompt) values ('why?')")

    first = await claim(store, Room(1, 0))
    second = await claim(store, Room(1, 0), first.claim_state)

    assert first.claim_state is not None
    assert isinstance(json.loads(first.claim_state), dict)
    assert second.claim_state is not None
    assert len(first.grants) == len(second.grants) == 1


async def test_a_refusal_closes_its_model_for_as_long_as_it_said(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 6000)")
    add(conn)
    grant = await only(store)
    retry = Retry("rate_limited", "HTTP 429", 0.1, counts=False, refusal="quota", pause_s=40.0)

    outcomes = await store.settle([Settlement(grant, retry, 0.01, 0.2)])
    add(conn)
    after = await claim(store)

    assert outcomes == {grant.task.fence: "refused"}
    assert (after.grants, [refusal.reason for refusal in after.refusals]) == ((), ["cooldown"])
    closed_for_s = conn.execute("select cooldown_until - cooldown_started_at from llmqueue.model_state").fetchone()
    assert closed_for_s == (timedelta(seconds=40),)
    assert value(conn, "select attempts from tasks where status = 'delayed'") == 0


async def test_the_estimate_is_kept_with_the_attempt(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, tpm) values ('m', 6000, 100000)")
    for decision in (Complete("42", Usage(30, 5)), Retry("timeout", "no reply", 0.0, counts=True)):
        add(conn, f"{type(decision).__name__}")
        grant = await only(store)

        await store.settle([Settlement(grant, decision, 0.01, 0.2, char_class_estimate=31)])

        found = conn.execute("select char_class_estimate from llmqueue.attempt where fence = %s", (grant.task.fence,))
        assert found.fetchone() == (31,)


async def test_what_did_not_fit_goes_back_and_is_charged_in_full_the_next_time(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, tpm, max_output) values ('m', 600, 6000, 100)")
    add(conn, "first")
    grant = await only(store)
    conn.execute("update llmqueue.model_config set tpm = 1000")
    assert not await store.top_up(grant.task.fence, 2_000)

    outcomes = await store.settle([Settlement(grant, Release("tokens"), None, None, char_class_estimate=2_000)])
    conn.execute("update llmqueue.model_config set tpm = 6000")
    again = await only(store)

    assert outcomes == {grant.task.fence: "released"}
    assert (again.task.id, again.task.attempt_no, again.task.input_charge) == (grant.task.id, 1, 2_000)


async def test_a_grant_is_good_for_half_of_the_guard(store: Store, conn: Conn) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 600)")
    add(conn)
    started_at = time.monotonic()

    grant = await only(store)

    assert started_at <= grant.granted_at <= time.monotonic()
    assert grant.send_before == pytest.approx(grant.granted_at + 0.2)


async def test_a_statement_that_is_not_answered_in_time_is_told_from_a_database_that_is_away(
    store: Store, conn: Conn, installed: str
) -> None:
    impatient = Store(
        make_conninfo(installed, options="-c statement_timeout=50ms"),
        store.worker,
        prompt_is_json=False,
        answer_is_json=False,
        is_pooled=True,
    )
    await impatient.open()
    try:
        with conn.transaction():
            conn.execute("select from llmqueue.worker for update")

            with pytest.raises(DatabaseSilent):
                await store.heartbeat(0, timeout_s=0.05)
            with pytest.raises(DatabaseSilent):
                await impatient.heartbeat(0)
    finally:
        await impatient.aclose()
