"""PgQueuer in an environment of its own: `fill DSN N` installs it and enqueues N jobs, `work DSN` runs them.

As its documentation recommends for throughput: asyncpg, batches of 100.
"""

import asyncio
import sys
import time

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries


async def fill(dsn: str, jobs: int) -> None:
    queries = Queries(AsyncpgDriver(await asyncpg.connect(dsn)))
    await queries.install()
    await queries.optimize_autovacuum()
    for begin in range(0, jobs, 10_000):
        some = min(10_000, jobs - begin)
        await queries.enqueue(["noop"] * some, [b"p"] * some, [0] * some)


async def work(dsn: str) -> None:
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(dsn)))
    has_begun = False

    @queue.entrypoint("noop")
    async def noop(_job: Job) -> None:
        nonlocal has_begun
        if not has_begun:
            has_begun = True
            print(time.time(), flush=True)

    await queue.run(batch_size=100)


if sys.argv[1] == "fill":
    asyncio.run(fill(sys.argv[2], int(sys.argv[3])))
else:
    asyncio.run(work(sys.argv[2]))
