"""Keeps the attempt log as long as LLMQUEUE_KEEP_ATTEMPTS says, in small steps."""

from __future__ import annotations

import random
from datetime import timedelta

import anyio

from llmqueue.db.store import Store
from llmqueue.errors import DatabaseUnreachable, SqlError

EVERY_S = 600.0
STEP = 2000


async def run(store: Store, keep: timedelta) -> None:
    """Prunes for ever; an unreachable database only puts it off."""
    while True:
        await anyio.sleep(random.uniform(0.5, 1.0) * EVERY_S)
        try:
            pruned = STEP
            while pruned == STEP:
                pruned = await store.prune_attempts(keep, STEP)
        except (DatabaseUnreachable, SqlError) as error:
            store.outage.began(error)
