"""`llmqueue simulate` as a user runs it: with its own embedded PostgreSQL."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from llmqueue.embedded import reaper
from llmqueue.embedded import server as embedded
from tests.support.cli import Result, run_cli
from tests.support.sql import Queue

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    # Not tmp_path: as root the server runs as another user, who may not enter pytest's folders.
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    server_home = folder / "simulate"
    embedded.leave(server_home)
    if server := reaper.running(server_home):
        reaper._stop(server[0], server_home, server[1])
    shutil.rmtree(folder)


def simulate(home: Path, *options: str, dsn: str = "host=nowhere.invalid dbname=none") -> Result:
    return run_cli(dsn, "simulate", "--seed", "1", *options, home=str(home))


def test_options_alone_need_no_database(home: Path) -> None:
    result = simulate(home, "--model", "a=60", "--model", "b=120", "--tasks", "200", "--hot", "10", "--workers", "2")

    assert result.code == 0, result.err
    assert [row[:2] for row in result.rows] == [
        ["model", "a"],
        ["model", "b"],
        ["rejections", "a"],
        ["rejections", "b"],
        ["backlog", "200"],
        ["hot", result.rows[5][1]],
        ["oldest", result.rows[6][1]],
    ]
    model, done, calls, refused, rpm, worst, _ = result.rows[1][1:]
    assert (model, done, refused, rpm) == ("b", calls, "0", "120")
    assert int(worst) <= 120
    assert result.rows[2][2:5] == ["sliding=0", "bucket=0", "minute=0"]


def test_json_has_the_same_and_a_seed_repeats_it(home: Path) -> None:
    first, again = (simulate(home, "--model", "a=60", "--tasks", "90", "--hot", "6", "--json") for _ in range(2))

    report, repeated = json.loads(first.out), json.loads(again.out)
    assert first.code == 0
    assert report["backlog_done"] == 90
    assert report["models"][0]["worst_60s"] <= 60
    assert report["done_at"] is not None
    for name in ("wall_s", "done_at"):
        del report[name], repeated[name]
    assert report == repeated


def test_from_database_takes_limits_and_backlog_and_changes_nothing(home: Path, installed: str) -> None:
    with psycopg.connect(installed, autocommit=True) as conn:
        queue = Queue(conn)
        queue.model("a", 60)
        queue.add(20)
        before = queue.rows("select * from llmqueue.task order by id")

        found = simulate(home, "--from-database", "--json", dsn=installed)
        raised = simulate(home, "--from-database", "--model", "a=600", "--tasks", "30", "--json", dsn=installed)

        after = queue.rows("select * from llmqueue.task order by id")
    assert before == after
    assert (json.loads(found.out)["backlog_done"], json.loads(found.out)["models"][0]["rpm"]) == (20, 60)
    assert (json.loads(raised.out)["backlog_done"], json.loads(raised.out)["models"][0]["rpm"]) == (30, 600)


def test_what_does_not_move_is_said(home: Path) -> None:
    result = simulate(home, "--model", "a=0", "--tasks", "5", "--for", "1m", "--json")

    report = json.loads(result.out)
    assert (report["backlog_done"], report["done_after_s"], report["left_s"], report["done_at"]) == (
        0,
        None,
        None,
        None,
    )
