"""Builds the indexes CONCURRENTLY, reports progress, and repeats interrupted builds.

An index with another definition is replaced: the new one is built beside it under another name and then renamed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import psycopg
from psycopg import sql

from llmqueue.db.mapping import Mapping
from llmqueue.install import mapping_sql
from llmqueue.install.locks import Report, run_statement
from llmqueue.install.migrate import Applied, digest, record_index
from llmqueue.install.steps import Step
from llmqueue.install.table import Connection, Index

# (the current action, its progress from 0 to 1 or None if unknown)
Progress = Callable[[str, float | None], None]

_LOOK_EVERY_S: Final = 0.5
_LINE_EVERY_S: Final = 10.0
# Indexes of the attempt log: the one of the open attempts, and the one that it replaces.
OWN: Final = ("attempt_running", "attempt_open")
_INTERRUPTED: Final = "left invalid by an interrupted build"

_PROGRESS: Final = """
    select phase, blocks_done::float8 / nullif(blocks_total, 0), lockers_total - lockers_done, current_locker_pid
    from pg_stat_progress_create_index where pid = %s
"""


@dataclass(frozen=True, slots=True)
class IndexSteps:
    """The remaining index steps: builds, and swaps of a new index for an older one."""

    builds: list[Step]
    swaps: list[Step]


def index_steps(mapping: Mapping, there: dict[str, Index], applied: dict[str, Applied]) -> IndexSteps:
    """Return the steps that correct the indexes; no step for an index that is correct.

    `there` has the indexes with our names on the user's table. A valid index of another definition stays until its
    replacement is built, so that claims never run without an index.
    """
    drops: list[Step] = []
    records: list[str] = []
    builds: list[Step] = []
    swaps: list[Step] = []

    def build_as(name: str, title: str) -> None:
        if not _is_known(mapping, name, applied):
            records.append(record_index(name, mapping_sql.index(mapping, name)))
        builds.append(Step(f"index {name}", title, (mapping_sql.index(mapping, name),), is_transaction=False))

    for name in mapping_sql.INDEXES:
        index, new = there.get(name), there.get(mapping_sql.replacement(name))
        is_right = index is not None and index.is_valid and _is_known(mapping, name, applied)
        is_new_right = new is not None and new.is_valid and _is_known(mapping, new.name, applied)
        if new is not None and (is_right or not is_new_right):
            drops.append(_drop_step(mapping.table_schema, new, "no longer needed" if new.is_valid else _INTERRUPTED))
        if is_right:
            continue
        if is_new_right:
            swaps.append(_swap(mapping, name))
        elif index is not None and index.is_valid:
            title = f"build the index that will replace {name}, without blocking writers"
            build_as(mapping_sql.replacement(name), title)
            swaps.append(_swap(mapping, name))
        else:
            if index is not None:
                drops.append(_drop_step(mapping.table_schema, index, _INTERRUPTED))
            build_as(name, f"build the index {name}, without blocking writers")
    # Recorded before the builds, so that the definition of every valid index is known.
    remember = [Step("indexes", "record the definitions of the indexes", tuple(records))] if records else []
    return IndexSteps([*drops, *remember, *builds], swaps)


def own_index_steps(there: dict[str, Index]) -> IndexSteps:
    """Return the steps that replace the index of the open attempts; `there` has the indexes OWN of our schema.

    In a fresh schema the migration creates the index. In a schema in use the log is large: a build in the migration
    would block the workers, and until a build after it is finished, claims would read the whole log.
    """
    new, old = (there.get(name) for name in OWN)
    steps: list[Step] = []
    drops: list[Step] = []
    if new is None or not new.is_valid:
        if new is not None:
            steps.append(_drop_step("llmqueue", new, _INTERRUPTED))
        create = (
            f"create index concurrently if not exists {OWN[0]} on llmqueue.attempt (model, fence)"
            " include (is_hot, worker) where ended_at is null"
        )
        title = f"build the index {OWN[0]} of the attempt log, without blocking workers"
        steps.append(Step(f"index {OWN[0]}", title, (create,), is_transaction=False))
    if old is not None:
        drops.append(_drop_step("llmqueue", old, f"which {OWN[0]} replaces"))
    return IndexSteps(steps, drops)


def build(conn: Connection, step: Step, *, report: Report, progress: Progress | None) -> None:
    """Run an index step's statements, each by itself, and report the progress of the build."""
    # Without lock_timeout: CONCURRENTLY waits for earlier transactions, and nobody waits for it.
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
    """Report the build's progress over a second connection until it is done; on an error, stop reporting."""
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


def _is_known(mapping: Mapping, name: str, applied: dict[str, Applied]) -> bool:
    known = applied.get(f"index {name}")
    return known is not None and known.source_hash == digest([mapping_sql.index(mapping, name)])


def _drop_step(schema: str, index: Index, why: str) -> Step:
    drop = sql.SQL("drop index concurrently if exists {}").format(sql.Identifier(schema, index.name))
    return Step(
        f"drop {index.name}", f"drop the index {index.name}, {why}", (mapping_sql.text(drop),), is_transaction=False
    )


def _swap(mapping: Mapping, name: str) -> Step:
    """Return the step that swaps the indexes in one short transaction: others see the old index or the new one."""
    new = mapping_sql.replacement(name)
    drop = sql.SQL("drop index if exists {}").format(sql.Identifier(mapping.table_schema, name))
    rename = sql.SQL("alter index {} rename to {}").format(
        sql.Identifier(mapping.table_schema, new), sql.Identifier(name)
    )
    forget = sql.SQL("delete from llmqueue.applied where part = {}").format(sql.Literal(f"index {new}"))
    statements = (
        mapping_sql.text(drop),
        mapping_sql.text(rename),
        record_index(name, mapping_sql.index(mapping, name)),
        mapping_sql.text(forget),
    )
    return Step(f"swap {name}", f"replace the old {name} by the new one", statements)
