"""`llmqueue models pool` and `models pools`: named pools, their members and weights."""

from __future__ import annotations

import json

import psycopg
import pytest

from tests.support.cli import run_cli


@pytest.fixture
def dsn(installed: str) -> str:
    for name in ("a", "b", "c=d"):
        assert run_cli(installed, "models", "set", name, "--rpm", "60").code == 0
    return installed


def members(dsn: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute("select pool, model, weight from llmqueue.pool_member order by 1, 2").fetchall()


def test_a_pool_is_set_and_replaced(dsn: str) -> None:
    created = run_cli(dsn, "models", "pool", "fast", "a=5", "b", "c=d=0.5")
    assert (created.code, created.out, created.err) == (0, "fast: a 5, b 1, c=d 0.5\n", "")
    assert members(dsn) == [("fast", "a", 5), ("fast", "b", 1), ("fast", "c=d", 0.5)]

    run_cli(dsn, "models", "pool", "other", "a")
    run_cli(dsn, "models", "pool", "fast", "b=2", "c=d=0.5")

    assert members(dsn) == [("fast", "b", 2), ("fast", "c=d", 0.5), ("other", "a", 1)]


def test_pools_are_listed_with_their_shares(dsn: str) -> None:
    assert run_cli(dsn, "models", "pools").out == ""
    run_cli(dsn, "models", "pool", "fast", "a=3", "b=1")

    assert run_cli(dsn, "models", "pools").rows == [["fast", "a", "3.0", "75.0"], ["fast", "b", "1.0", "25.0"]]
    assert json.loads(run_cli(dsn, "models", "pools", "--json").out)[0] == {
        "pool": "fast",
        "model": "a",
        "weight": 3,
        "share_pct": 75,
    }


def test_a_pool_is_dropped(dsn: str) -> None:
    run_cli(dsn, "models", "pool", "fast", "a", "b")

    dropped = run_cli(dsn, "models", "pool", "fast", "--drop")

    assert dropped.out == "pool fast is gone. Tasks that name it wait until there is a pool or a model of that name\n"
    assert members(dsn) == []
    again = run_cli(dsn, "models", "pool", "fast", "--drop")
    assert (again.code, again.err) == (1, 'llmqueue: there is no pool "fast". There is none yet\n')


WRONG = "llmqueue: a member of a pool is MODEL=WEIGHT with a weight above 0, such as small=2 (got "


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fast", "x=1"], 1, 'llmqueue: there is no model "x". Configured: a, b, c=d\n'),
        (["fast", "a=0"], 2, f"{WRONG}'a=0')"),
        (["fast", "a=-1"], 2, f"{WRONG}'a=-1')"),
        (["fast", "a=nan"], 2, f"{WRONG}'a=nan')"),
        (["fast", "a=inf"], 2, f"{WRONG}'a=inf')"),
        (["fast", "a=much"], 2, f"{WRONG}'a=much')"),
        (["fast", "=1"], 2, f"{WRONG}'=1')"),
        (["fast", "a=1", "a=2"], 2, 'llmqueue: model "a" is given twice\n'),
        (["fast"], 2, "llmqueue: give the pool's models, MODEL=WEIGHT …, or --drop to remove it\n"),
        (["fast", "a", "--drop"], 2, "llmqueue: give the pool's models, MODEL=WEIGHT …, or --drop to remove it\n"),
        ([" ", "a"], 2, "llmqueue: NAME must not be empty\n"),
    ],
)
def test_what_is_no_pool_is_refused(dsn: str, arguments: list[str], code: int, message: str) -> None:
    refused = run_cli(dsn, "models", "pool", *arguments)

    assert (refused.code, refused.out) == (code, "")
    assert refused.err.startswith(message)
    assert members(dsn) == []


def test_a_pool_and_a_model_of_one_name_are_warned_of(dsn: str) -> None:
    pool = run_cli(dsn, "models", "pool", "a", "b")
    model = run_cli(dsn, "models", "set", "a", "--rpm", "5")

    assert (pool.code, pool.err) == (
        0,
        'llmqueue: warning: "a" is also a model: its own tasks go to the pool\'s models too\n',
    )
    assert (model.code, model.err) == (
        0,
        'llmqueue: warning: "a" is also a pool: tasks of the model go to the pool\'s models too\n',
    )
