"""Procrastinate in its own environment: `fill DSN N` installs it and defers N jobs, `trickle DSN N` defers N one by
one, `work DSN` runs them and `wait DSN` those of a trickle."""

import asyncio
import sys

import say
from procrastinate import App, PsycopgConnector

CONCURRENCY = 100


def app_of(dsn: str) -> App:
    return App(connector=PsycopgConnector(conninfo=dsn, max_size=20))


async def main(verb: str, dsn: str, jobs: int) -> None:
    app = app_of(dsn)

    @app.task(name="noop")
    async def noop(added_at: str | None = None) -> None:
        if added_at is None:
            say.begun()
        else:
            say.waited(added_at)

    async with app.open_async():
        if verb == "fill":
            await app.schema_manager.apply_schema_async()
            for begin in range(0, jobs, 10_000):
                await noop.batch_defer_async(*[{}] * min(10_000, jobs - begin))
        elif verb == "trickle":
            async for now in say.moments(jobs):
                await noop.defer_async(added_at=now)
        else:
            await app.run_worker_async(concurrency=CONCURRENCY)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))
