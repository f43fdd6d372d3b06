"""Texts of a backend go through the Store into the database: no text can stop a flush."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID

import psycopg
import pytest

from llmqueue.db.store import Store
from llmqueue.types import Bury, Complete, Decision, Grant, Release, Retry, Settlement, Task, Usage
from tests.support.sql import Queue

pytestmark = pytest.mark.anyio
WEIRD = [
    *("\x00", "a\x00b", "\ud800", "\udfff and \x00"),
    *("🎉", "\\u0000", "\\", "x" * 100_000),
]


@pytest.fixture
async def store(installed: str) -> AsyncIterator[Store]:
    opened = Store(installed, UUID(int=1), prompt_is_json=False, answer_is_json=False, is_pooled=False)
    await opened.open()
    yield opened
    await opened.aclose()


@pytest.mark.parametrize("text", WEIRD, ids=ascii)
@pytest.mark.parametrize("verb", ["retry", "bury", "release"])
async def test_no_error_text_stops_the_flush_it_is_in(
    conn: psycopg.Connection[tuple[object, ...]], store: Store, verb: str, text: str
) -> None:
    queue = Queue(conn, now=None)
    queue.register(worker=store.worker)
    queue.model("m", 6000)
    queue.add(2)
    bad, good = queue.claim(2, worker=store.worker).grants
    decisions: dict[str, Decision] = {
        "retry": Retry("raised", text, 1.0, counts=True),
        "bury": Bury("raised", text),
        "release": Release(text),
    }

    outcomes = await store.settle([settlement(bad, decisions[verb]), settlement(good, Complete("42", Usage()))])

    assert outcomes[good.fence] == "completed"
    assert outcomes[bad.fence] == {"retry": "retried", "bury": "buried", "release": "released"}[verb]


def settlement(grant: object, decision: Decision) -> Settlement:
    fence, key = grant.fence, grant.id  # type: ignore[attr-defined]
    return Settlement(Grant("m", Task(key, fence, 1, 5, 0, "why?", None), 0.0, 1.0, 60.0), decision, 0.0, 1.0)
