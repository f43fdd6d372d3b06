"""Calls the SQL functions, as store.py does for a real worker, with the simulated clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow, class_row
from psycopg.types.json import Jsonb

from llmqueue.forecast import simulated_clock
from llmqueue.forecast.scenario import HOT, INPUT_TOKENS
from llmqueue.types import (
    SEND_PART,
    Bury,
    Claim,
    ClaimRow,
    Complete,
    Grant,
    Refusal,
    Release,
    Retry,
    Room,
    Settlement,
    Task,
)

# Simulated time begins after everything that the server does by its own clock, such as its start.
T0 = datetime(2040, 1, 1, 12, tzinfo=UTC)
BYTES_PER_TOKEN = 4

_CLAIM: LiteralString = """
    select model, (task).task_id, (task).fence, (task).attempt_no, (task).max_attempts, (task).restarts,
           null as prompt, null as params, (task).tokens, (task).input_charge, (task).is_hot, reason, retry_in_s,
           waited_s, null as clock_s, timeout_s, guard_s, dispatch, max_batch, char_class_ratio,
           claim_state::text as claim_state,
           (claim_state ->> 'epoch')::integer as epoch
      from llmqueue.claim(%s, %s::text[], %s, %s::text[], %s, %s, %s::jsonb)"""


class SqlScheduler:
    """Calls the functions on one autocommit connection; `at_s` is seconds of simulated time."""

    def __init__(
        self,
        conn: psycopg.Connection[TupleRow],
        *,
        guard_s: float,
        lease_s: float,
        input_tokens: int = INPUT_TOKENS,
    ) -> None:
        self._conn = conn
        self._guard_s = guard_s
        self._lease_s = lease_s
        self._prompt_tokens = input_tokens
        self._wakes: set[str] = set()
        conn.add_notify_handler(lambda notify: self._wakes.add(notify.payload))
        conn.execute("listen llmqueue")

    def register(self, worker: UUID, at_s: float) -> None:
        self._set_clock(at_s)
        args = (worker, "simulated", self._lease_s, self._guard_s)
        self._conn.execute("select llmqueue.register(%s, %s, '0', null, %s, %s)", args)

    def claim(
        self,
        worker: UUID,
        models: Sequence[str] | None,
        room: Room,
        maintenance: Sequence[str],
        running: int,
        claim_state: str | None,
        at_s: float,
    ) -> Claim:
        args = (worker, models, room.for_any, list(maintenance), running, room.for_hot, claim_state)
        self._set_clock(at_s)
        with self._conn.cursor(row_factory=class_row(ClaimRow)) as cursor:
            rows = cursor.execute(_CLAIM, args).fetchall()
        refusals = tuple(Refusal(row.model, row.reason, row.retry_in_s) for row in rows if row.task_id is None)
        claim_state = next((row.claim_state for row in rows if row.claim_state is not None), None)
        return Claim(tuple(_grant(row, at_s) for row in rows if row.task_id is not None), refusals, None, claim_state)

    def maintain(self, worker: UUID, maintenance: Sequence[str], running: int, at_s: float) -> None:
        self._set_clock(at_s)
        self._conn.execute("select llmqueue.maintain(%s, %s::text[], %s)", (worker, list(maintenance), running))

    def settle(self, worker: UUID, settlements: Sequence[Settlement], at_s: float) -> Mapping[int, str]:
        items = Jsonb([_item(settlement) for settlement in settlements])
        self._set_clock(at_s)
        rows = self._conn.execute("select fence, outcome from llmqueue.settle(%s, %s)", (worker, items)).fetchall()
        return dict(rows)

    def insert(self, lane: str, tasks: int, priority: int, at_s: float = 0.0) -> int:
        """Inserts tasks into a lane ('': the default pool); returns the key of the last, the others are before it."""
        row = self._conn.execute(
            """
            with inserted as (
                insert into tasks (prompt, model, priority, created_at)
                select %s, nullif(%s, ''), %s, %s from generate_series(1, %s)
                returning id)
            select max(id) from inserted
            """,
            ("x" * BYTES_PER_TOKEN * self._prompt_tokens, lane, priority, _time(at_s), tasks),
        ).fetchone()
        assert row is not None  # noqa: S101 - an aggregate has a row
        return int(row[0])

    def insert_hot(self, at_s: float) -> int:
        return self.insert("", 1, HOT, at_s)

    def _set_clock(self, at_s: float) -> None:
        self._conn.execute(simulated_clock.SET, (_time(at_s),))

    def wakes(self) -> set[str]:
        wakes, self._wakes = self._wakes, set()
        return wakes


def _time(at_s: float) -> datetime:
    return T0 + timedelta(seconds=at_s)


def _grant(row: ClaimRow, at_s: float) -> Grant:
    key = int(str(row.task_id))
    task = Task(key, row.fence, row.attempt_no, row.max_attempts, row.restarts, None, None, is_hot=bool(row.is_hot))
    return Grant(row.model, task, at_s, at_s + SEND_PART * row.guard_s, row.timeout_s)


def _item(settlement: Settlement) -> dict[str, object]:
    task = settlement.grant.task
    return {
        "fence": task.fence,
        "task_id": str(task.id),
        "sent_after_s": settlement.sent_after_s,
        "latency_s": settlement.latency_s,
        "is_unsent": settlement.sent_after_s is None,
        **_decision(settlement),
    }


def _decision(settlement: Settlement) -> dict[str, object]:
    match settlement.decision:
        case Complete(answer, usage):
            tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
            return {"verb": "complete", "answer": answer, **tokens}
        case Retry(error_class, error, delay_s, counts, refusal, pause_s):
            closing = {} if refusal is None else {"refusal": refusal, "pause_s": pause_s}
            cause = {"error_class": error_class, "error": error}
            return {"verb": "retry", "delay_s": delay_s, "counts": counts, **cause, **closing}
        case Bury(error_class, error):
            return {"verb": "bury", "error_class": error_class, "error": error, "answer": None}
        case Release(error_class):
            return {"verb": "release", "error_class": error_class}
