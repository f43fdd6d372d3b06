"""The worker as its user runs it: real processes, a real Postgres, and the simulated backend's log as evidence."""

from __future__ import annotations

import re
import signal
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from llmqueue.fake_backend import expected_answer
from llmqueue.fake_backend.call_log import read_calls, worst_window
from tests.support import processes
from tests.support.eventually import eventually

pytestmark = pytest.mark.system


def add_tasks(conn: psycopg.Connection, how_many: int, prompt: str = "prompt {}") -> None:
    with conn.cursor().copy("copy tasks (prompt) from stdin") as copy:
        for number in range(how_many):
            copy.write_row((prompt.format(number),))


def add_models(conn: psycopg.Connection, *names: str, rpm: int = 60000) -> None:
    for name in names:
        conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, %s)", (name, rpm))


def states(conn: psycopg.Connection) -> dict[str, int]:
    return dict(conn.execute("select status, count(*) from tasks group by 1").fetchall())


def assert_all_right(conn: psycopg.Connection, how_many: int) -> None:
    rows = conn.execute("select prompt, answer from tasks where status = 'solved'").fetchall()
    assert len(rows) == how_many
    assert [prompt for prompt, answer in rows if answer != expected_answer(prompt)] == []


def test_a_killed_worker_costs_its_tasks_nothing_but_time(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    add_models(conn, "a", "b", "c", rpm=600)
    add_tasks(conn, 400)
    with processes.backend(tmp_path, "--any-model", "--speed", "10") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url, LEASE_S="3")
        with processes.workers(tmp_path, 3, "--drain", env=env) as (victim, *others):
            eventually(
                lambda: (
                    conn.execute("select count(*) from llmqueue.attempt where outcome = 'completed'").fetchone()[0] > 50
                )
            )
            busy = conn.execute(
                """select count(*) from llmqueue.attempt a join llmqueue.worker w using (worker)
                                   where a.ended_at is null and w.name like %s""",
                (f"%:{victim.popen.pid}",),
            ).fetchone()[0]
            victim.stop(signal.SIGKILL)
            assert [other.wait(120) for other in others] == [0, 0]

    assert busy > 0, "the victim was to be killed under load"
    assert_all_right(conn, 400)
    calls = read_calls(tmp_path / "calls.jsonl")
    for model in "abc":
        assert worst_window([call.arrived_monotonic for call in calls if call.model == model]) <= 600
    lost = conn.execute("select count(*) from llmqueue.attempt where outcome = 'lost'").fetchone()[0]
    assert 0 < lost <= busy + 200
    attempts = conn.execute("select sum(attempts) from tasks").fetchone()[0]
    assert attempts == 400 + lost
    assert Counter(call.key for call in calls).most_common(1)[0][1] <= 2
    assert conn.execute("select count(*) from llmqueue.worker").fetchone()[0] == 0


@pytest.mark.slow
def test_a_changed_limit_holds_from_its_commit(installed: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    window_s = 2.0
    conn.execute("update llmqueue.limiter set window_s = %s", (window_s,))
    add_models(conn, "a", rpm=60)
    add_tasks(conn, 3000)
    changes: list[tuple[float, int]] = []
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 2, env=env) as started:
            for rpm in (60, 15, 120, 0, 90):
                conn.execute("update llmqueue.model_config set rpm = %s", (rpm,))
                [now] = conn.execute("select extract(epoch from clock_timestamp())::float8").fetchone()
                changes.append((now, rpm))
                # long enough for the window to fill and to empty again
                time.sleep(2.5 * window_s)
            assert [process.stop() for process in started] == [0, 0]

    arrivals = sorted(call.arrived_at for call in read_calls(tmp_path / "calls.jsonl"))
    for (since, rpm), (until, _) in zip(changes, [*changes[1:], (float("inf"), 0)], strict=True):
        trailing = [
            sum(1 for other in arrivals if at - window_s < other <= at) for at in arrivals if since + 0.75 < at < until
        ]
        assert max(trailing, default=0) <= rpm
        assert max(trailing, default=0) >= 0.5 * rpm, "the new limit is used"


def test_a_row_that_somebody_holds_keeps_no_slot(installed: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    add_models(conn, "a")
    add_tasks(conn, 1, "held")
    with processes.backend(tmp_path, "--any-model", "--speed", "4") as url, psycopg.connect(installed) as holder:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url, CONCURRENCY="1")
        with processes.workers(tmp_path, 1, env=env):
            eventually(lambda: states(conn) == {"running": 1})
            holder.execute("select from tasks where prompt = 'held' for update")
            add_tasks(conn, 1, "free")
            eventually(lambda: states(conn) == {"running": 1, "solved": 1})
            holder.rollback()
            eventually(lambda: states(conn) == {"solved": 2})

    assert len(read_calls(tmp_path / "calls.jsonl")) == 2


def test_sigterm_gives_back_what_was_not_sent_and_waits_for_the_rest(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    add_models(conn, "a", rpm=600)
    add_tasks(conn, 300)
    with processes.backend(tmp_path, "--any-model", "--speed", "10") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(
                lambda: conn.execute("select count(*) from llmqueue.attempt where outcome is null").fetchone()[0] > 5
            )
            assert worker.stop(signal.SIGTERM) == 0

    calls = read_calls(tmp_path / "calls.jsonl")
    now = states(conn)
    assert now.get("running", 0) == 0
    assert now["solved"] == len(calls)
    assert conn.execute("select sum(attempts) from tasks").fetchone()[0] == len(calls)
    assert '"event": "worker_stopped"' in worker.output


def test_drain_s_over_sent_tasks_go_back_and_the_worker_ends_with_0(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    add_models(conn, "a")
    add_tasks(conn, 3, prompt="[[fault:hang]] {}")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url, DRAIN_S="0.5")
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: conn.execute("select count(*) from llmqueue.attempt").fetchone()[0] == 3)
            eventually(lambda: states(conn) == {"running": 3})
            assert worker.stop(signal.SIGINT) == 0

    assert states(conn) == {"delayed": 3}
    rows = conn.execute("select outcome, error_class from llmqueue.attempt").fetchall()
    assert set(rows) <= {("retried", "worker_stopped"), ("released", "worker_stopped")}


def test_a_second_ctrl_c_ends_at_once(installed: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    add_models(conn, "a")
    add_tasks(conn, 1, prompt="[[fault:hang]] {}")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: states(conn) == {"running": 1})
            worker.popen.send_signal(signal.SIGINT)
            eventually(lambda: "worker_stopping" in worker.output)
            assert worker.stop(signal.SIGINT, timeout_s=10) == 130


@pytest.mark.slow
def test_an_unreachable_backend_is_said_once_and_costs_no_attempt(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    add_models(conn, "a")
    add_tasks(conn, 200)
    with processes.backend(tmp_path, "--any-model", "--speed", "10") as url:
        port = int(url.rsplit(":", 1)[1])
    env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
    (tmp_path / "calls.jsonl").unlink()
    with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
        eventually(lambda: "backend_unreachable" in worker.output)
        assert conn.execute("select count(*) from llmqueue.attempt").fetchone()[0] == 0
        with processes.backend(tmp_path, "--any-model", "--speed", "2", port=port):
            eventually(lambda: states(conn).get("solved", 0) > 20)
        add_tasks(conn, 300, prompt="another {}")
        eventually(lambda: worker.output.count("backend_unreachable") == 2)
        with processes.backend(tmp_path, "--any-model", "--instant", port=port):
            assert worker.wait(120) == 0, worker.output[-3000:]

    assert worker.output.count("backend_unreachable") == 2
    assert_all_right(conn, 500)
    unreachable = conn.execute("""select count(*) from llmqueue.attempt
                                  where error_class like 'unreachable%' and outcome <> 'released'""").fetchone()[0]
    assert unreachable == 0


def test_each_failure_is_somebodys_fault(installed: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    add_models(conn, "a")
    expected = {
        "[[fault:400]]": ("failed", 1, "buried", "http_400"),
        "[[fault:404]]": ("failed", 1, "buried", "http_404"),
        "[[fault:500 x1]]": ("solved", 2, "retried", "http_500"),
        "[[fault:reset x1]]": ("solved", 2, "retried", "connection_lost"),
        "[[fault:unreadable x1]]": ("solved", 2, "retried", "unreadable_reply"),
        "[[fault:429 x1]]": ("solved", 1, "refused", "rate_limited"),
        "[[fault:503 x1]]": ("solved", 1, "refused", "unavailable"),
        "[[answer:nul \\u0000]]": ("failed", 1, "buried", "unstorable_answer"),
    }
    for prompt in expected:
        conn.execute("insert into tasks (prompt, max_attempts) values (%s, 3)", (prompt,))
    conn.execute("insert into tasks (prompt, max_attempts) values ('[[fault:500]]', 2)")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        drained = processes.run("worker", "--drain", env=env)
    assert drained.returncode == 0, drained.stderr

    for prompt, (status, attempts, outcome, error_class) in expected.items():
        row = conn.execute("select id, status, attempts from tasks where prompt = %s", (prompt,)).fetchone()
        assert row[1:] == (status, attempts), prompt
        first = conn.execute(
            """select outcome, error_class from llmqueue.attempt where task_id = %s
                                order by fence limit 1""",
            (row[0],),
        ).fetchone()
        assert first == (outcome, error_class), prompt
    assert conn.execute("""select status, attempts, error from tasks where prompt = '[[fault:500]]'""").fetchone()[
        :2
    ] == ("failed", 2)
    assert (
        conn.execute("select answer from llmqueue.attempt where error_class = 'unstorable_answer'").fetchone()[0]
        == '"nul \\u0000"'
    )


def test_an_owners_trigger_that_raises_on_one_row_stops_nobody_else(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    add_models(conn, "a")
    add_tasks(conn, 300)
    conn.execute("""
        create function no() returns trigger language plpgsql as $$
        begin
            if new.prompt = 'prompt 7' or (new.prompt = 'prompt 150' and new.answer is not null) then
                raise exception 'not this one';
            end if;
            return new;
        end $$;
        create trigger no before update on tasks for each row execute function no();""")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        drained = processes.run("worker", "--drain", env=env)
        status = processes.run("status", env=env)

    assert drained.returncode == 1, drained.stdout + drained.stderr
    assert_all_right(conn, 298)
    aside = conn.execute("""select t.prompt, s.step, s.reason
                              from llmqueue.quarantine s join tasks t on t.id = s.task_id
                            order by 1""").fetchall()
    assert aside == [("prompt 150", "complete", "not this one"), ("prompt 7", "claim", "not this one")]
    [kept] = conn.execute("select answer from llmqueue.attempt where outcome = 'quarantined'").fetchone()
    assert kept == expected_answer("prompt 150")
    assert "quarantined" in status.stdout


def test_drain_names_what_cannot_run(installed: str, conn: psycopg.Connection, tmp_path: Path) -> None:
    add_models(conn, "a", "paused")
    conn.execute("update llmqueue.model_config set enabled = false where model = 'paused'")
    conn.execute("""insert into tasks (prompt, model, run_at) values
        ('x', 'nobody', null), ('y', 'paused', null), ('z', null, now() + interval '1 hour'), ('ok', 'a', null)""")
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        drained = processes.run("worker", "--drain", env=env)

    assert drained.returncode == 1
    last = drained.stdout.strip().splitlines()[-1]
    assert re.search(r"1 its model is not configured \(lane nobody\): 1", last), last
    assert re.search(r"1 its model is paused or not served here \(lane paused\): 2", last), last
    assert re.search(r"1 due later: 3", last), last
    assert states(conn) == {"unsolved": 3, "solved": 1}


def test_a_json_prompt_is_sent_as_json_and_hard_text_arrives_as_it_is(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    add_models(conn, "a")
    prompts = [
        "",
        "x" * 150_000,
        "👩‍👩‍👧 🏴‍☠️ " * 20,
        "مرحبا שלום",
        "line\u2028sep\u0085",
        '{"looks": "like json"}',
        "  spaces \n",
    ]
    for prompt in prompts:
        conn.execute("insert into tasks (prompt) values (%s)", (prompt,))
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        drained = processes.run("worker", "--drain", env=env)

    assert drained.returncode == 0, drained.stderr
    assert_all_right(conn, len(prompts))


def test_setting_an_ended_task_back_by_plain_sql_runs_it_again(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    add_models(conn, "a")
    add_tasks(conn, 1)
    with processes.backend(tmp_path, "--any-model", "--instant") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 1, env=env) as [worker]:
            eventually(lambda: states(conn) == {"solved": 1})
            conn.execute("update tasks set status = 'unsolved', answer = null")
            eventually(lambda: states(conn) == {"solved": 1})
            assert worker.stop() == 0

    assert conn.execute("select attempts, restarts from tasks").fetchone() == (1, 1)
    assert [call.key for call in read_calls(tmp_path / "calls.jsonl")] == ["1:0", "1:1"]
