"""dispatch = 'batch' end to end: each task of a call is charged, answered and retried by itself (I4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from aiohttp import web

from tests.support import processes
from tests.support.cli import run_cli
from tests.support.serving import serving

pytestmark = [pytest.mark.system, pytest.mark.anyio]


@dataclass
class Backend:
    """Answers singles, and batches from the second one on; the first fails as a whole. One prompt has no result."""

    singles: list[str] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)

    async def single(self, request: web.Request) -> web.StreamResponse:
        prompt = (await request.json())["prompt"]
        self.singles.append(prompt)
        return web.json_response({"answer": f"re: {prompt}", "usage": {"prompt_tokens": 1, "completion_tokens": 2}})

    async def batch(self, request: web.Request) -> web.StreamResponse:
        items = (await request.json())["items"]
        self.batches.append([item["prompt"] for item in items])
        if len(self.batches) == 1:
            return web.Response(status=502)
        results = [
            {"id": item["id"], "answer": f"re: {item['prompt']}", "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
            for item in reversed(items)
            if item["prompt"] != "p77"
        ]
        return web.json_response({"results": results})


async def test_a_backlog_goes_out_in_batches_and_what_failed_in_one_comes_again_alone(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    backend = Backend()
    asked = ("a", "--rpm", "60000", "--dispatch", "batch", "--max-batch", "8")
    assert run_cli(installed, "models", "set", *asked).code == 0
    conn.execute("insert into tasks (prompt) select 'p' || n from generate_series(1, 200) n")
    conn.execute("insert into tasks (prompt, priority) values ('hot', 100)")
    async with serving({"/single": backend.single, "/batch": backend.batch}) as port:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=f"http://127.0.0.1:{port}")
        with processes.workers(tmp_path, 1, "--drain", env=env) as [worker]:
            assert await anyio.to_thread.run_sync(lambda: worker.wait(120)) == 0, worker.output[-3000:]

    wrong = conn.execute("select count(*) from tasks where status <> 'solved' or answer <> 're: ' || prompt").fetchone()
    assert wrong == (0,)
    assert max(map(len, backend.batches)) <= 8
    assert sum(map(len, backend.batches)) >= 150
    assert "hot" in backend.singles
    failed = {*backend.batches[0], "p77"} - {"hot"}
    assert failed <= set(backend.singles), "what failed in a batch comes again alone"
    sent = sum(map(len, backend.batches)) + len(backend.singles)
    charged = conn.execute(
        "select (select sum(calls) from llmqueue.ledger_grant) + coalesce((select sum(calls) from llmqueue.ledger_cell"
        " where calls < 0), 0)"
    ).fetchone()
    assert charged == (sent,), "every task of a batch is a call"
    attempts: dict[Any, Any] = dict(conn.execute("select attempts, count(*) from tasks group by 1").fetchall())
    assert attempts == {1: 201 - len(failed), 2: len(failed)}
    assert conn.execute("select count(*), sum(input_tokens) from tasks").fetchone() == (201, 201)
