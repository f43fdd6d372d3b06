"""`llmqueue why`: what one task is waiting for, and until when."""

from __future__ import annotations

from typing import Annotated

import typer

from llmqueue.cli.database import open_database
from llmqueue.cli.keys import check_keys
from llmqueue.cli.output import clean, write_json
from llmqueue.errors import Failure

# Times come as text: Postgres knows some that Python does not, such as 'infinity'.
WHY = """
    select %(key)s::text as key, w.state, w.reason, to_jsonb(w.until_at) #>> '{}' as until_at, w.model, w.detail,
           to_jsonb(clock_timestamp()) #>> '{}' as now
      from llmqueue.why((%(key)s::text)::llmqueue.task_id) w
"""
JSON_FIELDS = ("state", "reason", "until_at", "model", "detail")


def why(
    task: Annotated[str, typer.Argument(metavar="ID", help="Key of the task.")],
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON: a row per model that could take it.")] = False,
) -> None:
    """Say what a task is waiting for, and until when; exits with 1 if there is no such task."""
    from psycopg.rows import class_row

    from llmqueue.cli.model_reasons import sentences
    from llmqueue.cli.reasons import Why

    with open_database("why") as conn:
        (key,) = check_keys(conn, [task])
        with conn.cursor(row_factory=class_row(Why)) as cursor:
            rows = cursor.execute(WHY, {"key": key}).fetchall()
    if not rows:
        raise Failure(f"no task {key}")
    if as_json:
        write_json([{name: getattr(row, name) for name in JSON_FIELDS} for row in rows])
        return
    for line in sentences(rows):
        typer.echo(clean(line))
