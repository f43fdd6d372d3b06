"""Named pools: the rows of llmqueue.pool_member, for `llmqueue models pools`, `models pool` and `status`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmqueue.cli.output import Column
from llmqueue.errors import Failure, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg
    from psycopg.rows import TupleRow

# One statement: no claim sees a pool that is half of the one and half of the other.
SET = """
    with given as (
        select g.model, g.weight from unnest(%(models)s::text[], %(weights)s::double precision[]) g(model, weight)
    ), gone as (
        delete from llmqueue.pool_member p where p.pool = %(pool)s and p.model <> all (%(models)s::text[])
    )
    insert into llmqueue.pool_member (pool, model, weight)
    select %(pool)s, given.model, given.weight from given order by given.model
    on conflict (pool, model) do update set weight = excluded.weight
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A row of llmqueue.pool_member, and its share of the pool's tasks while all its models have room."""

    pool: str
    model: str
    weight: float
    share_pct: float


MEMBERS = (
    Column("pool", "pool"),
    Column("model", "model"),
    Column("weight", "weight", lambda weight: f"{weight:g}", is_right=True),
    Column("share_pct", "% of its tasks", lambda share: f"{share:.1f}", is_right=True),
)


def read_pools(conn: psycopg.Connection[TupleRow]) -> list[Member]:
    """Every member of every pool, by name."""
    from psycopg.rows import class_row

    with conn.cursor(row_factory=class_row(Member)) as cursor:
        return cursor.execute(
            """
            select p.pool, p.model, p.weight, 100 * p.weight / sum(p.weight) over (partition by p.pool) as share_pct
              from llmqueue.pool_member p order by p.pool, p.model
            """
        ).fetchall()


def names_of_pools(conn: psycopg.Connection[TupleRow]) -> set[str]:
    return {member.pool for member in read_pools(conn)}


def read_members(texts: Sequence[str]) -> dict[str, float]:
    """Reads MODEL=WEIGHT or MODEL; raises UsageError. A model whose name has a = in it needs its weight."""
    weights: dict[str, float] = {}
    for text in texts:
        model, _, said = text.rpartition("=") if "=" in text else (text, "", "1")
        try:
            weight = float(said)
        except ValueError:
            weight = math.nan
        if not model or not 0 < weight < math.inf:
            raise UsageError(
                f"a member of a pool is MODEL=WEIGHT with a weight above 0, such as small=2 (got '{text}'); "
                "a model that is left out is no member"
            )
        if model in weights:
            raise UsageError(f'model "{model}" is given twice')
        weights[model] = weight
    return weights


def set_pool(conn: psycopg.Connection[TupleRow], pool: str, weights: Mapping[str, float]) -> None:
    conn.execute(SET, {"pool": pool, "models": list(weights), "weights": list(weights.values())})


def drop_pool(conn: psycopg.Connection[TupleRow], pool: str) -> None:
    """Removes a pool; raises Failure if there is none of that name."""
    if not conn.execute("delete from llmqueue.pool_member where pool = %s", [pool]).rowcount:
        known = ", ".join(sorted(names_of_pools(conn)))
        raise Failure(f'there is no pool "{pool}". {f"There are: {known}" if known else "There is none yet"}')
