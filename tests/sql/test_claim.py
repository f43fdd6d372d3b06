"""llmqueue.claim: a grant and its claim are one transaction."""

from __future__ import annotations

from uuid import uuid4

import psycopg


def test_a_task_is_claimed_once(conn: psycopg.Connection) -> None:
    worker = uuid4()
    conn.execute("select llmqueue.register(%s, 'w', '0', null, 20, 0.5)", (worker,))
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('m', 60)")
    conn.execute("insert into tasks (prompt) values ('hello')")
    rows = conn.execute("select * from llmqueue.claim(%s, null, 10)", (worker,)).fetchall()
    print(rows)
    assert len(rows) == 2
    again = conn.execute("select * from llmqueue.claim(%s, null, 10)", (worker,)).fetchall()
    assert len(again) == 1
