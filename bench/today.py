"""The process that llmqueue replaces, as a program: python -m bench.today DSN URL MODEL...

A run fetches all unsolved tasks and groups them by model. Twenty workers send them to /batch in batches of ten; after
30 minutes the run is aborted. The next run begins when all workers have ended. A task of a pool goes to a random model
of that pool. Tasks that the backend refuses or fails are left for the next run.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections import defaultdict
from collections.abc import Sequence

import httpx
import psycopg
from psycopg.rows import TupleRow

from bench.bound import POOLS

WORKERS = 20
BATCH = 10
RUN_S = 30 * 60

Connection = psycopg.Connection[TupleRow]
Batch = tuple[str, list[tuple[int, str]]]


async def main(dsn: str, url: str, models: Sequence[str]) -> None:
    rng = random.Random(1)
    with psycopg.connect(dsn, autocommit=True) as conn:
        async with httpx.AsyncClient(base_url=url, timeout=None) as http:
            while batches := _fetch(conn, models, rng):
                async with asyncio.TaskGroup() as run:
                    for _ in range(WORKERS):
                        run.create_task(_worker(conn, http, batches, asyncio.get_running_loop().time() + RUN_S))


def _fetch(conn: Connection, models: Sequence[str], rng: random.Random) -> list[Batch]:
    by_model: dict[str, list[tuple[int, str]]] = defaultdict(list)
    rows = conn.execute("select id, prompt, model from tasks where status = 'unsolved' order by id").fetchall()
    for key, prompt, model in rows:
        by_model[model if model in models else rng.choice(POOLS.get(model or "", models))].append((key, prompt))
    batches = [
        (model, tasks[begin : begin + BATCH])
        for model, tasks in by_model.items()
        for begin in range(0, len(tasks), BATCH)
    ]
    rng.shuffle(batches)
    return batches


async def _worker(conn: Connection, http: httpx.AsyncClient, batches: list[Batch], until: float) -> None:
    try:
        async with asyncio.timeout_at(until):
            while batches:
                model, tasks = batches.pop()
                items = [{"id": str(key), "prompt": prompt} for key, prompt in tasks]
                reply = await http.post("/batch", json={"model": model, "items": items})
                results = reply.json().get("results", [])
                solved = [(item["answer"], int(item["id"])) for item in results if "answer" in item]
                with conn.cursor() as cursor:
                    cursor.executemany("update tasks set status = 'solved', answer = %s where id = %s", solved)
    except TimeoutError:
        pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
