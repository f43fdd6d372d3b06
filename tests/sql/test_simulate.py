"""`llmqueue simulate`: the real SQL functions in a temporary database, in simulated time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest

from llmqueue.forecast import fleet, source
from llmqueue.forecast.run import simulate
from llmqueue.forecast.scenario import Lane, Model, PoolMember, Scenario
from tests.support.server import Server
from tests.support.sql import Queue

MODEL = "groq-llama-2-70b"  # answers within a second or so


def scenario(rpm: int = 120, tasks: int = 0, **columns: object) -> Scenario:
    backlog = (Lane("", tasks),) if tasks else ()
    return Scenario(models=(Model(MODEL, rpm, columns),), backlog=backlog, seed=1)


def databases(server: Server) -> list[Any]:
    with psycopg.connect(server.dsn()) as conn:
        return conn.execute("select datname from pg_database where datname like 'simulation%'").fetchall()


def test_a_backlog_is_done_at_the_limit_and_the_database_is_gone(server: Server) -> None:
    report = simulate(replace(scenario(tasks=300), workers=2), server.dsn())

    (model,) = report.models
    assert (report.backlog_done, model.done, model.calls, model.refused) == (300, 300, 300, 0)
    assert model.worst_60s <= 120
    assert report.done_after_s is not None
    assert 120 < report.done_after_s < 180
    assert [model.rejections[kind] for kind in ("sliding", "bucket", "minute")] == [0, 0, 0]
    assert databases(server) == []


def test_hot_tasks_pass_a_saturated_backlog(server: Server) -> None:
    report = simulate(replace(scenario(tasks=10_000), hot_per_minute=6, for_s=120.0), server.dsn())

    assert report.hot_sent > 4
    assert report.hot_p99_s is not None
    assert report.hot_p99_s < 60 / 120 + 0.1
    assert report.done_after_s is None
    assert report.left_s is not None
    assert report.left_s > 3600


def test_a_provider_that_refuses_closes_the_model_and_it_comes_back(server: Server) -> None:
    report = simulate(replace(scenario(tasks=150), provider="ten-seconds"), server.dsn())

    (model,) = report.models
    assert model.refused > 0
    assert report.retries == model.refused
    assert report.backlog_done == 150


def test_a_burst_window_spares_the_refusals(server: Server) -> None:
    strict = replace(scenario(tasks=200, burst_windows={"10": 0.1667}), provider="ten-seconds")

    report = simulate(strict, server.dsn())

    assert report.models[0].refused == 0
    assert report.backlog_done == 200


def test_tokens_bind_where_they_are_scarcer_than_calls(server: Server) -> None:
    scarce = scenario(rpm=600, tasks=60, tpm=10_000, max_output=100)

    report = simulate(replace(scarce, input_tokens=400, output_tokens=50), server.dsn())

    (model,) = report.models
    assert 9_000 <= model.worst_60s_tokens <= 10_000
    assert model.worst_60s <= 20
    assert model.refused == 0


def test_a_pool_spreads_and_a_pinned_task_stays(server: Server) -> None:
    models = (Model(MODEL, 60), Model("anyscale-llama-2-70b", 60), Model("kimi-k2.5", 60, {"weight": 0}))
    backlog = (Lane("two", 40), Lane("kimi-k2.5", 10))
    pools = (PoolMember("two", MODEL, 1), PoolMember("two", "anyscale-llama-2-70b", 1))

    report = simulate(Scenario(models=models, backlog=backlog, pools=pools, seed=2), server.dsn())

    assert report.backlog_done == 50
    assert report.models[2].done == 10
    assert report.models[0].done + report.models[1].done == 40
    assert min(report.models[0].done, report.models[1].done) > 10


def test_the_database_is_gone_after_a_failure_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: object, _on_progress: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fleet.Fleet, "run", fail)
    with pytest.raises(KeyboardInterrupt):
        simulate(scenario(tasks=1), server.dsn())

    assert databases(server) == []


def test_what_a_killed_simulation_has_left_is_removed(server: Server) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("create database simulation_of_the_dead")

    simulate(scenario(tasks=1), server.dsn())

    assert databases(server) == []


def test_a_scenario_is_read_from_a_real_database(conn: psycopg.Connection[Any]) -> None:
    queue = Queue(conn)
    queue.model("a", 60, max_concurrency=7, weight=3)
    queue.model("b", 600, tpm=10_000)
    queue.rows("insert into llmqueue.pool_member (pool, model, weight) values ('both', 'a', 2), ('both', 'b', 1)")
    queue.add(5, prompt="x" * 80)
    queue.add(3, priority=100)
    queue.add(2, model="both")

    source.prepare(conn)
    conn.row_factory = psycopg.rows.tuple_row
    models, lanes = source.read_models(conn), source.read_backlog(conn)

    assert [(m.name, m.rpm, m.tpm, m.columns["weight"], m.columns.get("max_concurrency")) for m in models] == [
        ("a", 60, None, 3, 7),
        ("b", 600, 10_000, 1, None),
    ]
    assert set(lanes) == {Lane("", 3, 100), Lane("", 5, 0), Lane("both", 2, 0)}
    assert source.read_pools(conn) == (PoolMember("both", "a", 2), PoolMember("both", "b", 1))
    assert source.read_guard_s(conn) == 0.5
    assert source.read_tokens(conn, lanes) == ((5 * 80 + 3 * 4 + 2 * 4) // 10 // 4, 210)


def test_a_scenario_from_a_database_runs(server: Server, conn: psycopg.Connection[Any]) -> None:
    Queue(conn).model(MODEL, 600, burst_windows=psycopg.types.json.Jsonb({"10": 0.2}))
    conn.row_factory = psycopg.rows.tuple_row
    read = Scenario(models=source.read_models(conn), backlog=(Lane("", 5),), seed=1)

    assert simulate(read, server.dsn()).backlog_done == 5
