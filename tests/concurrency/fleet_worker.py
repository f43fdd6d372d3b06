"""One worker process of tests/concurrency/test_fleet.py: claims and settles as fast as possible.

    python fleet_worker.py DSN SEED SECONDS

It ignores every `retry_in_s`, because the limiter must hold by itself. It prints the numbers of its claims, refusals
and outcomes as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from typing import Any
from uuid import uuid4

import psycopg
from psycopg.types.json import Jsonb

CLAIM = """
    select model, (task).task_id, (task).fence, reason, retry_in_s
      from llmqueue.claim(%s, %s::text[], %s, %s::text[], 0, %s)"""


def item(rng: random.Random, task_id: int, fence: int) -> dict[str, object]:
    common = {"fence": fence, "task_id": str(task_id), "sent_after_s": 0.0, "latency_s": 0.0}
    match rng.choices(["complete", "retry", "release"], [70, 15, 15])[0]:
        case "complete":
            used = rng.choice([{}, {}, {}, {"input_tokens": rng.randint(1, 200), "output_tokens": 5}])
            return {"verb": "complete", "answer": f"answer {fence}", **used, **common}
        case "retry":
            return {"verb": "retry", "delay_s": 0.05, "counts": True, "error_class": "x", "error": "y", **common}
        case _:
            return {"verb": "release", "error_class": "late_grant", **common}


def main(dsn: str, seed: int, seconds: float) -> None:
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    running: list[dict[str, object]] = []
    with psycopg.connect(dsn, autocommit=True) as conn:
        worker = uuid4()
        conn.execute("select llmqueue.register(%s, 'w', '0', null, 20, 0.5)", (worker,))
        print("ready", flush=True)
        sys.stdin.readline()
        models = [row[0] for row in conn.execute("select model from llmqueue.model_config")]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            some = rng.choice([None, rng.sample(models, 1), rng.sample(models, 4)])
            maintenance = [work for work in ("heartbeat", "promote", "sweep", "prune") if rng.random() < 0.1]
            args = (worker, some, rng.randint(1, 30), maintenance, rng.randint(0, 2))
            for _, task_id, fence, reason, _ in conn.execute(CLAIM, args).fetchall():
                if task_id is None:
                    seen[f"refusal {reason}"] += 1
                else:
                    seen["claimed"] += 1
                    running.append(item(rng, task_id, fence))
            rng.shuffle(running)
            flush, running = running[:40], running[40:]
            if flush:
                outcomes = conn.execute("select * from llmqueue.settle(%s, %s)", (worker, Jsonb(flush))).fetchall()
                by_fence: dict[Any, Any] = dict(outcomes)
                running += [again for again in flush if by_fence[again["fence"]] == "busy"]
                seen.update(f"settled {outcome}" for outcome in by_fence.values())
        print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
