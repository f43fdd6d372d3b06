"""`llmqueue tasks`: one task and its attempts; retry and cancel."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmqueue.cli.database import open_database
from llmqueue.cli.keys import Outcome, apply, call, check_keys
from llmqueue.cli.output import clean, console, write_json, write_line
from llmqueue.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg
    from psycopg.rows import TupleRow

tasks = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Show, retry or cancel tasks."
)

SHOWN_CHARACTERS = 500
# Made by Postgres: it knows every type that the owner's columns may have, and times such as 'infinity'.
SHOW_TASK = """
    select to_jsonb(t) - array['prompt_text', 'lane', 'rank', 'due_at', 'is_ready', 'is_delayed', 'is_running',
                               'is_failed', 'is_ended'],
           (select jsonb_build_object('step', s.step, 'reason', s.reason, 'at', s.quarantined_at)
              from llmqueue.quarantine s where s.task_id = t.id)
      from llmqueue.task t where t.id = (%s::text)::llmqueue.task_id
"""
SHOW_ATTEMPTS = """
    select to_jsonb(a) - array['task_id', 'cell']
           || jsonb_build_object('worker_name', (select w.name from llmqueue.worker w where w.worker = a.worker),
                                 'sent_after_s', extract(epoch from a.sent_at - a.granted_at))
      from llmqueue.attempt a
     where a.task_id = (%s::text)::llmqueue.task_id order by a.fence limit 1000
"""
STATES = """
    select k.id::text,
           case when t.id is null then 'no such task'
                when t.is_running then 'it is running'
                when t.is_ended then 'it has ended'
                when t.is_delayed then 'it waits for its time'
                else 'it is ready to run' end
      from unnest(%s::text[]::llmqueue.task_id[]) k(id) left join llmqueue.task t on t.id = k.id
"""

Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Keys of tasks.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


@tasks.command()
def show(
    task: Annotated[str, typer.Argument(metavar="ID", help="Key of the task.")],
    full: Annotated[bool, typer.Option("--full", help="Show prompt and answer in full.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a task and every attempt at it."""
    with open_database("tasks show") as conn:
        (key,) = check_keys(conn, [task])
        row = conn.execute(SHOW_TASK, [key]).fetchone()
        if row is None:
            raise Failure(f"no task {key}")
        attempts = [attempt for (attempt,) in conn.execute(SHOW_ATTEMPTS, [key])]
    found, quarantine = row
    if as_json:
        write_json({"task": found, "quarantine": quarantine, "attempts": attempts})
        return
    from llmqueue.install.columns import VIEW_COLUMNS

    for name in VIEW_COLUMNS:
        if found[name] is not None:
            _line(name, found[name], full=full)
    if quarantine:
        _line("quarantined", f"{quarantine['reason']} ({quarantine['step']}, {quarantine['at']})", full=True)
    for attempt in attempts:
        _line(f"attempt {attempt['attempt_no']}", _summary(attempt), full=True)
        if attempt["answer"] is not None:
            _line("  its answer", attempt["answer"], full=full)


@tasks.command()
def retry(ids: Ids, as_json: AsJson = False) -> None:
    """Run ended tasks again, attempts counted anew."""
    with open_database("tasks retry") as conn:
        keys = check_keys(conn, ids)
        report(conn, keys, apply(conn, keys, call(conn, "restart")), "retried", as_json=as_json)


@tasks.command()
def cancel(ids: Ids, as_json: AsJson = False) -> None:
    """End tasks that have not ended; the answer of one that is running is kept in the attempt log."""
    with open_database("tasks cancel") as conn:
        keys = check_keys(conn, ids)
        report(conn, keys, apply(conn, keys, call(conn, "cancel")), "cancelled", as_json=as_json)


def report(
    conn: psycopg.Connection[TupleRow], keys: Sequence[str], outcome: Outcome, verb: str, *, as_json: bool
) -> None:
    """Says what was done and why the rest was not; exits with 1 if anything was not."""
    left = [key for key in keys if key not in set(outcome.applied)]
    reasons = dict(conn.execute(STATES, [left]).fetchall()) | outcome.failed if left else {}
    if as_json:
        write_json({verb: outcome.applied, "left": reasons})
    else:
        typer.echo(f"{verb} {len(outcome.applied):,} of {len(keys):,} tasks")
        for key, reason in reasons.items():
            typer.echo(clean(f"not {verb}: {key}: {reason}"), err=True)
    raise typer.Exit(1 if left else 0)


def _line(name: str, value: object, *, full: bool) -> None:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else str(value)
    if not full and len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]}… ({len(text):,} characters; --full shows all)"
    if console().is_terminal:
        typer.echo(f"{name:>14}  {clean(text)}")
    else:
        write_line(name, text)


def _summary(attempt: dict[str, Any]) -> str:
    """Its whole story in one line: outcome, model, worker, times, usage, what went wrong."""
    ended = attempt["outcome"] or "running"
    worker = attempt["worker_name"] or attempt["worker"]
    parts = [f"{ended} on {attempt['model']}", f"granted {attempt['granted_at']} to worker {worker}", _sent(attempt)]
    parts += [f"ended {attempt['ended_at']}"] if attempt["ended_at"] else []
    used = [attempt["input_tokens"], attempt["output_tokens"]]
    parts += [f"{used[0] or 0:,} input and {used[1] or 0:,} output tokens"] if used != [None, None] else []
    parts += [f"{attempt['latency_s']:.1f} s"] if isinstance(attempt["latency_s"], int | float) else []
    parts += [": ".join(str(attempt[name]) for name in ("error_class", "error") if attempt[name])]
    return ", ".join(filter(None, parts))


def _sent(attempt: dict[str, Any]) -> str:
    """A call is known to be sent once its end is written: a dead worker takes it along whether it was."""
    if attempt["sent_after_s"] is not None:
        return f"sent {attempt['sent_after_s'] * 1000:.0f} ms later"
    return {"released": "not sent", "lost": "perhaps sent"}.get(attempt["outcome"] or "", "")
