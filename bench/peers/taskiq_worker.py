"""taskiq in its own environment: `fill URL N` adds N jobs, `work URL` runs them.

Configured as its documentation recommends: streams with acknowledgement, prefetching for many messages, uvloop, no
results.
"""

import asyncio
import os
import sys

import say
from taskiq_redis import RedisStreamBroker

OPTIONS = ["--workers=1", "--max-async-tasks=100", "--max-prefetch=100", "--log-level=ERROR"]
broker = RedisStreamBroker(os.environ.get("TASKIQ_URL") or sys.argv[2])


@broker.task(task_name="noop")
async def noop() -> None:
    say.begun()


async def fill(jobs: int) -> None:
    await broker.startup()
    for _ in range(jobs):
        await noop.kiq()
    await broker.shutdown()


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        asyncio.run(fill(int(sys.argv[3])))
    else:
        # taskiq's own program imports this file again and gives it no arguments.
        command = [sys.executable, "-m", "taskiq", "worker", *OPTIONS, "taskiq_worker:broker"]
        os.execve(sys.executable, command, {**os.environ, "TASKIQ_URL": sys.argv[2]})
