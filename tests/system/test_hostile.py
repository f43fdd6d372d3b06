"""Rows, replies and other sessions that could crash a worker or misplace an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp

import anyio
import psycopg
import pytest
from aiohttp import web

from llmqueue.fake_backend import expected_answer
from llmqueue.install.adopt import AdoptionSpec, install
from tests.support import processes
from tests.support.eventually import eventually
from tests.support.serving import serving

pytestmark = [pytest.mark.system, pytest.mark.anyio]


@asynccontextmanager
async def stub(replies: dict[str, web.Response]) -> AsyncIterator[str]:
    """A backend that answers a prompt with the reply given for it, others with their own prompt."""

    async def single(request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["prompt"]
        reply = replies.get(prompt) if isinstance(prompt, str) else None
        if reply is None:
            return web.json_response({"answer": f"re: {prompt}"})
        return web.Response(body=reply.body, status=reply.status, headers=reply.headers)

    async with serving({"/single": single}) as port:
        yield f"http://127.0.0.1:{port}"


async def drain(dsn: str, url: str, **settings: str) -> tuple[int, str]:
    env = processes.environment(DATABASE_URL=dsn, BACKEND_URL=url, **settings)
    done = await anyio.to_thread.run_sync(lambda: processes.run("worker", "--drain", env=env))
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.returncode, done.stdout + done.stderr


async def test_replies_that_cannot_be_stored_hurt_nobody_else(installed: str, conn: psycopg.Connection) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 60000)")
    deep = '{"answer": ' + "[" * 3000 + "]" * 3000 + "}"
    replies = {
        "huge integer": web.json_response({"answer": 10**30}),
        "nul": web.json_response({"answer": "a\x00b"}),
        "surrogate": web.Response(body=b'{"answer": "\\ud800"}', content_type="application/json"),
        "not a nul": web.json_response({"answer": {"a": "\\u0000 quoted"}}),
        "deep": web.Response(text=deep, content_type="application/json"),
        "odd charset": web.Response(body=b"+2AA-", status=400, headers={"Content-Type": "text/plain; charset=utf-7"}),
        "rot13": web.Response(body=b"abc", status=400, headers={"Content-Type": "text/plain; charset=rot13"}),
    }
    for prompt in [*replies, *(f"good {n}" for n in range(20))]:
        conn.execute("insert into tasks (prompt, max_attempts) values (%s, 1)", (prompt,))
    async with stub(replies) as url:
        code, _ = await drain(installed, url)

    assert code == 0
    found = {p: (s, a, e) for p, s, a, e in conn.execute("select prompt, status, answer, error from tasks").fetchall()}
    assert all(found[f"good {n}"][:2] == ("solved", f"re: good {n}") for n in range(20))
    assert found["huge integer"][:2] == ("solved", str(10**30))
    assert json.loads(found["not a nul"][1]) == {"a": "\\u0000 quoted"}
    ends = {
        "nul": "unstorable_answer",
        "surrogate": "unstorable_answer",
        "odd charset": "http_400",
        "rot13": "http_400",
        "deep": "unreadable_reply",
    }
    for prompt, error_class in ends.items():
        assert found[prompt][0] == "failed", prompt
        assert found[prompt][2].startswith(error_class), (prompt, found[prompt])


async def test_rows_that_cannot_be_read_are_buried_alone(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "create table tasks (id text primary key, prompt json, answer text, status text default 'unsolved')"
        )
        install(database, AdoptionSpec())
        conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 60000)")
        bad = {"inf": '{"t": 1e400}', "surrogate": '"\\ud800"', "deep": "[" * 3000 + "]" * 3000, "null": None}
        for key, prompt in bad.items():
            conn.execute("insert into tasks (id, prompt) values (%s, %s)", (key, prompt))
        keys = ["plain", "Straße", "задача", "a\nb", "k" * 2000, "日本 é"]
        for key in keys:
            conn.execute("insert into tasks (id, prompt) values (%s, %s)", (key, json.dumps([{"content": key}])))
        async with stub({}) as url:
            code, _ = await drain(database, url)

        assert code == 0
        assert dict(conn.execute("select id, status from tasks").fetchall()) == (
            dict.fromkeys(bad, "failed") | dict.fromkeys(keys, "solved")
        )
        assert conn.execute("select sum(calls) from llmqueue.ledger_cell where calls < 0").fetchone() == (-4,)


async def test_an_answer_does_not_reach_a_new_row_under_an_old_key(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    conn.execute(
        "insert into llmqueue.model_config (model, rpm, max_concurrency) values ('groq-llama-2-70b', 60000, 1)"
    )
    conn.execute("insert into tasks (prompt) values ('old')")
    with processes.backend(tmp_path, "--speed", "1") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
            eventually(lambda: conn.execute("select status from tasks").fetchall() == [("running",)])
            conn.execute("truncate tasks restart identity")
            conn.execute("insert into tasks (prompt) values ('new')")
            assert worker.wait(60) == 0

    assert conn.execute("select id, answer from tasks").fetchall() == [(1, expected_answer("new"))]
    assert conn.execute("select outcome, answer from llmqueue.attempt order by fence limit 1").fetchone() == (
        "late",
        expected_answer("old"),
    )


async def test_a_trigger_that_fails_for_one_row_whatever_its_class_stops_nobody(
    installed: str, conn: psycopg.Connection
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 60000)")
    conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, 30) n")
    conn.execute("""
        create function no() returns trigger language plpgsql as $$
        begin
            if new.prompt = 'p7' and new.answer is not null then perform no_such_function(); end if;
            if new.prompt = 'p8' and new.answer is not null then return null; end if;
            return new;
        end $$;
        create trigger no before update on tasks for each row execute function no();""")
    async with stub({}) as url:
        code, said = await drain(installed, url)

    assert code == 1
    assert "2 quarantined" in said
    assert conn.execute("select count(*) from tasks where status = 'solved'").fetchone() == (28,)
    kept = conn.execute("select answer from llmqueue.attempt where outcome = 'quarantined' order by 1").fetchall()
    assert kept == [("re: p7",), ("re: p8",)]


async def test_a_row_at_fault_that_is_settled_alone_holds_nobody_up(installed: str, conn: psycopg.Connection) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm, max_concurrency) values ('a', 60000, 1)")
    conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, 6) n")
    conn.execute("""
        create function no() returns trigger language plpgsql as $$
        begin
            if new.prompt = 'p2' and new.answer is not null then perform no_such_function(); end if;
            return new;
        end $$;
        create trigger no before update on tasks for each row execute function no();""")
    async with stub({}) as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(Path(mkdtemp()), 1, env=env) as [worker]:
            await anyio.to_thread.run_sync(
                lambda: eventually(
                    lambda: (
                        conn.execute("select count(*) from llmqueue.attempt where outcome is null").fetchone() == (1,)
                        and "settle_failed" in worker.output
                    )
                )
            )
            conn.execute("update llmqueue.model_config set max_concurrency = null")
            await anyio.to_thread.run_sync(
                lambda: eventually(
                    lambda: conn.execute("select count(*) from tasks where status = 'solved'").fetchone() == (5,)
                )
            )
            assert await anyio.to_thread.run_sync(worker.stop) == 0

    assert conn.execute("select answer from llmqueue.attempt where outcome = 'quarantined'").fetchone() == ("re: p2",)


async def test_odd_settings_of_the_database_are_no_trouble(installed: str, conn: psycopg.Connection) -> None:
    name = conn.info.dbname
    odd = {
        "datestyle": "German",
        "default_transaction_isolation": "repeatable read",
        "search_path": "nowhere",
        "synchronous_commit": "off",
        "intervalstyle": "sql_standard",
        "timezone": "Asia/Kathmandu",
    }
    for setting, value in odd.items():
        conn.execute(f"alter database {name} set {setting} = '{value}'")
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 60000)")
    conn.execute("insert into public.tasks (prompt) values ('x')")
    async with stub({}) as url:
        code, said = await drain(installed, url)

    assert code == 0, said
    assert conn.execute("select answer from public.tasks").fetchone() == ("re: x",)
