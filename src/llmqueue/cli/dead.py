"""`llmqueue dead`: dead letters, that is tasks that failed, and the quarantined, whose row cannot be written."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from llmqueue.cli.database import open_database
from llmqueue.cli.keys import BATCH, Outcome, apply, check_keys
from llmqueue.cli.output import Column, clean, write_json
from llmqueue.cli.output import show as show_rows
from llmqueue.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg
    from psycopg.rows import TupleRow

dead = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="List, retry or purge dead letters."
)

# With so many rows that cannot be written, a run over all of them ends.
MOST_FAILURES = 1000

LIST = """
    select task_id::text, model, attempts, error_class, error, failed_at
      from llmqueue.dead_letters order by failed_at desc nulls last limit %s
"""
# One step of a run over all: the oldest first, past those that could not be written. Two branches, so that each is a
# range of its own index.
NEXT = """
    (select t.id::llmqueue.task_id::text from llmqueue.task t
      where t.is_failed and t.finished_at <= %(before)s and not t.id = any (%(skip)s::text[]::llmqueue.task_id[])
      order by t.finished_at limit %(limit)s)
    union
    (select s.task_id::text from llmqueue.quarantine s
      where s.quarantined_at <= %(before)s and not s.task_id = any (%(skip)s::text[]::llmqueue.task_id[])
      order by s.quarantined_at limit %(limit)s)
"""
ONLY_DEAD = """
    select k.id::text from unnest(%s::text[]::llmqueue.task_id[]) k(id)
     where exists (select from llmqueue.task t where t.id = k.id and t.is_failed)
        or exists (select from llmqueue.quarantine s where s.task_id = k.id)
"""
PURGE = """
    with gone as (delete from llmqueue.task t where t.id = any (%s::text[]::llmqueue.task_id[]) returning t.id)
    select id::text from gone
"""
FORGET = "delete from llmqueue.quarantine s where s.task_id = any (%s::text[]::llmqueue.task_id[])"

AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Keys of tasks.")]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A row of llmqueue.dead_letters."""

    task_id: str
    model: str | None
    attempts: int | None
    error_class: str | None
    error: str | None
    failed_at: datetime | None


COLUMNS = (
    Column("task_id", "task"),
    Column("model", "model"),
    Column("attempts", "attempts", is_right=True),
    Column("error_class", "class"),
    Column("error", "error", lambda text: "-" if text is None else str(text)[:200]),
    Column("failed_at", "failed"),
)


@dead.command("list")
def list_dead(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List dead letters, the newest first."""
    from psycopg.rows import class_row

    with open_database("dead list") as conn, conn.cursor(row_factory=class_row(DeadLetter)) as cursor:
        rows = cursor.execute(LIST, [limit]).fetchall()
    show_rows(rows, COLUMNS, as_json=as_json, none="no dead letters")


@dead.command()
def retry(
    ids: Ids = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run dead letters again, attempts counted anew."""
    if bool(ids) == everything:
        raise UsageError("name the dead letters by ID, or say --all")
    with open_database("dead retry") as conn:

        def restart(keys: Sequence[str]) -> list[str]:
            # One that was quarantined while it was ready is not restarted: it runs since the note is gone.
            conn.execute("select from llmqueue.restart(%s::text[]::llmqueue.task_id[])", [list(keys)])
            return list(keys)

        outcome, missing = _over(conn, ids, None, restart)
    _report(outcome, missing, "retried", as_json=as_json)


@dead.command()
def purge(
    ids: Ids = None,
    older_than: Annotated[
        str | None, typer.Option(metavar="DURATION", help="All that failed longer ago than 30d, 12h, 90m …")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters from your table; the attempt log keeps what was tried."""
    age = _age(older_than)
    if bool(ids) == (age is not None):
        raise UsageError("name the dead letters by ID, or say --older-than DURATION")
    what = f"{len(ids):,} dead letters" if ids else f"all dead letters older than {older_than}"
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("dead purge deletes rows of your table: say --yes")
        if not typer.confirm(f"Delete {what} from your table?"):
            raise typer.Exit(1)
    with open_database("dead purge") as conn:

        def delete(keys: Sequence[str]) -> list[str]:
            conn.execute(FORGET, [list(keys)])
            conn.execute(PURGE, [list(keys)])
            return list(keys)

        outcome, missing = _over(conn, ids, age, delete)
    _report(outcome, missing, "purged", as_json=as_json)


def _age(older_than: str | None) -> timedelta | None:
    from llmqueue.settings import parse_duration

    try:
        age = None if older_than is None else parse_duration(older_than)
    except ValueError:
        raise UsageError(f"--older-than must be a duration such as 90m, 12h or 30d (got '{older_than}')") from None
    return age if isinstance(age, timedelta) else None


def _over(
    conn: psycopg.Connection[TupleRow],
    ids: Sequence[str] | None,
    age: timedelta | None,
    statement: Callable[[Sequence[str]], list[str]],
) -> tuple[Outcome, list[str]]:
    """Applies a statement to the named dead letters, or to all older than `age`; also returns keys that are none."""
    if ids:
        keys = check_keys(conn, ids)
        found = {str(key) for (key,) in conn.execute(ONLY_DEAD, [keys])}
        return apply(conn, [k for k in keys if k in found], statement), [k for k in keys if k not in found]
    total = Outcome()
    before = conn.execute("select clock_timestamp() - %s", [age or timedelta(0)]).fetchone()
    while len(total.failed) < MOST_FAILURES:
        rows = conn.execute(NEXT, {"before": before[0] if before else None, "skip": list(total.failed), "limit": BATCH})
        keys = [str(key) for (key,) in rows]
        if not keys:
            break
        part = apply(conn, keys, statement)
        total.applied += part.applied
        total.failed |= part.failed
    return total, []


def _report(outcome: Outcome, missing: Sequence[str], verb: str, *, as_json: bool) -> None:
    left = dict.fromkeys(missing, "no dead letter") | outcome.failed
    if as_json:
        write_json({verb: outcome.applied, "left": left})
    else:
        count = len(outcome.applied)
        typer.echo(f"{verb} {count:,} dead letter{'' if count == 1 else 's'}")
        for key, reason in left.items():
            typer.echo(clean(f"not {verb}: {key}: {reason}"), err=True)
    raise typer.Exit(1 if left else 0)
