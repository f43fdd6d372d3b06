"""PgQueuer in its own environment: `fill DSN N` installs it and enqueues N jobs, `trickle DSN N` enqueues N one by one,
`work DSN` runs them and `wait DSN` those of a trickle.

Configured as its documentation recommends for throughput: asyncpg, batches of 100.
"""

import asyncio
import sys

import asyncpg
import say
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


async def trickle(dsn: str, jobs: int) -> None:
    queries = Queries(AsyncpgDriver(await asyncpg.connect(dsn)))
    async for now in say.moments(jobs):
        await queries.enqueue("noop", now.encode(), 0)


async def work(dsn: str, *, is_trickle: bool) -> None:
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(dsn)))

    @queue.entrypoint("noop")
    async def noop(job: Job) -> None:
        if is_trickle:
            say.waited((job.payload or b"").decode())
        else:
            say.begun()

    await queue.run(batch_size=100)


verb, url, *rest = sys.argv[1:]
if verb in ("fill", "trickle"):
    asyncio.run({"fill": fill, "trickle": trickle}[verb](url, int(rest[0])))
else:
    asyncio.run(work(url, is_trickle=verb == "wait"))
