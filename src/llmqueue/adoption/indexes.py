"""Builds the indexes CONCURRENTLY and says how far it is; what an interrupted build left behind is built anew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import sql

from llmqueue.adoption import seam
from llmqueue.adoption.locks import Report, run_statement
from llmqueue.adoption.steps import Step
from llmqueue.adoption.table import Connection, Index
from llmqueue.mapping import Mapping
from llmqueue.migrate import Applied, digest, record_index

# (what is being done, how far from 0 to 1: None when that is not known)
Progress = Callable[[str, float | None], None]

_LOOK_EVERY_S: Final = 0.5
_LINE_EVERY_S: Final = 10.0

_PROGRESS: Final = """
    select phase, blocks_done::float8 / nullif(blocks_total, 0), lockers_total - lockers_done, current_locker_pid
    from pg_stat_progress_create_index where pid = %s
"""


def index_steps(mapping: Mapping, there: dict[str, Index], applied: dict[str, Applied]) -> list[Step]:
    """Return the steps that make the indexes what they should be; none for one that is.

    `there` has the indexes of our names on the user's table.
    """
    drops: list[Step] = []
    records: list[str] = []
    builds: list[Step] = []
    for name in seam.INDEXES:
        create = seam.index(mapping, name)
        known = applied.get(f"index {name}")
        is_known = known is not None and known.source_hash == digest([create])
        index = there.get(name)
        if index is not None and not (is_known and index.is_valid):
            why = "made from another definition" if index.is_valid else "left invalid by an interrupted build"
            drops.append(
                Step(f"drop {name}", f"drop the index {name}, {why}", (_drop(mapping, name),), is_transaction=False)
            )
            index = None
        if not is_known:
            records.append(record_index(name, create))
        if index is None:
            title = f"build the index {name}, beside the writers"
            builds.append(Step(f"index {name}", title, (create,), is_transaction=False))
    if not records:
        return drops + builds
    # Remembered before they are built: a valid index of ours is then known to be made from this.
    return [*drops, Step("indexes", "remember what the indexes are made from", tuple(records)), *builds]


def build(conn: Connection, step: Step, *, report: Report, progress: Progress | None) -> None:
    """Run an index step's statements, each by itself, and tell how the build goes."""
    # Not lock_timeout: CONCURRENTLY waits for the transactions before it, and nobody waits for CONCURRENTLY.
    with _watched(conn, step.title, report, progress):
        for statement in step.statements:
            run_statement(conn, step, statement)


@contextmanager
def _watched(conn: Connection, title: str, report: Report, progress: Progress | None) -> Iterator[None]:
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch,
        args=(conn.info.dsn, conn.info.password, conn.info.backend_pid, title, report, progress, done),
        daemon=True,
    )
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join(timeout=5)
        if progress is not None:
            progress("", None)


def _watch(
    dsn: str,
    password: str,
    pid: int,
    title: str,
    report: Report,
    progress: Progress | None,
    done: threading.Event,
) -> None:
    """Look at the build from a second connection until it is done; a build goes on as well unwatched."""
    if done.wait(_LOOK_EVERY_S):
        return
    waited_s = 0.0
    try:
        with psycopg.connect(dsn, password=password or None, autocommit=True) as conn:
            while not done.wait(_LOOK_EVERY_S):
                waited_s += _LOOK_EVERY_S
                row = conn.execute(_PROGRESS, (pid,)).fetchone()
                if row is None:
                    continue
                line, fraction = _describe(row)
                if progress is not None:
                    progress(f"{title}: {line}", fraction)
                elif waited_s >= _LINE_EVERY_S:
                    report(f"{title}: {line}" + (f", {fraction:.0%}" if fraction is not None else ""))
                    waited_s = 0.0
    except psycopg.Error:
        return


def _describe(row: tuple[object, ...]) -> tuple[str, float | None]:
    phase, fraction, lockers, locker = row
    if str(phase).startswith("waiting") and lockers:
        return f"{phase}: {lockers} transactions, now pid {locker}", None
    return str(phase), float(str(fraction)) if fraction is not None else None


def _drop(mapping: Mapping, name: str) -> str:
    return seam.text(sql.SQL("drop index concurrently if exists {}").format(sql.Identifier(mapping.table_schema, name)))
