"""Celery in its own environment: `fill URL N` adds N jobs, `work URL` runs them.

Configured as its documentation recommends for many short tasks: a large prefetch multiplier, no results. One thread per
core: for no-op jobs threads were no slower than processes or gevent, and took less CPU. Late acknowledgement, so that a
job stays on the server until it has ended, as with the other peers.
"""

import os
import sys

import say
from celery import Celery

POOL = ["--pool=threads", f"--concurrency={os.cpu_count()}"]
QUIET = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=error"]
verb, url, *rest = sys.argv[1:]
app = Celery(broker=url.replace("unix://", "redis+socket://"))
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=128,
    worker_redirect_stdouts=False,
)


@app.task(name="noop")
def noop() -> None:
    say.begun()


if verb == "fill":
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(int(rest[0])):
            noop.apply_async(producer=producer)
else:
    app.worker_main(["worker", *POOL, *QUIET])
