"""Warnings of `init` that do not prevent the adoption."""

from __future__ import annotations

from llmqueue.install.adopt import AdoptionSpec, plan
from tests.support.adoption import SIMPLE, run


def test_constraint_over_several_columns_is_a_warning(database: str) -> None:
    run(database, SIMPLE, "alter table tasks add constraint whole check (status <> 'solved' or answer is not null)")

    found = plan(database, AdoptionSpec()).warnings

    assert any(line.startswith('constraint "whole" CHECK (') and 'is about "status" and more' in line for line in found)


def test_status_without_a_default_is_a_warning(database: str) -> None:
    run(database, "create table tasks (id int primary key, prompt text, answer text, status text)")

    assert (
        'column "status" has no default: a row inserted without it is no task. '
        "Run: alter table public.tasks alter column status set default 'unsolved';"
    ) in plan(database, AdoptionSpec()).warnings


def test_a_check_that_cannot_be_evaluated_is_a_warning(database: str) -> None:
    run(
        database,
        "create function picky(s text) returns boolean language plpgsql as 'begin raise exception ''no''; end'",
        "create table tasks (id int primary key, prompt text, answer text, "
        "status text default 'unsolved' check (picky(status)))",
    )

    assert any('constraint "tasks_status_check"' in line for line in plan(database, AdoptionSpec()).warnings)


def test_an_unlogged_table_is_a_warning(database: str) -> None:
    run(database, SIMPLE.replace("create table", "create unlogged table"))

    assert "public.tasks is unlogged: a crash of the server empties it." in plan(database, AdoptionSpec()).warnings
