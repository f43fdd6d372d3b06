"""A scenario's models and backlog from a real database: bounded reads, nothing is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmqueue.forecast.scenario import INPUT_TOKENS, OUTPUT_TOKENS, Lane, Model, PoolMember
from llmqueue.forecast.scheduler import BYTES_PER_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg
    from psycopg.rows import TupleRow

_MOST_COUNTED = 10_000  # tasks of a lane whose priorities are looked at
_MOST_MEASURED = 200  # tasks of a lane whose prompts are measured


def prepare(conn: psycopg.Connection[TupleRow]) -> None:
    """Makes the planner walk our indexes: with stale statistics it might read all of somebody's table."""
    for setting in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
        conn.execute(f"set {setting} = off".encode())


def read_models(conn: psycopg.Connection[TupleRow]) -> tuple[Model, ...]:
    """Every configured model with all its columns."""
    rows = conn.execute("select c.model, c.rpm, to_jsonb(c) from llmqueue.model_config c order by c.model").fetchall()
    return tuple(
        Model(name, rpm, {key: v for key, v in columns.items() if v is not None and key not in {"model", "rpm"}})
        for name, rpm, columns in rows
    )


def read_pools(conn: psycopg.Connection[TupleRow]) -> tuple[PoolMember, ...]:
    rows = conn.execute("select p.pool, p.model, p.weight from llmqueue.pool_member p order by 1, 2").fetchall()
    return tuple(PoolMember(*row) for row in rows)


def read_guard_s(conn: psycopg.Connection[TupleRow]) -> float:
    row = conn.execute("select l.guard_s from llmqueue.limiter l").fetchone()
    return float(row[0]) if row else 0.5


def read_backlog(conn: psycopg.Connection[TupleRow]) -> tuple[Lane, ...]:
    """What waits, by lane and priority; the rest of a long lane is taken to be of the last priority that was seen."""
    waiting = conn.execute("select b.model, b.tasks from llmqueue.backlog b where b.status = 'unsolved'").fetchall()
    lanes: list[Lane] = []
    for name, tasks in waiting:
        counted = conn.execute(
            """
            select head.rank, count(*)
              from (select t.rank from llmqueue.task t
                     where t.is_ready and t.lane = %s order by t.rank desc limit %s) head
             group by head.rank order by head.rank desc
            """,
            (name, _MOST_COUNTED),
        ).fetchall()
        seen = sum(count for _, count in counted)
        lanes += [
            Lane(name, count + (tasks - seen if position == len(counted) and tasks > seen else 0), _priority(rank))
            for position, (rank, count) in enumerate(counted, 1)
        ]
    return tuple(lanes)


def read_tokens(conn: psycopg.Connection[TupleRow], lanes: Sequence[Lane]) -> tuple[int, int]:
    """Input and output tokens of a usual call: by the first prompts of each lane, and by what the models have said."""
    sizes = []
    for name in {lane.lane for lane in lanes}:
        sizes += conn.execute(
            """
            select octet_length(t.prompt_text) from llmqueue.task t where t.is_ready and t.lane = %s
             order by t.rank desc limit %s
            """,
            (name, _MOST_MEASURED),
        ).fetchall()
    input_tokens = sum(size for (size,) in sizes) // len(sizes) // BYTES_PER_TOKEN if sizes else INPUT_TOKENS
    row = conn.execute("select round(avg(s.output_mean)) from llmqueue.model_state s").fetchone()
    return max(1, input_tokens), int(row[0]) if row and row[0] is not None else OUTPUT_TOKENS


def _priority(rank: object) -> int:
    """A priority is a smallint in the table of the simulation; an owner's may be of any size."""
    return max(-(2**15), min(2**15 - 1, int(str(rank))))
