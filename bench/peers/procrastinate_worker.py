"""Procrastinate in an environment of its own: `fill DSN N` installs it and defers N jobs, `work DSN` runs them."""

import asyncio
import sys
import time

from procrastinate import App, PsycopgConnector

CONCURRENCY = 100
has_begun = False


def app_of(dsn: str) -> App:
    return App(connector=PsycopgConnector(conninfo=dsn, max_size=20))


async def main(verb: str, dsn: str, jobs: int) -> None:
    app = app_of(dsn)

    @app.task(name="noop")
    async def noop() -> None:
        global has_begun  # noqa: PLW0603 - a program of one page
        if not has_begun:
            has_begun = True
            print(time.time(), flush=True)

    async with app.open_async():
        if verb == "fill":
            await app.schema_manager.apply_schema_async()
            for begin in range(0, jobs, 10_000):
                await noop.batch_defer_async(*[{}] * min(10_000, jobs - begin))
        else:
            await app.run_worker_async(concurrency=CONCURRENCY)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))
