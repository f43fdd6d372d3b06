"""SQL generated from the mapping of the user's table. All other SQL is static text and reads llmqueue.task.

The status words are constants in the view, because a parameter cannot prove a partial index. The same functions build
the expressions of the indexes and of the view, so that the planner recognises them as equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from typing import Final

from psycopg import sql

from llmqueue.db.mapping import Mapping
from llmqueue.install.columns import STATUSES, VIEW_COLUMNS

INDEXES: Final = ("llmqueue_ready", "llmqueue_oldest", "llmqueue_delayed", "llmqueue_deadline", "llmqueue_failed")
_REPLACEMENT: Final = "_new"
TRIGGER: Final = "llmqueue_wake_up"

_ColumnOf = Callable[[str], sql.Composable]


@dataclass(frozen=True, slots=True)
class Expressions:
    """The computed columns of llmqueue.task, with the alias that the view needs or without it."""

    prompt_text: sql.Composable
    lane: sql.Composable
    rank: sql.Composable
    user_key: sql.Composable
    due_at: sql.Composable
    waiting_since: sql.Composable
    is_ready: sql.Composable
    is_delayed: sql.Composable
    is_running: sql.Composable
    is_failed: sql.Composable
    is_ended: sql.Composable


def text(composed: sql.Composable) -> str:
    """Return SQL as text."""
    return composed.as_string(None)


def type_name(name: str) -> sql.SQL:
    """Return a type for composing; `name` comes from format_type, which quotes it if necessary."""
    return sql.SQL(name)


def expressions(mapping: Mapping, alias: str | None) -> Expressions:
    """Return the computed columns over the user's table under `alias`, or over its bare columns."""

    def column(name: str) -> sql.Composable:
        return sql.Identifier(alias, name) if alias else sql.Identifier(name)

    def ours(name: str) -> sql.Composable:
        return column(mapping.column(name))

    def has(status: str) -> sql.Composable:
        return _equals(ours("status"), mapping.words[status], mapping.status_type)

    ended: sql.Composable = sql.SQL(" or ").join([has("solved"), has("failed"), has("cancelled")])
    if mapping.own_status:
        ready: sql.Composable = sql.SQL("({}) and {} is null").format(_is_queued(mapping, column), ours("status"))
        ended = sql.SQL("{} or ({} is null and ({}))").format(ended, ours("status"), _is_done(mapping, column))
    else:
        ready = has("unsolved")
    due_at = sql.SQL("coalesce({}, {}, '-infinity'::timestamp with time zone)").format(
        ours("run_at"), ours("created_at")
    )
    return Expressions(
        prompt_text=sql.SQL("({})::text").format(ours("prompt")),
        lane=sql.SQL("coalesce(({})::text, '')").format(ours("model")),
        rank=sql.SQL("coalesce({}, 0)").format(ours("priority")),
        user_key=sql.SQL('(llmqueue_internal.user_key({}) collate "C")').format(ours("user_id")),
        due_at=due_at,
        # The same value as another expression: the planner cannot use the index of one for a query of the other
        # (decision 24).
        waiting_since=sql.SQL("greatest({})").format(due_at),
        is_ready=ready,
        is_delayed=has("delayed"),
        is_running=has("running"),
        is_failed=has("failed"),
        is_ended=sql.SQL("coalesce({}, false)").format(ended),
    )


def task_id_domain(mapping: Mapping) -> str:
    """Return the domain over the key's type; for varchar keys that type is text."""
    return text(sql.SQL("create domain llmqueue.task_id as {}").format(type_name(mapping.key_type)))


def functions(mapping: Mapping) -> tuple[str, ...]:
    """Return the generated functions, each as one statement."""
    return (
        _USER_KEY,
        _status_word(mapping),
        _answer_value(mapping),
        _mark_done(mapping),
        _mark_queued(mapping),
        _wake_up(mapping),
    )


def view(mapping: Mapping) -> str:
    """Return llmqueue.task: auto-updatable, over the user's table."""
    computed = expressions(mapping, "t")
    lines = [
        sql.SQL("{} as {}").format(sql.Identifier("t", mapping.column(name)), sql.Identifier(name))
        for name in VIEW_COLUMNS
    ]
    lines += [
        sql.SQL("{} as {}").format(getattr(computed, name), sql.Identifier(name)) for name in Expressions.__slots__
    ]
    select = sql.SQL("create view llmqueue.task as\nselect\n    {}\nfrom {} as t").format(
        sql.SQL(",\n    ").join(lines), mapping.table
    )
    return text(select)


def replacement(name: str) -> str:
    """Return the name under which the replacement of one of INDEXES is built."""
    return name + _REPLACEMENT


def all_index_names() -> tuple[str, ...]:
    """Return INDEXES and the names of their replacements."""
    return (*INDEXES, *map(replacement, INDEXES))


def index(mapping: Mapping, name: str) -> str:
    """Return the statement that builds one of INDEXES or its replacement without blocking writers."""
    over = expressions(mapping, None)
    key, finished_at = sql.Identifier(mapping.column("id")), sql.Identifier(mapping.column("finished_at"))
    deadline_at = sql.Identifier(mapping.column("deadline_at"))
    # desc sorts nulls first by default. coalesce returns no null, and `order by rank desc` needs the plain form.
    columns, condition = {
        "llmqueue_ready": (
            sql.SQL("({}), ({}) desc, {}, ({}), {}").format(over.lane, over.rank, over.user_key, over.due_at, key),
            over.is_ready,
        ),
        "llmqueue_oldest": (sql.SQL("({}), ({}), {}").format(over.lane, over.waiting_since, key), over.is_ready),
        "llmqueue_delayed": (sql.SQL("({})").format(over.due_at), over.is_delayed),
        # It has no rows without a deadline, so it costs nothing if deadlines are not used.
        "llmqueue_deadline": (
            deadline_at,
            sql.SQL("({} or {}) and {} is not null").format(over.is_ready, over.is_delayed, deadline_at),
        ),
        "llmqueue_failed": (finished_at, over.is_failed),
    }[name.removesuffix(_REPLACEMENT)]
    return text(
        sql.SQL("create index concurrently if not exists {} on {} ({}) where {}").format(
            sql.Identifier(name), mapping.table, columns, condition
        )
    )


def trigger(mapping: Mapping) -> str:
    """Return the one trigger on the user's table."""
    return text(
        sql.SQL(
            "create or replace trigger {} after insert on {} referencing new table as inserted\n"
            "for each statement execute function llmqueue_internal.wake_up()"
        ).format(sql.Identifier(TRIGGER), mapping.table)
    )


def _equals(column: sql.Composable, value: str | None, type_: str) -> sql.Composable:
    return sql.SQL("{} = {}::{}").format(column, sql.Literal(value), type_name(type_))


def _is_queued(mapping: Mapping, column: _ColumnOf) -> sql.Composable:
    theirs = mapping.owner_status_column
    if theirs is None or mapping.owner_status_type is None:
        return sql.SQL("{} is null").format(column(mapping.column("answer")))
    queued = _equals(column(theirs), mapping.queued_value, mapping.owner_status_type)
    return sql.SQL("{} or {} is null").format(queued, column(theirs))


def _is_done(mapping: Mapping, column: _ColumnOf) -> sql.Composable:
    theirs = mapping.owner_status_column
    if theirs is None or mapping.owner_status_type is None:
        return sql.SQL("{} is not null").format(column(mapping.column("answer")))
    return _equals(column(theirs), mapping.done_value, mapping.owner_status_type)


# An index needs an immutable and short text from user_id of any type and length. (The cast of an enum to text is
# immutable in fact, but not by the catalog.)
_USER_KEY: Final = (
    "create or replace function llmqueue_internal.user_key(p_user_id anyelement) returns text\n"
    "language sql immutable parallel safe as $$ select left(coalesce(p_user_id::text, ''), 200) $$"
)


def _wake_up(mapping: Mapping) -> str:
    """Return the trigger function, which costs the insert path one query per statement (design I17).

    A role that may only insert has no rights on our schema, hence SECURITY DEFINER with a fixed search_path. Each
    NOTIFY serialises commits in the whole cluster, so none is sent while all workers are busy, except for a hot task,
    which has reserved slots and calls. A missed signal costs at most a second: the poll is the truth.
    """
    body = sql.SQL(
        """declare
    v_is_idle boolean;
    v_is_hot boolean;
begin
    -- one statement for both: it is most of what an INSERT pays
    select exists (select from llmqueue.idle_worker), exists (select from inserted where inserted.{} >= 100)
      into v_is_idle, v_is_hot;
    if v_is_idle then
        perform pg_notify('llmqueue', 'task');
    end if;
    if v_is_hot then
        perform pg_notify('llmqueue', 'hot');
    end if;
    return null;
exception when others then
    return null;
end"""
    ).format(sql.Identifier(mapping.column("priority")))
    return text(
        sql.SQL(
            "create or replace function llmqueue_internal.wake_up() returns trigger language plpgsql volatile\n"
            "security definer set search_path = pg_catalog, pg_temp as {}"
        ).format(_body(body))
    )


def _status_word(mapping: Mapping) -> str:
    cases = [
        # A waiting task has no status in a status column of our own.
        sql.SQL("when {} then null").format(sql.Literal(status))
        if mapping.own_status and status == "unsolved"
        else sql.SQL("when {} then {}::{}").format(
            sql.Literal(status), sql.Literal(mapping.words[status]), type_name(mapping.status_type)
        )
        for status in STATUSES
    ]
    return text(
        sql.SQL(
            "create or replace function llmqueue_internal.status_word(p_status text) returns {}\n"
            "language sql immutable parallel safe as {}"
        ).format(
            type_name(mapping.status_type),
            _body(sql.SQL("select case p_status\n        {}\n    end").format(sql.SQL("\n        ").join(cases))),
        )
    )


def _answer_value(mapping: Mapping) -> str:
    return text(
        sql.SQL(
            "create or replace function llmqueue_internal.answer_value(p_answer text) returns {}\n"
            "language sql immutable parallel safe as $$ select p_answer::{} $$"
        ).format(type_name(mapping.answer_type), type_name(mapping.answer_type))
    )


def _mark_done(mapping: Mapping) -> str:
    if mapping.owner_status_column is None or mapping.owner_status_type is None:
        body: sql.Composable = sql.SQL("select")
    else:
        body = sql.SQL("update {} set {} = {}::{} where {} = any(p_task_ids::{}[])").format(
            mapping.table,
            sql.Identifier(mapping.owner_status_column),
            sql.Literal(mapping.done_value),
            type_name(mapping.owner_status_type),
            sql.Identifier(mapping.column("id")),
            type_name(mapping.key_type),
        )
    return text(
        sql.SQL(
            "create or replace function llmqueue_internal.mark_done(p_task_ids llmqueue.task_id[]) returns void\n"
            "language sql volatile as {}"
        ).format(_body(body))
    )


def _mark_queued(mapping: Mapping) -> str:
    """Return the function by which a restart resets the owner's status: with own_status, that decides too."""
    if not mapping.own_status:
        body: sql.Composable = sql.SQL("select")
    else:
        if mapping.owner_status_column is None or mapping.owner_status_type is None:
            change = sql.SQL("{} = null").format(sql.Identifier(mapping.column("answer")))
        else:
            change = sql.SQL("{} = {}::{}").format(
                sql.Identifier(mapping.owner_status_column),
                sql.Literal(mapping.queued_value),
                type_name(mapping.owner_status_type),
            )
        body = sql.SQL(
            "update {} set {} where {} = any(p_task_ids::{}[]) and {} in ('solved', 'failed', 'cancelled')"
        ).format(
            mapping.table,
            change,
            sql.Identifier(mapping.column("id")),
            type_name(mapping.key_type),
            sql.Identifier(mapping.column("status")),
        )
    return text(
        sql.SQL(
            "create or replace function llmqueue_internal.mark_queued(p_task_ids llmqueue.task_id[]) returns void\n"
            "language sql volatile as {}"
        ).format(_body(body))
    )


def _body(statement: sql.Composable) -> sql.Composable:
    """Quote a function's body with a tag that does not occur in it, not even in a status word of the owner."""
    tags = chain(["$$"], (f"$body{number}$" for number in count()))
    tag = next(tag for tag in tags if tag not in text(statement))
    return sql.SQL("{tag}\n    {body}\n{tag}").format(tag=type_name(tag), body=statement)
