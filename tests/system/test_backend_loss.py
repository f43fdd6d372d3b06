"""The backend fails or is unreachable, or one task of many fails: no other task becomes a dead letter (design I11)."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import psycopg
import pytest
from aiohttp import web

from tests.support import processes
from tests.support.cli import run_cli
from tests.support.eventually import eventually
from tests.support.serving import serving

pytestmark = [pytest.mark.system, pytest.mark.anyio]


@dataclass
class Stub:
    """A backend that answers, or not, as the test says; `calls` has the prompts, in order."""

    status: int = 200
    fails: Callable[[dict[str, str]], int | None] = lambda _: None
    calls: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def single(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.calls.append(body["prompt"])
        status = self.fails(body) or self.status
        if status != 200:
            return web.Response(status=status, text="Bad Gateway")
        return web.json_response({"answer": f"re: {body['prompt']}"})

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with serving({"/single": self.single}, self.port) as self.port:
            yield


def prepare(conn: psycopg.Connection, tasks: int, *models: str, rpm: int = 60_000, **columns: object) -> None:
    for model in models or ("a", "b", "c"):
        conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, %s)", (model, rpm))
    conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, %s) n", (tasks,))


def solved(conn: psycopg.Connection) -> int:
    return int(conn.execute("select count(*) from tasks where status = 'solved'").fetchone()[0])


async def until(is_so: Callable[[], object], timeout_s: float = 90) -> None:
    await anyio.to_thread.run_sync(lambda: eventually(is_so, timeout_s))


async def ends(worker: processes.Process, timeout_s: float) -> int:
    return await anyio.to_thread.run_sync(lambda: worker.wait(timeout_s))


def counted(conn: psycopg.Connection, error_class: str) -> int:
    """Attempts that failed so and were counted."""
    query = "select count(*) from llmqueue.attempt where error_class = %s and outcome <> 'refused'"
    return int(conn.execute(query, (error_class,)).fetchone()[0])


# --- outages --------------------------------------------------------------------------------------------------------


async def outage_of_502(
    installed: str, conn: psycopg.Connection, folder: Path, tasks: int, lasts_s: float, most_calls: int
) -> None:
    stub = Stub(status=502)
    prepare(conn, tasks)
    conn.execute("update tasks set max_attempts = 1 where id % 7 = 0")  # one counted failure would bury these
    async with stub.serving():
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=stub.url)
        with processes.workers(folder, 2, "--drain", env=env) as started:
            began = time.monotonic()
            await until(lambda: all("backend_failing" in worker.output for worker in started))
            in_flight = len(stub.calls)
            await anyio.sleep(max(0.0, lasts_s - (time.monotonic() - began)))
            tried = len(stub.calls) - in_flight
            await until(lambda: "the backend fails its calls" in run_cli(installed, "status").out)
            stub.status = 200
            assert [await ends(worker, 600) for worker in started] == [0, 0], started[0].output[-3000:]

    assert tried <= most_calls, "single calls, with growing pauses"
    assert conn.execute("select status, count(*) from tasks group by 1").fetchall() == [("solved", tasks)]
    assert counted(conn, "http_502") == 0
    assert conn.execute("select max(attempts) from tasks").fetchone() == (1,)
    # one that still waits for its next try while the other drains the rest ends without a call of its own
    found_back = [worker.output.count('"backend_back"') for worker in started]
    assert [worker.output.count('"backend_failing"') for worker in started] == [1, 1]
    assert max(found_back) == 1


async def test_while_all_calls_end_with_502_single_calls_try_and_no_attempt_is_counted(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    await outage_of_502(installed, conn, tmp_path, tasks=100, lasts_s=3, most_calls=40)


@pytest.mark.slow
async def test_ten_minutes_of_502_bury_nothing_of_a_backlog_of_10_000(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    await outage_of_502(installed, conn, tmp_path, tasks=10_000, lasts_s=600, most_calls=2 * 60)


async def refused_connections(
    installed: str, conn: psycopg.Connection, folder: Path, tasks: int, lasts_s: float
) -> None:
    stub = Stub()
    prepare(conn, tasks)
    conn.execute("update tasks set max_attempts = 1")
    async with stub.serving():
        pass  # now nobody listens there
    env = processes.environment(DATABASE_URL=installed, BACKEND_URL=stub.url)
    with processes.workers(folder, 2, "--drain", env=env) as started:
        await until(lambda: all("backend_unreachable" in worker.output for worker in started))
        [key] = conn.execute("select min(id) from tasks").fetchone()
        await until(
            lambda: (
                conn.execute("select count(*) from llmqueue.worker_status where backend_trouble is not null").fetchone()
                == (2,)
            )
        )
        said = [run_cli(installed, "why", str(key)).out, run_cli(installed, "status").out]
        await anyio.sleep(lasts_s)
        async with stub.serving():
            assert [await ends(worker, 600) for worker in started] == [0, 0], started[0].output[-3000:]

    for page in said:
        assert "cannot be reached: 127.0.0.1" in page
    assert re.search(r"waits for the backend, which .* \(since .* workers .*:\d+, .*:\d+\)", said[0]), said[0]
    assert "2 of 2 workers" in said[1]
    assert conn.execute("select status, count(*) from tasks group by 1").fetchall() == [("solved", tasks)]
    assert Counter(stub.calls).most_common(1)[0][1] == 1, "nothing was sent to nobody"
    assert conn.execute("select count(*) from llmqueue.worker_status where backend_trouble is not null").fetchone() == (
        0,
    )


async def test_while_connections_are_refused_why_and_status_say_so_and_nothing_is_lost(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    await refused_connections(installed, conn, tmp_path, tasks=100, lasts_s=0.5)


@pytest.mark.slow
async def test_ten_minutes_of_refused_connections_bury_nothing_of_a_backlog_of_10_000(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    await refused_connections(installed, conn, tmp_path, tasks=10_000, lasts_s=600)


@pytest.mark.slow
async def test_an_outage_in_the_middle_gives_the_failures_that_opened_the_circuit_back(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    stub = Stub()
    prepare(conn, 250, rpm=1200)
    conn.execute("update tasks set max_attempts = 1")
    async with stub.serving():
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=stub.url)
        with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
            await until(lambda: solved(conn) > 60)
            stub.status = 502
            await until(lambda: "backend_failing" in worker.output)
            await until(lambda: conn.execute("select count(*) from tasks where status = 'failed'").fetchone() == (0,))
            stub.status = 200
            assert await ends(worker, 300) == 0, worker.output[-3000:]

    assert solved(conn) == 250
    assert counted(conn, "http_502") == 0


@pytest.mark.slow
async def test_one_broken_model_is_closed_and_the_others_go_on(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    is_broken = True
    stub = Stub(fails=lambda body: 500 if body["model"] == "broken" and is_broken else None)
    prepare(conn, 0, "broken", "fine", rpm=1200)
    conn.execute(
        "insert into tasks (prompt, model, max_attempts) select 'f' || n, 'fine', 1 from generate_series(1, 60) n"
    )
    async with stub.serving():
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=stub.url)
        with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
            await until(lambda: solved(conn) > 0)  # it is known now that the backend is there
            conn.execute(
                "insert into tasks (prompt, model, max_attempts)"
                " select 'b' || n, 'broken', 1 from generate_series(1, 30) n"
            )
            await until(lambda: "model_cooldown" in worker.output)
            await until(lambda: solved(conn) == 60)
            assert "backend_failing" not in worker.output
            is_broken = False
            assert await ends(worker, 300) == 0, worker.output[-3000:]

    assert solved(conn) == 90
    assert counted(conn, "http_500") == 0


# --- one task of many -----------------------------------------------------------------------------------------------


async def test_a_task_that_always_gets_502_among_good_ones_ends_as_a_dead_letter(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    stub = Stub(fails=lambda body: 502 if body["prompt"] == "p1" else None)
    prepare(conn, 120, rpm=3000)
    conn.execute("update tasks set max_attempts = 3 where prompt = 'p1'")
    async with stub.serving():
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=stub.url)
        with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
            assert await ends(worker, 300) == 0, worker.output[-3000:]
        [key] = conn.execute("select id from tasks where prompt = 'p1'").fetchone()
        shown = run_cli(installed, "tasks", "show", str(key)).out

    assert conn.execute("select status, attempts from tasks where prompt = 'p1'").fetchone() == ("failed", 3)
    assert solved(conn) == 119
    assert stub.calls.count("p1") == 3
    story = [line for line in shown.splitlines() if line.startswith("attempt ") and "\treleased " not in line]
    assert len(story) == 3
    assert all("sent " in line and "http_502: HTTP 502 Bad Gateway" in line for line in story), story


ADAPTER = """
    import os
    from llmqueue.backend import sending
    from llmqueue.types import Answer, Usage

    class Backend:
        async def call(self, call):
            sending.send_now()
            if call.prompt == "poison":
                os._exit(9)
            return Answer(f"re: {call.prompt}", Usage())

        async def probe(self):
            return None

        async def aclose(self):
            pass

    def make(base_url, secret):
        return Backend()
"""


async def test_a_task_that_kills_its_worker_ends_as_a_dead_letter_and_the_others_are_unharmed(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "deadly.py").write_text(textwrap.dedent(ADAPTER))
    prepare(conn, 50)
    conn.execute("insert into tasks (prompt, priority, max_attempts) values ('poison', 50, 3)")
    env = processes.environment(DATABASE_URL=installed, BACKEND="deadly:make", LEASE_S="1") | {
        "PYTHONPATH": str(tmp_path)
    }

    deaths = 0
    while conn.execute("select status from tasks where prompt = 'poison'").fetchone() != ("failed",):
        worker = processes.start(tmp_path / f"worker{deaths}.out", "worker", env=env)
        try:
            await until(
                lambda worker=worker: (  # type: ignore[misc]
                    worker.popen.poll() is not None
                    or conn.execute("select status from tasks where prompt = 'poison'").fetchone() == ("failed",)
                )
            )
            if worker.popen.poll() is not None:
                assert worker.popen.poll() == 9, worker.output
                deaths += 1
            else:
                await until(lambda: solved(conn) == 50)
        finally:
            worker.stop()

    assert deaths == 3, "once per attempt"
    assert solved(conn) == 50
    outcomes = conn.execute(
        "select a.outcome from llmqueue.attempt a join tasks t on t.id = a.task_id where t.prompt = 'poison'"
    ).fetchall()
    assert outcomes == [("lost",)] * 3


async def many_that_fail(installed: str, conn: psycopg.Connection, folder: Path, failing: int) -> None:
    stub = Stub(fails=lambda body: 400 if body["prompt"].startswith("bad") else None)
    prepare(conn, 0, rpm=600_000)
    conn.execute("insert into tasks (prompt, model) select 'bad ' || n, 'a' from generate_series(1, %s) n", (failing,))
    conn.execute("insert into tasks (prompt, model) values ('good', 'a')")
    async with stub.serving():
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=stub.url)
        with processes.workers(folder, 1, "--drain", env=env) as [worker]:
            assert await ends(worker, 600) == 0, worker.output[-3000:]

    assert conn.execute("select status, count(*) from tasks group by 1 order by 1").fetchall() == [
        ("failed", failing),
        ("solved", 1),
    ]


@pytest.mark.slow
async def test_many_failing_tasks_do_not_starve_a_good_one(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    await many_that_fail(installed, conn, tmp_path, 500)


@pytest.mark.slow
async def test_10_000_failing_tasks_do_not_starve_a_good_one(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    await many_that_fail(installed, conn, tmp_path, 10_000)


@pytest.mark.slow
async def test_unreadable_replies_are_retried_without_holding_up_the_good_half(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    prepare(conn, 0, rpm=60_000)
    conn.execute(
        "insert into tasks (prompt) select 'p' || n || ' [[fault:unreadable x1]]' from generate_series(1, 50) n"
    )
    conn.execute("insert into tasks (prompt) select 'q' || n from generate_series(1, 50) n")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        done = await anyio.to_thread.run_sync(lambda: processes.run("worker", "--drain", env=env))

    assert done.returncode == 0, done.stderr[-3000:]
    assert solved(conn) == 100
    assert conn.execute("select attempts, count(*) from tasks group by 1 order by 1").fetchall() == [(1, 50), (2, 50)]
    assert "backend_failing" not in done.stderr, "a 200 is no 5xx: the backend is there"


@pytest.mark.slow
async def test_a_row_whose_update_raises_at_claim_and_one_at_complete_stop_nobody_of_10_000(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    stub = Stub()
    prepare(conn, 10_000, rpm=600_000)
    conn.execute("""
        create function no() returns trigger language plpgsql as $$
        begin
            if new.prompt = 'p5000' or (new.prompt = 'p5001' and new.answer is not null) then
                raise exception 'not this one';
            end if;
            return new;
        end $$;
        create trigger no before update on tasks for each row execute function no();""")
    async with stub.serving():
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=stub.url)
        began = time.monotonic()
        with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
            assert await ends(worker, 600) == 1
        print(f"9,998 of 10,000 in {time.monotonic() - began:.1f} s", file=sys.stderr)

    assert solved(conn) == 9998
    assert conn.execute("select count(*) from llmqueue.quarantine").fetchone() == (2,)


async def test_a_hanging_call_ends_with_its_own_class_and_tasks_show_tells_it(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, timeout) values ('a', 6000, '1 s')")
    conn.execute("insert into tasks (prompt, max_attempts) values ('[[fault:hang]]', 1), ('[[fault:drip]]', 1)")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        done = await anyio.to_thread.run_sync(lambda: processes.run("worker", "--drain", env=env))
        shown = run_cli(installed, "tasks", "show", "1", "--json").out
        text = run_cli(installed, "tasks", "show", "1").out

    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        conn.execute("select status, attempts, error from tasks").fetchall()
        == [("failed", 1, "timeout: no answer within 1 s")] * 2
    )
    [*_, attempt] = json.loads(shown)["attempts"]  # one before may have been late on a busy machine
    assert (attempt["outcome"], attempt["error_class"]) == ("buried", "timeout")
    assert attempt["sent_after_s"] is not None
    assert attempt["latency_s"] >= 0.5
    assert any(line.startswith("attempt 1\t") and "timeout: no answer within 1 s" in line for line in text.splitlines())
