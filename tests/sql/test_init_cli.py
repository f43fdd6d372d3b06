"""`llmqueue init` as a command: exit codes, and what goes to stdout and stderr."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.adoption import SIMPLE, run, snapshot, value


def llmqueue(dsn: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from llmqueue.cli import main; main()", "init", *arguments],
        cwd=folder,
        env={"LLMQUEUE_DATABASE_URL": dsn, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_init_adopts_and_says_each_step(database: str, tmp_path: Path) -> None:
    run(database, SIMPLE, "alter table tasks add column origin text")

    done = llmqueue(database, tmp_path, "--table", "public.tasks", "--column", "user_id=origin")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("warning: the new columns affect COPY without a column list")
    assert lines[1].startswith("[1/")
    assert lines[-1] == "done: public.tasks is adopted"
    assert value(database, "select columns ->> 'user_id' from llmqueue.mapping") == "origin"

    again = llmqueue(database, tmp_path)
    assert (again.returncode, again.stdout) == (
        0,
        "nothing to change: public.tasks is adopted and the schema is up to date\n",
    )


def test_dry_run_prints_sql_only_and_changes_nothing(database: str, tmp_path: Path) -> None:
    run(database, SIMPLE)
    before = snapshot(database)

    done = llmqueue(database, tmp_path, "--dry-run", "--own-status")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("-- llmqueue init: public.tasks")
    assert 'add column "llmqueue_status" text' in done.stdout
    assert snapshot(database) == before


@pytest.mark.parametrize(
    ("existing", "arguments", "code", "message"),
    [
        (
            "create table jobs (id int)",
            ["--table", "job"],
            1,
            'llmqueue: cannot adopt job: there is no table "job" in schema public. Did you mean jobs?\n',
        ),
        (
            "create view tasks as select 1 as id",
            [],
            1,
            "llmqueue: cannot adopt public.tasks: it is a view: name the table behind it with --table.\n",
        ),
        (
            "select",
            ["--column", "created_at"],
            2,
            "llmqueue: --column created_at: write it as --column NAME=COLUMN.\n",
        ),
        (
            "select",
            ["--word", "runing=x"],
            2,
            "llmqueue: --word runing=x: llmqueue has no status runing. Did you mean running?\n",
        ),
    ],
)
def test_refusals_exit_with_1_and_wrong_options_with_2(
    database: str, tmp_path: Path, existing: str, arguments: list[str], code: int, message: str
) -> None:
    run(database, existing)

    done = llmqueue(database, tmp_path, *arguments)

    assert (done.returncode, done.stdout, done.stderr) == (code, "", message)


def test_an_unreachable_database_exits_with_1(tmp_path: Path) -> None:
    done = llmqueue("host=127.0.0.1 port=1 dbname=none", tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("llmqueue: cannot reach the database at host 127.0.0.1 port 1: connection refused.")
