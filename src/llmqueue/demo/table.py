"""The table that the demo adopts: an owner's table with its own names and words, in use before llmqueue."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmqueue.demo import scenario
from llmqueue.fake_backend import expected_answer
from llmqueue.install.spec import AdoptionSpec

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

    from llmqueue.demo.prompts import Prompt

TABLE = "support.prompts"

CREATE = """
create schema support;
create table support.prompts (
    ticket uuid primary key default gen_random_uuid(),
    subject text not null,
    question text not null,
    reply text,
    state text not null default 'new'
        constraint state_is_known
        check (state in ('new', 'in progress', 'answered', 'failed', 'cancelled', 'delayed')),
    asked_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);
create table support.rating (
    ticket uuid primary key references support.prompts,
    stars integer not null check (stars between 1 and 5)
);
create function support.touch() returns trigger language plpgsql as $$
begin
    new.updated_at := clock_timestamp();
    return new;
end
$$;
create trigger touch before update on support.prompts for each row execute function support.touch();
"""

# The options of `llmqueue init` for it. `adoption` has the same for adopt.install; a test compares the two.
INIT_OPTIONS = (
    *("--table", TABLE),
    *("--id-column", "ticket"),
    *("--prompt-column", "question"),
    *("--answer-column", "reply"),
    *("--status-column", "state"),
    *("--queued-value", "new"),
    *("--done-value", "answered"),
    *("--word", "running=in progress"),
    *("--column", "created_at=asked_at"),
)

_UNTOUCHED = """
    select count(*), md5(string_agg(concat_ws('|', p.ticket, p.reply, p.updated_at, r.stars), ',' order by p.ticket))
      from support.prompts p
      join support.rating r on r.ticket = p.ticket
"""


def adoption() -> AdoptionSpec:
    """Returns the adoption that INIT_OPTIONS describe."""
    return AdoptionSpec(
        table=TABLE,
        id_column="ticket",
        prompt_column="question",
        answer_column="reply",
        status_column="state",
        queued_value="new",
        done_value="answered",
        words={"running": "in progress"},
        columns={"created_at": "asked_at"},
    )


def init_command(program: str = "llmqueue") -> list[str]:
    """Returns the command as a person would type it, in short lines without trailing backslashes."""
    pairs = [INIT_OPTIONS[i : i + 2] for i in range(0, len(INIT_OPTIONS), 2)]
    words = [f"{option} {shlex.quote(value)}" for option, value in pairs]
    return [f"{program} init {words[0]}", *(" ".join(words[i : i + 2]) for i in range(1, len(words), 2))]


def create(conn: psycopg.Connection[TupleRow], prompts: Sequence[Prompt]) -> None:
    """Creates the table with `prompts`, of which the first SOLVED_BEFORE are solved and rated."""
    conn.execute(CREATE)
    solved, waiting = prompts[: scenario.SOLVED_BEFORE], prompts[scenario.SOLVED_BEFORE :]
    with conn.cursor() as cursor:
        with cursor.copy("copy support.prompts (subject, question, reply, state) from stdin") as copy:
            for prompt in solved:
                copy.write_row((prompt.name, prompt.text, expected_answer(prompt.text), "answered"))
        cursor.execute("insert into support.rating select ticket, 1 + length(question) % 5 from support.prompts")
        with cursor.copy("copy support.prompts (subject, question) from stdin") as copy:
            for prompt in waiting:
                copy.write_row((prompt.name, prompt.text))
    conn.execute("analyze support.prompts")


def solved_before(conn: psycopg.Connection[TupleRow]) -> tuple[object, ...] | None:
    """Returns the count and a checksum, with update times, of the rows that were solved before the demo."""
    return conn.execute(_UNTOUCHED).fetchone()
