"""Builds the indexes CONCURRENTLY and says how far it is; what an interrupted build left behind is built anew.

An index of another definition is replaced: the new one is built beside it under another name, and takes its place.
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
from llmqueue.install import seam
from llmqueue.install.locks import Report, run_statement
from llmqueue.install.migrate import Applied, digest, record_index
from llmqueue.install.steps import Step
from llmqueue.install.table import Connection, Index

# (what is being done, how far from 0 to 1: None when that is not known)
Progress = Callable[[str, float | None], None]

_LOOK_EVERY_S: Final = 0.5
_LINE_EVERY_S: Final = 10.0
# of the attempt log: the index of the open attempts, and the one that it replaces
OWN: Final = ("attempt_running", "attempt_open")
_INTERRUPTED: Final = "left invalid by an interrupted build"

_PROGRESS: Final = """
    select phase, blocks_done::float8 / nullif(blocks_total, 0), lockers_total - lockers_done, current_locker_pid
    from pg_stat_progress_create_index where pid = %s
"""


@dataclass(frozen=True, slots=True)
class IndexSteps:
    """What is left to do about the indexes: building, and putting what was built in the place of an older one."""

    builds: list[Step]
    swaps: list[Step]


def index_steps(mapping: Mapping, there: dict[str, Index], applied: dict[str, Applied]) -> IndexSteps:
    """Return the steps that make the indexes what they should be; none for one that is.

    `there` has the indexes of our names on the user's table. A valid one of another definition serves until its
    replacement is built: claims never run without an index.
    """
    drops: list[Step] = []
    records: list[str] = []
    builds: list[Step] = []
    swaps: list[Step] = []

    def build_as(name: str, title: str) -> None:
        if not _is_known(mapping, name, applied):
            records.append(record_index(name, seam.index(mapping, name)))
        builds.append(Step(f"index {name}", title, (seam.index(mapping, name),), is_transaction=False))

    for name in seam.INDEXES:
        index, new = there.get(name), there.get(seam.replacement(name))
        is_right = index is not None and index.is_valid and _is_known(mapping, name, applied)
        is_new_right = new is not None and new.is_valid and _is_known(mapping, new.name, applied)
        if new is not None and (is_right or not is_new_right):
            drops.append(
                _drop_step(mapping.table_schema, new, "it is of no use any more" if new.is_valid else _INTERRUPTED)
            )
        if is_right:
            continue
        if is_new_right:
            swaps.append(_swap(mapping, name))
        elif index is not None and index.is_valid:
            build_as(seam.replacement(name), f"build the index that will replace {name}, beside the writers")
            swaps.append(_swap(mapping, name))
        else:
            if index is not None:
                drops.append(_drop_step(mapping.table_schema, index, _INTERRUPTED))
            build_as(name, f"build the index {name}, beside the writers")
    # Remembered before they are built: a valid index of ours is then known to be made from this.
    remember = [Step("indexes", "remember what the indexes are made from", tuple(records))] if records else []
    return IndexSteps([*drops, *remember, *builds], swaps)


def own_index_steps(there: dict[str, Index]) -> IndexSteps:
    """Return the steps that replace the index of the open attempts; `there` has the indexes OWN of our schema.

    A fresh schema has it from its migration. The log of one in use is large: built in the migration it would hold the
    workers up, and built after it claims would read the whole log meanwhile.
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
        title = f"build the index {OWN[0]} of the attempt log, beside the workers"
        steps.append(Step(f"index {OWN[0]}", title, (create,), is_transaction=False))
    if old is not None:
        drops.append(_drop_step("llmqueue", old, f"which {OWN[0]} replaces"))
    return IndexSteps(steps, drops)


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


def _is_known(mapping: Mapping, name: str, applied: dict[str, Applied]) -> bool:
    known = applied.get(f"index {name}")
    return known is not None and known.source_hash == digest([seam.index(mapping, name)])


def _drop_step(schema: str, index: Index, why: str) -> Step:
    drop = sql.SQL("drop index concurrently if exists {}").format(sql.Identifier(schema, index.name))
    return Step(f"drop {index.name}", f"drop the index {index.name}, {why}", (seam.text(drop),), is_transaction=False)


def _swap(mapping: Mapping, name: str) -> Step:
    """One short transaction: whoever looks sees the old index or the new one."""
    new = seam.replacement(name)
    drop = sql.SQL("drop index if exists {}").format(sql.Identifier(mapping.table_schema, name))
    rename = sql.SQL("alter index {} rename to {}").format(
        sql.Identifier(mapping.table_schema, new), sql.Identifier(name)
    )
    forget = sql.SQL("delete from llmqueue.applied where part = {}").format(sql.Literal(f"index {new}"))
    statements = (seam.text(drop), seam.text(rename), record_index(name, seam.index(mapping, name)), seam.text(forget))
    return Step(f"swap {name}", f"put the new {name} in the place of the old one", statements)
