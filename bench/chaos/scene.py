"""The work of the fleet: ten models with limits, and a backlog of prompts about the standard library."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import psycopg
from psycopg.rows import TupleRow

from llmqueue.demo import scenario
from llmqueue.demo.prompts import make_prompts

# A third of the demo's limits, because one machine runs three workers, a database, a backend and all links.
RPM = {model: max(20, rpm * 36 // 100) for model, rpm in scenario.RPM.items()}
SPEED = 8.0
# The slowest call of the ten models takes 37 s at that speed; this ends a call that hangs.
TIMEOUT_S = 40
LONGEST_PROMPT = 4_000

PINNED = 0.3
BROKEN = 0.01  # the backend refuses them for good: they end as dead letters
STUMBLING = 0.01  # the backend fails the first call
LATER = 0.02
HOT_EVERY_S = 2.0
HOT_AT_ONCE = 3
BROKEN_MARK, STUMBLING_MARK = "[[fault:400]]", "[[fault:500 x1]]"

Connection = psycopg.Connection[TupleRow]


def fill(conn: Connection, tasks: int, rng: Random) -> None:
    """Inserts the models and `tasks` tasks for them, as any source would."""
    for model, rpm in RPM.items():
        conn.execute(
            "insert into llmqueue.model_config (model, rpm, timeout) values (%s, %s, make_interval(secs => %s))",
            (model, rpm, TIMEOUT_S),
        )
    with conn.cursor() as cursor, cursor.copy("copy tasks (prompt, model, run_at) from stdin") as copy:
        for text in prompts(tasks, rng):
            pinned = rng.choices(list(RPM), list(RPM.values()))[0] if rng.random() < PINNED else None
            copy.write_row((text, pinned, None))
    conn.execute(
        "update tasks set run_at = now() + make_interval(secs => 5 + id %% 20) where id %% %s = 0", (round(1 / LATER),)
    )
    conn.execute("analyze tasks")


def prompts(count: int, rng: Random) -> list[str]:
    texts = [prompt.text[:LONGEST_PROMPT] for prompt in make_prompts(count)]
    marked = []
    for number in range(count):
        text = f"{texts[number % len(texts)]}\n\n(question {number})"
        draw = rng.random()
        if draw < BROKEN:
            text += BROKEN_MARK
        elif draw < BROKEN + STUMBLING:
            text += STUMBLING_MARK
        marked.append(text)
    return marked


def add_hot(conn: Connection, texts: Sequence[str]) -> None:
    conn.execute("insert into tasks (prompt, priority) select text, 100 from unnest(%s::text[]) text", (list(texts),))
