"""Names and words that contain SQL stay names and words, also in the grants of `init --roles`."""

from __future__ import annotations

import psycopg
import pytest

from llmqueue.install.rights import OPERATOR, PRODUCER, READER, WORKER
from tests.support.adoption import adopt, rows, run, value
from tests.support.cli import run_cli
from tests.support.roles import member, with_roles

HOSTILE = """x"; drop table victim; -- ' $$ \\ %s {} """
NAME = '"' + HOSTILE.replace('"', '""') + '"'
WORD = "'; drop table victim; --"
WORKER_ID = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def victim(database: str) -> str:
    run(database, "create table victim ()")
    return database


def test_a_hostile_table_is_adopted_worked_and_granted(victim: str) -> None:
    word = WORD.replace("'", "''")
    run(
        victim,
        f"create schema {NAME}",
        f"create table {NAME}.{NAME} (id serial primary key, {NAME} text, answer text, status text default '{word}')",
    )
    adopt(
        victim,
        table=f"{NAME}.{NAME}",
        prompt_column=NAME,
        queued_value=WORD,
        words={"running": f"run {WORD}", "failed": HOSTILE},
        with_roles=True,
    )
    run(victim, "insert into llmqueue.model_config (model, rpm) values ('m', 600)")

    with member(victim, PRODUCER) as dsn:
        added = run_cli(dsn, "add", "-", "--format", "jsonl", stdin=b'{"prompt": "\'; drop table victim; --"}\n')
    with member(victim, WORKER) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select llmqueue.register(%s, 'w', '1', null, 20, 0.5)", (WORKER_ID,))
        claimed = conn.execute(
            "select (task).prompt from llmqueue.claim(%s, null, 1) where (task).task_id is not null",
            (WORKER_ID,),
        ).fetchall()

    assert added.code == 0, added.err
    assert claimed == [(WORD,)]
    assert value(victim, "select status from llmqueue.task") == f"run {WORD}"
    assert value(victim, "select count(*) from victim") == 0


@pytest.mark.parametrize("name", [WORD, HOSTILE, "$$; drop table victim; $$", "a'||(select 1)||'"])
def test_a_hostile_model_is_a_model(installed: str, name: str) -> None:
    run(installed, "create table victim ()")
    with_roles(installed)

    with member(installed, OPERATOR) as dsn:
        done = [
            run_cli(dsn, *command)
            for command in (
                ("models", "set", name, "--rpm", "5"),
                ("models", "pause", name),
                ("models", "resume", name),
                ("models", "pool", f"pool {name}", f"{name}=2"),
            )
        ]
        unknown = run_cli(dsn, "tasks", "retry", WORD)
    with member(installed, READER) as dsn:
        listed = run_cli(dsn, "status", "--json")

    assert [result.code for result in done] == [0] * 4, [result.err for result in done]
    assert (unknown.code, listed.code) == (2, 0)
    assert rows(installed, "select model, rpm from llmqueue.model_config") == [(name, 5)]
    assert value(installed, "select count(*) from victim") == 0
