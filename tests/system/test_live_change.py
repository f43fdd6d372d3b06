"""Limits changed by plain SQL under load, at the real window of 60 s."""

from __future__ import annotations

import bisect
import time
from pathlib import Path

import psycopg
import pytest

from llmqueue.fake_backend.call_log import read_calls
from tests.support import processes

CHANGES = (600, 120, 1200, 0, 300)
EACH_S = 75


@pytest.mark.slow
def test_no_call_over_a_new_limit_later_than_three_quarters_of_a_second(
    installed: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    conn.execute("insert into llmqueue.model_config (model, rpm) values ('a', 600)")
    conn.execute("insert into tasks (prompt) select 'prompt ' || n from generate_series(1, 6000) n")
    committed: list[tuple[float, int]] = []
    with processes.backend(tmp_path, "--any-model", "--speed", "5") as url:
        env = processes.environment(DATABASE_URL=installed, BACKEND_URL=url)
        with processes.workers(tmp_path, 2, env=env) as started:
            for rpm in CHANGES:
                conn.execute("update llmqueue.model_config set rpm = %s", (rpm,))
                committed.append((time.time(), rpm))
                time.sleep(EACH_S)
            assert [process.stop() for process in started] == [0, 0]

    arrivals = sorted(call.arrived_at for call in read_calls(tmp_path / "calls.jsonl"))

    def trailing(at: float) -> int:
        return bisect.bisect_right(arrivals, at) - bisect.bisect_right(arrivals, at - 60)

    print()
    for (since, rpm), (until, _) in zip(committed, [*committed[1:], (float("inf"), 0)], strict=True):
        late = [at for at in arrivals if since + 0.75 < at < until]
        worst = max((trailing(at) for at in late), default=0)
        first = next((at - since for at in arrivals if at > since), None)
        when = "none" if first is None or since + first > until else f"{first:.3f} s after COMMIT"
        print(f"rpm {rpm:5}: worst 60 s at a call {worst:5}, calls {len(late):5}, first call {when}")
        assert worst <= rpm
