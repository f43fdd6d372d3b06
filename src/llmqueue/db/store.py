"""The worker's access to the database: one method per SQL function of the API, with the name of that function.

Each statement has a deadline on this side too, because a half-open connection never raises by itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, LiteralString
from uuid import UUID

import anyio
import psycopg
from psycopg.rows import TupleRow, args_row, class_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from llmqueue.db import connect
from llmqueue.db.encoding import read_task, storable
from llmqueue.db.outage import Outage
from llmqueue.errors import (
    DatabaseRefused,
    DatabaseSilent,
    DatabaseUnreachable,
    LlmqueueError,
    NotInitialised,
    SchemaOutgrown,
    SchemaTooNew,
    SqlError,
)
from llmqueue.types import (
    SEND_PART,
    Bury,
    Claim,
    ClaimRow,
    Complete,
    Grant,
    Json,
    Refusal,
    Release,
    Retry,
    Room,
    Settlement,
    TaskId,
)

STATEMENT_TIMEOUT_S = 15.0
CONNECT_WAIT_S = 2.0
# Shorter than CONNECT_WAIT_S, so that the pool is not in a long pause of its own when the database is back.
RECONNECT_S = 1.5
# With the connections for claims and for LISTEN, a busy worker has four (design I20).
POOL_SIZE = 2

Pool = AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]

# columns in the order of ClaimRow
CLAIM = """
    select model, (task).task_id, (task).fence, (task).attempt_no, (task).max_attempts, (task).restarts, (task).prompt,
           (task).params, (task).tokens, (task).input_charge, (task).is_hot, reason, retry_in_s, waited_s,
           extract(epoch from clock_at)::float8 as clock_s, timeout_s, guard_s, dispatch, max_batch,
           char_class_ratio, claim_state::text as claim_state, (claim_state ->> 'epoch')::integer as epoch
      from llmqueue.claim(%(worker)s, %(models)s, %(slots)s, %(maintenance)s, %(running)s, %(hot_slots)s,
                          %(claim_state)s::jsonb)"""


@dataclass(frozen=True, slots=True)
class Stranded:
    """Tasks that keep a drain from being complete. All fields but `is_done` are None if there are none."""

    is_done: bool
    lane: str | None
    reason: str | None
    tasks: int | None
    examples: list[str] | None


class Store:
    """Calls the SQL functions for one worker.

    Raises DatabaseUnreachable if the database cannot be reached or does not answer in time; the call may have taken
    effect or not. Raises SqlError for errors of our own SQL. `outgrown` is set once a statement has failed because a
    newer llmqueue has upgraded the schema.
    """

    def __init__(self, dsn: str, worker: UUID, *, prompt_is_json: bool, answer_is_json: bool, is_pooled: bool) -> None:
        self.worker = worker
        self.outage = Outage()
        self.outgrown = anyio.Event()
        self._dsn = dsn
        self._prompt_is_json = prompt_is_json
        self._answer_is_json = answer_is_json
        # A transaction pooler knows neither session options nor, before 1.21, prepared statements (design I20).
        kwargs: dict[str, Any] = {"autocommit": True}
        self._conninfo = connect.with_keepalives(dsn, "llmqueue worker")
        if is_pooled:
            kwargs["prepare_threshold"] = None
        else:
            self._conninfo = connect.with_session(self._conninfo)
        # Claims have a connection of their own: the first claim of a session compiles and plans for up to 100 ms, and
        # a pool would lose that time of its grants once per connection.
        self._claiming = self._make_pool(kwargs, min_size=1, max_size=1)
        # All other calls share one connection and leave the second to the heartbeat. If hanging statements held both,
        # the fleet would count the worker as dead before they time out.
        self._pool = self._make_pool(kwargs, min_size=0, max_size=POOL_SIZE)
        self._turn = anyio.Semaphore(POOL_SIZE - 1)

    def _make_pool(self, kwargs: dict[str, Any], *, min_size: int, max_size: int) -> Pool:
        return AsyncConnectionPool(
            self._conninfo,
            min_size=min_size,
            max_size=max_size,
            open=False,
            kwargs=kwargs,
            timeout=CONNECT_WAIT_S,
            reconnect_timeout=RECONNECT_S,
            max_idle=10,
        )

    async def open(self) -> None:
        for pool in (self._claiming, self._pool):
            await pool.open(wait=False)

    async def aclose(self) -> None:
        for pool in (self._claiming, self._pool):
            await pool.close(timeout=2)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        async with self._turn, self._connection_of(self._pool) as connection:
            yield connection

    @asynccontextmanager
    async def _connection_of(
        self, pool: Pool, timeout_s: float = STATEMENT_TIMEOUT_S
    ) -> AsyncIterator[psycopg.AsyncConnection[TupleRow]]:
        try:
            async with pool.connection() as connection:
                try:
                    async with connect.deadline(connection, timeout_s):
                        yield connection
                except psycopg.errors.ReadOnlySqlTransaction:
                    await connection.close()  # it leads to a standby; the next connection may lead to the primary
                    raise
        except PoolTimeout as error:
            raise await self._why_unreachable() from error
        except psycopg.Error as error:
            if error.sqlstate is not None and _may_be_outgrown(error.sqlstate):
                raise await self._why_unfit(error, error.sqlstate) from error
            raise self._translate(error) from error
        except TimeoutError as error:
            for each in (self._claiming, self._pool):
                await each.drain()  # idle connections may be dead too: the next statement gets a new one
            message = f"the database has not answered for {timeout_s:.0f} s"
            raise DatabaseSilent(message) from error

    def _translate(self, error: psycopg.Error) -> LlmqueueError:
        """Returns an error that ends the worker, or one to retry: DatabaseUnreachable or SqlError (design I10)."""
        own = connect.classify(error, self._dsn)
        is_final = isinstance(own, DatabaseRefused | NotInitialised | SchemaTooNew)
        return (
            own if is_final or isinstance(own, DatabaseUnreachable | SqlError) else SqlError(str(own), error.sqlstate)
        )

    async def _why_unfit(self, error: psycopg.Error, sqlstate: str) -> LlmqueueError:
        """Returns SchemaOutgrown, or the error to retry: during an upgrade a function may be missing for a moment."""
        is_outgrown = await self._is_outgrown()
        if is_outgrown:
            self.outgrown.set()
            return SchemaOutgrown(f"a newer llmqueue has upgraded the schema: {error}", sqlstate)
        own = self._translate(error)
        return SqlError(str(own), sqlstate) if isinstance(own, NotInitialised) and is_outgrown is False else own

    async def _is_outgrown(self) -> bool | None:
        """Returns whether a newer llmqueue has upgraded the schema to a version that this program no longer fits.

        None if there is no schema, or if it cannot be read now.
        """
        try:
            with anyio.fail_after(CONNECT_WAIT_S):
                async with self._pool.connection() as connection:
                    has = await (
                        await connection.execute("select max(version) from llmqueue.schema_version")
                    ).fetchone()
                    if has is None or has[0] is None:
                        return None
                    if has[0] <= connect.newest_version():
                        return False
                    oldest = await (await connection.execute("select llmqueue.oldest_program()")).fetchone()
        except psycopg.errors.UndefinedFunction:
            return True
        except (psycopg.Error, TimeoutError):
            return None
        return oldest is None or oldest[0] > connect.newest_version()

    async def _why_unreachable(self) -> LlmqueueError:
        """Opens a connection to find the reason: the pool only reports that it has none."""
        try:
            with anyio.fail_after(CONNECT_WAIT_S):
                conninfo = connect.with_keepalives(self._dsn, "llmqueue worker")
                connection = await psycopg.AsyncConnection.connect(conninfo)
                await connection.close()
        except psycopg.Error as error:
            return self._translate(error)
        except TimeoutError:
            pass
        return DatabaseUnreachable(f"no connection to the database within {CONNECT_WAIT_S:.0f} s")

    async def _call(self, query: LiteralString, args: Mapping[str, object]) -> Json:
        """Returns the first column of the first row; None if there is no row."""
        async with self._connection() as connection:
            row = await (await connection.execute(query, args)).fetchone()
            return row[0] if row else None

    # --- the worker itself --------------------------------------------------------------------------------------

    async def register(
        self, name: str, version: str, models: Sequence[str] | None, lease_s: float, guard_s: float
    ) -> float:
        """Registers the worker. Returns the guard of the fleet in seconds."""
        query: LiteralString = """select llmqueue.register(
            %(worker)s, %(name)s, %(version)s, %(models)s, %(lease_s)s, %(guard_s)s)"""
        args = {"name": name, "version": version, "models": models, "lease_s": lease_s, "guard_s": guard_s}
        agreed: float = await self._call(query, {"worker": self.worker, **args})
        return agreed

    async def heartbeat(self, running: int, timeout_s: float = STATEMENT_TIMEOUT_S) -> None:
        """Renews the worker's heartbeat. Raises UnknownWorker if the worker was swept."""
        query: LiteralString = "select llmqueue.heartbeat(%(worker)s, %(running)s)"
        async with self._connection_of(self._pool, timeout_s) as connection:
            await connection.execute(query, {"worker": self.worker, "running": running})

    async def maintain(self, maintenance: Sequence[str], running: int) -> None:
        query: LiteralString = "select llmqueue.maintain(%(worker)s, %(maintenance)s, %(running)s)"
        async with self._connection_of(self._claiming) as connection:
            args = {"worker": self.worker, "maintenance": list(maintenance), "running": running}
            await connection.execute(query, args)

    async def clock_stepped(self) -> None:
        await self._call("select llmqueue.clock_stepped()", {})

    async def leave(self) -> None:
        await self._call("select llmqueue.leave(%(worker)s)", {"worker": self.worker})

    async def report_backend(self, trouble: str | None, for_s: float) -> None:
        """Reports what keeps this worker from calling the backend, and for how long; None: nothing does."""
        query: LiteralString = "select llmqueue.report_backend(%(worker)s, %(trouble)s, %(for_s)s)"
        await self._call(query, {"worker": self.worker, "trouble": trouble, "for_s": for_s})

    async def restore_attempts(self, fences: Sequence[int]) -> list[int]:
        """Returns attempts whose failures were the backend's. Returns the fences to ask for again."""
        query: LiteralString = "select llmqueue.restore_attempts(%(worker)s, %(fences)s::bigint[])"
        return list(await self._call(query, {"worker": self.worker, "fences": list(fences)}))

    async def release_unknown_claims(self, known: Sequence[int]) -> int:
        """Releases this worker's attempts except those with the known fences. Returns their number."""
        query: LiteralString = "select llmqueue.release_unknown_claims(%(worker)s, %(known)s::bigint[])"
        return int(await self._call(query, {"worker": self.worker, "known": list(known)}))

    async def prune_attempts(self, keep: timedelta, limit: int) -> int:
        query: LiteralString = "select llmqueue.prune_attempts(%(keep)s, %(limit)s)"
        return int(await self._call(query, {"keep": keep, "limit": limit}))

    async def drain_state(self, models: Sequence[str] | None, wait_s: float) -> list[Stranded]:
        async with self._connection() as connection, connection.cursor(row_factory=class_row(Stranded)) as cursor:
            await cursor.execute("select * from llmqueue.drain_state(%s, %s)", (models, wait_s))
            return await cursor.fetchall()

    # --- tasks --------------------------------------------------------------------------------------------------

    async def claim(
        self,
        models: Sequence[str] | None,
        room: Room,
        maintenance: Sequence[str],
        running: int,
        claim_state: str | None,
    ) -> Claim:
        """Returns granted tasks and a refusal per model; `models` None: all enabled models."""
        args = {"worker": self.worker, "models": models, "maintenance": list(maintenance), "running": running}
        args |= {"slots": room.for_any, "hot_slots": room.for_hot, "claim_state": claim_state}
        async with (
            self._connection_of(self._claiming) as connection,
            connection.cursor(row_factory=args_row(ClaimRow)) as cursor,
        ):
            started_at = time.monotonic()
            await cursor.execute(CLAIM, args)
            rows = await cursor.fetchall()
        return self._read_claim(rows, started_at, time.monotonic())

    def _read_claim(self, rows: list[ClaimRow], started_at: float, ended_at: float) -> Claim:
        grants = tuple(self._grant(row, row.task_id, started_at, ended_at) for row in rows if row.task_id is not None)
        refusals = tuple(Refusal(row.model, row.reason, row.retry_in_s) for row in rows if row.task_id is None)
        clocks = [row.clock_s for row in rows if row.clock_s is not None]
        offset_s = (max(clocks) - ended_at, min(clocks) - started_at) if clocks else None
        claim_state = next((row.claim_state for row in rows if row.claim_state is not None), None)
        epoch = next((row.epoch for row in rows if row.epoch is not None), None)
        return Claim(grants, refusals, offset_s, claim_state, epoch)

    def _grant(self, row: ClaimRow, task_id: TaskId, started_at: float, ended_at: float) -> Grant:
        # The grant was made no earlier than our start of the statement plus the time that the server waited for locks.
        # A part of the guard is the worker's, the rest covers the network (docs/decisions.md, 4).
        granted_at = started_at + min(max(row.waited_s, 0.0), ended_at - started_at)
        task = read_task(task_id, row, prompt_is_json=self._prompt_is_json)
        send_before = granted_at + SEND_PART * row.guard_s
        return Grant(
            row.model, task, granted_at, send_before, row.timeout_s, row.char_class_ratio, row.dispatch, row.max_batch
        )

    async def top_up(self, fence: int, input_charge: int) -> bool:
        """Raises the charge of an unsent attempt. Returns False if that does not fit now: then release the task."""
        query: LiteralString = "select llmqueue.top_up(%(worker)s, %(fence)s, %(input_charge)s)"
        return bool(await self._call(query, {"worker": self.worker, "fence": fence, "input_charge": input_charge}))

    async def settle(self, settlements: Sequence[Settlement], worker: UUID | None = None) -> dict[int, str]:
        """Writes ends of attempts of this worker, or of `worker`. Returns the outcome by fence (see settle.sql)."""
        # ASCII only: a character outside the database's encoding then fails its row and not the whole statement
        items = json.dumps([self._item(settlement) for settlement in settlements], allow_nan=False)
        async with self._connection() as connection, connection.cursor() as cursor:
            query: LiteralString = "select fence, outcome from llmqueue.settle(%s, %s::jsonb)"
            await cursor.execute(query, (worker or self.worker, items))
            return dict(await cursor.fetchall())

    def _item(self, settlement: Settlement) -> dict[str, Json]:
        task = settlement.grant.task
        item = self._decision(settlement)
        item |= {"fence": task.fence, "task_id": str(task.id), "model": settlement.grant.model}
        if settlement.sent_after_s is None:
            item["is_unsent"] = True
        else:
            item["sent_after_s"] = round(settlement.sent_after_s, 6)  # the resolution of the database's clock
        if settlement.latency_s is not None:
            item["latency_s"] = round(settlement.latency_s, 6)
        if settlement.char_class_estimate is not None:
            item["char_class_estimate"] = settlement.char_class_estimate
        return item

    def _decision(self, settlement: Settlement) -> dict[str, Json]:
        match settlement.decision:
            case Complete(answer, usage):
                is_text = isinstance(answer, str) and not self._answer_is_json
                text = answer if is_text else json.dumps(answer, ensure_ascii=False)
                tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
                return {"verb": "complete", "answer": text, **tokens}
            case Retry(error_class, error, delay_s, counts, refusal, pause_s, may_be_backends):
                cause = {"error_class": storable(error_class), "error": storable(error)}
                cooldown = {} if refusal is None else {"refusal": refusal, "pause_s": pause_s}
                blame = {"may_be_backends": True} if may_be_backends else {}
                return {"verb": "retry", "delay_s": delay_s, "counts": counts, **cause, **cooldown, **blame}
            case Bury(error_class, error, answer):
                cause = {"error_class": storable(error_class), "error": storable(error)}
                return {"verb": "bury", "answer": answer, **cause}
            case Release(error_class):
                return {"verb": "release", "error_class": storable(error_class)}


def _may_be_outgrown(sqlstate: str) -> bool:
    """Returns whether the SQLSTATE can mean that the schema changed: an undefined object, or a changed result type."""
    return sqlstate.startswith("42") or sqlstate in {"0A000", "3F000"}
