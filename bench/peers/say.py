"""Functions that the programs of the Python peers share: the pace of a trickle, and what a worker prints."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator

EVERY = 100  # jobs
GAP_S = 0.02

_jobs = 0


async def moments(jobs: int) -> AsyncIterator[str]:
    """Yields the time for each job of a trickle; the job carries it."""
    for _ in range(jobs):
        yield repr(time.time())
        await asyncio.sleep(GAP_S)


def begun() -> None:
    """Prints the time of the first job and of every hundredth after it."""
    global _jobs  # noqa: PLW0603 - a program of one page
    if _jobs % EVERY == 0:
        print(time.time(), flush=True)
    _jobs += 1


def waited(added_at: str) -> None:
    """Prints the seconds that a job of a trickle has waited."""
    sys.stdout.write(f"{time.time() - float(added_at)}\n")
    sys.stdout.flush()
