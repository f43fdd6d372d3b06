"""The primary dies and a standby takes over that has not had everything: nothing lost, nothing over the limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.fake_backend import expected_answer
from llmqueue.fake_backend.call_log import read_calls
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support import processes
from tests.support.cli import run_cli
from tests.support.eventually import eventually
from tests.support.server import Server, control, start_server
from tests.support.standby import cut_off, promote, standby_of

pytestmark = pytest.mark.system
MODELS = ("a", "b")


@pytest.fixture
def primary(request: pytest.FixtureRequest) -> Iterator[Server]:
    with start_server(int(request.config.getoption("--pg"))) as server:
        yield server


def test_a_failover_that_loses_the_last_grants_oversteps_no_limit_and_loses_no_task(
    primary: Server, tmp_path: Path
) -> None:
    fail_over(primary, tmp_path, window_s=3.0, rpm=90, tasks=420, speed="40")


@pytest.mark.slow
def test_a_failover_costs_one_quiet_minute(primary: Server, tmp_path: Path) -> None:
    fail_over(primary, tmp_path, window_s=60.0, rpm=600, tasks=1500, speed="10")


def test_a_standby_can_be_asked_what_the_primary_does(primary: Server) -> None:
    prepare(primary, 60.0, 600, 2)
    with standby_of(primary) as standby:
        for command in (("status",), ("why", "1"), ("audit",)):
            assert run_cli(standby.dsn(), *command).code == 0, command


def fail_over(primary: Server, folder: Path, *, window_s: float, rpm: int, tasks: int, speed: str) -> None:
    prepare(primary, window_s, rpm, tasks)
    with standby_of(primary) as standby, processes.backend(folder, "--any-model", "--speed", speed) as url:
        both = make_conninfo(
            host=f"{primary.host},{standby.host}",
            port=f"{primary.port},{standby.port}",
            user=primary.user,
            dbname="postgres",
            target_session_attrs="read-write",
        )
        env = processes.environment(DATABASE_URL=both, BACKEND_URL=url, LEASE_S="5")
        with processes.workers(folder, 3, "--drain", env=env) as started:
            eventually(lambda: solved(primary) >= tasks / 7)
            cut_off(standby)
            lost_from = solved(primary)
            eventually(lambda: solved(primary) >= lost_from + tasks / 14)
            control(primary, "stop", "-m", "immediate")
            assert solved(standby) < lost_from + tasks / 14, "something is lost"
            promote(standby)
            assert [process.wait(300) for process in started] == [0, 0, 0], started[0].output[-3000:]
            for process in started:
                assert process.output.count('"epoch_changed"') == 1
                assert process.output.count('"database_unreachable"') <= 2
        assert_nothing_is_lost(standby, tasks)
        assert_no_window_is_over(folder, window_s, rpm)
        assert_quiet(standby, window_s)
    paid = Counter(call.key for call in read_calls(folder / "calls.jsonl"))
    print(
        f"\n{sum(paid.values()) - tasks} calls of {tasks} tasks were made twice: their ends were lost with the primary"
    )
    assert max(paid.values()) <= 2


def prepare(primary: Server, window_s: float, rpm: int, tasks: int) -> None:
    install(primary.dsn(), AdoptionSpec())
    with psycopg.connect(primary.dsn(), autocommit=True) as conn:
        conn.execute("update llmqueue.limiter set window_s = %s", (window_s,))
        for model in MODELS:
            conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, %s)", (model, rpm))
        conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, %s) n", (tasks,))


def solved(server: Server) -> int:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        [(count,)] = conn.execute("select count(*) from tasks where status = 'solved'").fetchall()
        return int(count)


def assert_nothing_is_lost(server: Server, tasks: int) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        rows = conn.execute("select prompt, answer, status from tasks").fetchall()
        running = conn.execute("select count(*) from llmqueue.attempt where ended_at is null").fetchone()
        [(fences, attempts)] = conn.execute(
            "select count(distinct fence), count(*) from llmqueue.attempt where outcome = 'completed'"
        ).fetchall()
    assert Counter(status for _, _, status in rows) == {"solved": tasks}
    assert [prompt for prompt, answer, _ in rows if answer != expected_answer(prompt)] == []
    assert running == (0,)
    assert fences == attempts == tasks


def assert_no_window_is_over(folder: Path, window_s: float, rpm: int) -> None:
    for model in MODELS:
        arrivals = sorted(call.arrived_monotonic for call in read_calls(folder / "calls.jsonl") if call.model == model)
        nearest_s = min(
            (later - first for first, later in zip(arrivals, arrivals[rpm:], strict=False)), default=window_s
        )
        assert nearest_s >= window_s, f"more than {rpm} calls of {model} in {window_s} s"


def assert_quiet(server: Server, window_s: float) -> None:
    query = """
        select e.because, (select extract(epoch from min(a.granted_at) - e.began_at) from llmqueue.attempt a
                            where a.fence > e.fence_floor)
          from llmqueue.epoch e order by e.epoch_no
    """
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        [_, (because, quiet_s)] = conn.execute(query).fetchall()
    print(f"\nfirst grant {quiet_s:.2f} s after the new epoch began (a window of {window_s:.0f} s)")
    assert because == "timeline"
    assert quiet_s > window_s
