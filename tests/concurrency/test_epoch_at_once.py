"""Many workers see the new epoch at once: it begins once, there is no grant before it, and no deadlock."""

from __future__ import annotations

import psycopg

from tests.support.sessions import sessions

WORKERS = 5
MODELS = 4


def test_an_epoch_that_many_see_at_once_begins_once(
    installed: str, conn: psycopg.Connection[tuple[object, ...]]
) -> None:
    with sessions(installed) as opened:
        queues = [opened.queue() for _ in range(WORKERS)]
        for number in range(MODELS):
            queues[0].model(f"m{number}", 60000)
        queues[0].add(1000)
        for queue in queues:
            assert queue.claim(2).grants
        conn.execute("update llmqueue.epoch set timeline = '000000FF'")
        [(highest,)] = conn.execute("select max(fence) from llmqueue.attempt").fetchall()

        # a session with a model's lock blocks the first worker that notices the epoch; meanwhile all others arrive
        with conn.transaction():
            conn.execute("select pg_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext('m2'))")
            claims = [opened.start(lambda queue=queue: queue.claim(50, maintenance=["sweep"])) for queue in queues]  # type: ignore[misc]
            for queue in queues:
                opened.wait_until_waiting(queue.conn)
        claimed = [claim.result(60) for claim in claims]

    assert [found.grants for found in claimed] == [[]] * WORKERS
    epochs = conn.execute("select because, fence_floor from llmqueue.epoch order by epoch_no").fetchall()
    assert [because for because, _ in epochs] == ["installed", "timeline"]
    assert int(str(epochs[1][1])) > int(str(highest))
    assert conn.execute("select max(fence) from llmqueue.attempt").fetchone() == (highest,)
