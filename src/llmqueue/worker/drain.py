"""Waits until nothing can run any more, for `worker --drain`."""

from __future__ import annotations

from collections.abc import Sequence

import anyio

from llmqueue.db.store import Store, Stranded

LOOK_S = 0.5


async def until_drained(store: Store, models: Sequence[str] | None, wait_s: float) -> list[Stranded]:
    """Returns the tasks that no enabled, served model can take and those due later than `wait_s`, by reason.

    Waits for what other workers are running too: if one of them dies, its tasks come back.
    """
    while True:
        with store.outage.tolerated():
            state = await store.drain_state(models, wait_s)
            if state[0].is_done:
                return [row for row in state if row.reason is not None]
        await anyio.sleep(LOOK_S)
