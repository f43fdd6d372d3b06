"""Calls of the SQL functions as a worker makes them, with a clock that the test controls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb

from llmqueue.forecast import simulated_clock
from tests.support.server import Server

# Later than the server's start and every row's default now(), so a sweep is possible and every task is due.
T0 = datetime(2040, 1, 1, 12, tzinfo=UTC)

CLAIM = """
    select model, (task).task_id, (task).fence, (task).attempt_no, (task).max_attempts, (task).restarts, (task).prompt,
           (task).params, reason, retry_in_s, waited_s, clock_at, timeout_s, guard_s,
           (task).tokens, (task).is_hot, (task).lane, claim_state
      from llmqueue.claim(%(worker)s, %(models)s::text[], %(slots)s, %(maintenance)s::text[], 0,
                           %(hot_slots)s, %(claim_state)s::jsonb)"""

HAS_SIMULATED_CLOCK = """
    select prosrc like '%simulated_now%' from pg_proc
     where pronamespace = 'llmqueue_internal'::regnamespace and proname = 'clock'"""

_NUMBER = count(1)


@dataclass(frozen=True)
class Grant:
    """A claimed task and its worker."""

    worker: UUID
    model: str
    id: Any
    fence: int
    attempt_no: int
    max_attempts: int
    restarts: int
    prompt: str
    params: str | None
    guard_s: float
    timeout_s: float
    tokens: int | None = None
    is_hot: bool = False
    lane: str = ""


@dataclass(frozen=True)
class Claimed:
    grants: list[Grant]
    reasons: dict[str, str | None]
    retry_in_s: dict[str, float | None]

    @property
    def ids(self) -> list[Any]:
        return [grant.id for grant in self.grants]

    @property
    def only(self) -> Grant:
        (grant,) = self.grants
        return grant


class Queue:
    """One connection, one registered worker, and a clock that the test moves (now=None: the real clock)."""

    def __init__(self, conn: psycopg.Connection[Any], now: datetime | None = T0) -> None:
        conn.row_factory = dict_row
        self.conn = cast(psycopg.Connection[DictRow], conn)
        self._now = now
        self._set_clock()
        self.worker = self.register()
        self.claim_state: dict[UUID, Any] = {}

    @property
    def now(self) -> datetime | None:
        """The time of the database's clock in this session; None: the real time."""
        return self._now

    @now.setter
    def now(self, now: datetime | None) -> None:
        self._now = now
        self._set_clock()

    def _set_clock(self) -> None:
        if self._now is not None and not self.value(HAS_SIMULATED_CLOCK):
            self.conn.execute(simulated_clock.INSTALL)
        self.conn.execute(simulated_clock.SET, (self._now,))

    # --- plain SQL ----------------------------------------------------------------------------------------------

    def rows(self, query: str, *args: object) -> list[DictRow]:
        cursor = self.conn.execute(query.encode(), args or None)
        return cursor.fetchall() if cursor.description else []

    def values(self, query: str, *args: object) -> list[Any]:
        return [next(iter(row.values())) for row in self.rows(query, *args)]

    def value(self, query: str, *args: object) -> Any:
        (found,) = self.values(query, *args)
        return found

    def task(self, key: object) -> DictRow:
        (found,) = self.rows("select * from llmqueue.task where id = %s", key)
        return found

    def attempt(self, grant: Grant) -> DictRow:
        (found,) = self.rows("select * from llmqueue.attempt where fence = %s", grant.fence)
        return found

    def quarantined(self) -> dict[Any, str]:
        """Returns the quarantined tasks and the step in which each failed."""
        return {row["task_id"]: row["step"] for row in self.rows("select task_id, step from llmqueue.quarantine")}

    def count(self, table: str) -> int:
        return int(self.value(f"select count(*) from {table}"))

    # --- actions of owners and operators ------------------------------------------------------------------------

    def model(self, name: str, rpm: int = 600, **columns: object) -> None:
        """Creates or changes the model."""
        given: dict[str, object] = {"model": name, "rpm": rpm, **columns}
        names = sql.SQL(", ").join(map(sql.Identifier, given))
        values = sql.SQL(", ").join(map(sql.Placeholder, given))
        update = sql.SQL(
            "insert into llmqueue.model_config ({}) values ({}) on conflict (model) do update set ({}) = row({})"
        )
        same = sql.SQL(", ").join(sql.SQL("excluded.{}").format(sql.Identifier(name)) for name in given)
        self.conn.execute(update.format(names, values, names, same), given)

    def add(self, how_many: int = 1, **columns: object) -> list[Any]:
        """Inserts tasks by plain SQL; returns their keys."""
        given: dict[str, object] = {"prompt": "why?", **columns}
        query = sql.SQL("insert into tasks ({}) select {} from generate_series(1, %(how_many)s) returning id").format(
            sql.SQL(", ").join(map(sql.Identifier, given)), sql.SQL(", ").join(map(sql.Placeholder, given))
        )
        return [row["id"] for row in self.conn.execute(query, {**given, "how_many": how_many}).fetchall()]

    def restart(self, *keys: object) -> list[Any]:
        return self.values("select llmqueue.restart(%s::llmqueue.task_id[])", list(keys))

    def cancel(self, *keys: object) -> list[Any]:
        return self.values("select llmqueue.cancel(%s::llmqueue.task_id[])", list(keys))

    def owners_trigger(self, body: str, when: str = "before update", name: str = "theirs") -> None:
        """Creates an owner's row trigger on the tasks table; `body` is plpgsql without the closing return."""
        self.rows(f"create function {name}() returns trigger language plpgsql as $f$ begin {body}; return new; end $f$")
        self.rows(f"create trigger {name} {when} on tasks for each row execute function {name}()")

    # --- actions of workers -------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        assert self.now is not None
        self.now += timedelta(seconds=seconds)

    def register(self, lease_s: float = 20.0, guard_s: float = 0.5, worker: UUID | None = None) -> UUID:
        worker = worker or uuid4()
        args = (worker, f"worker {next(_NUMBER)}", lease_s, guard_s)
        self.rows("select llmqueue.register(%s, %s, '0', null, %s, %s)", *args)
        return worker

    def beat(self, worker: UUID | None = None) -> None:
        self.rows("select llmqueue.heartbeat(%s, 0)", worker or self.worker)

    def claim(
        self,
        slots: int = 10,
        models: Sequence[str] | None = None,
        *,
        worker: UUID | None = None,
        maintenance: Sequence[str] = (),
        hot_slots: int = 0,
    ) -> Claimed:
        worker = worker or self.worker
        args = {
            "worker": worker,
            "models": models,
            "slots": slots,
            "maintenance": list(maintenance),
            "hot_slots": hot_slots,
            "claim_state": Jsonb(self.claim_state.get(worker)),
        }
        found = self.conn.execute(CLAIM, args).fetchall()
        self.claim_state[worker] = next((row["claim_state"] for row in found if row["claim_state"] is not None), None)
        refusals = [row for row in found if row["task_id"] is None]
        names = tuple(field.name for field in fields(Grant) if field.name not in {"worker", "id"})
        return Claimed(
            [
                Grant(worker=worker, id=row["task_id"], **{name: row[name] for name in names})
                for row in found
                if row["task_id"] is not None
            ],
            {row["model"]: row["reason"] for row in refusals},
            {row["model"]: row["retry_in_s"] for row in refusals},
        )

    def settle(self, *items: Mapping[str, object], worker: UUID | None = None) -> list[str]:
        """Settles; returns the outcomes in the order of the items."""
        found = self.rows(
            "select * from llmqueue.settle(%s, %s)",
            worker or self.worker,
            Jsonb([dict(item) for item in items]),
        )
        outcomes = {row["fence"]: row["outcome"] for row in found}
        return [outcomes[item["fence"]] for item in items]

    def complete(self, grant: Grant, answer: str = "because") -> str:
        (outcome,) = self.settle(complete(grant, answer), worker=grant.worker)
        return outcome

    def retry(self, grant: Grant, **fields: object) -> str:
        (outcome,) = self.settle(retry(grant, **fields), worker=grant.worker)
        return outcome

    def bury(self, grant: Grant) -> str:
        item = _item("bury", grant, error_class="rejected", error="400", sent_after_s=0.01, latency_s=1.5, answer=None)
        (outcome,) = self.settle(item, worker=grant.worker)
        return outcome

    def release(self, grant: Grant) -> str:
        (outcome,) = self.settle(release(grant), worker=grant.worker)
        return outcome

    def sweep(self, worker: UUID | None = None) -> int:
        return int(self.value("select llmqueue_internal.sweep(%s, 500)", worker or self.worker))

    def promote(self, limit: int = 500) -> int:
        return int(self.value("select llmqueue_internal.promote(%s)", limit))

    def lose(self, *grants: Grant) -> None:
        """Lets the lease of every worker except a new one expire, and lets that one sweep; time advances 50 s."""
        sweeper = self.register()
        for _ in range(5):
            self.advance(10)
            self.beat(sweeper)
        assert self.sweep(sweeper) == len(grants)
        for grant in grants:
            assert self.attempt(grant)["outcome"] == "lost"
        self.worker = self.register()


def _item(verb: str, grant: Grant, **fields: object) -> dict[str, object]:
    return {"verb": verb, "fence": grant.fence, "task_id": str(grant.id), **fields}


def complete(grant: Grant, answer: str = "because") -> dict[str, object]:
    return _item("complete", grant, answer=answer, sent_after_s=0.01, latency_s=1.5, input_tokens=3, output_tokens=5)


def retry(grant: Grant, **fields: object) -> dict[str, object]:
    given = {
        "delay_s": 5,
        "counts": True,
        "error_class": "timeout",
        "error": "no reply",
        "sent_after_s": 0.01,
        "latency_s": 1.5,
    }
    return _item("retry", grant, **{**given, **fields})


def release(grant: Grant) -> dict[str, object]:
    return _item("release", grant, error_class="late_grant")


@contextmanager
def clock_at(conn: psycopg.Connection[Any], now: object) -> Iterator[None]:
    """Sets the database's clock in this session to `now` for the duration of the context."""
    conn.execute(simulated_clock.INSTALL)
    conn.execute(simulated_clock.SET, (now,))
    try:
        yield
    finally:
        conn.execute(simulated_clock.SET, (None,))


@contextmanager
def cloned(server: Server, template_name: str, prefix: str = "clone") -> Iterator[str]:
    """Yields the DSN of a copy of the template database, which is dropped afterwards."""
    name = f"{prefix}_{next(_NUMBER)}"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(
            sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template_name))
        )
        try:
            yield server.dsn(name)
        finally:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


@contextmanager
def rolled_back(dsn: str) -> Iterator[Queue]:
    """Yields a queue in a transaction that is rolled back, so that the database stays unchanged."""
    with psycopg.connect(dsn) as conn:
        try:
            yield Queue(conn)
        finally:
            conn.rollback()
