"""A simulation from its scenario to its report."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from llmqueue.db.connect import connect
from llmqueue.forecast.fleet import Fleet
from llmqueue.forecast.report import Report, make_report
from llmqueue.forecast.scenario import Scenario
from llmqueue.forecast.scheduler import SqlScheduler
from llmqueue.forecast.stage import APPLICATION, configure, fill, temporary_database
from llmqueue.forecast.worker import LEASE_S

# Simulated seconds and ended tasks of the backlog.
Progress = Callable[[float, int], None]
_PROGRESS_EVERY_S = 0.1
# Ended tasks. What autovacuum does for a real database in time: here a minute passes in a few seconds.
_VACUUM_EVERY = 2_000


def simulate(scenario: Scenario, server: str, on_progress: Progress = lambda _s, _done: None) -> Report:
    """Runs the scenario in a database of its own on that server."""
    random.seed(scenario.seed)  # the jitter of the real Planner is drawn from it
    with temporary_database(server) as dsn, connect(dsn, application_name=APPLICATION) as conn:
        # Twice as fast, and no decision depends on it: the SQL is static, and planned anew for its arrays otherwise.
        conn.execute("set plan_cache_mode = force_generic_plan")
        configure(conn, scenario)
        scheduler = SqlScheduler(conn, guard_s=scenario.guard_s, lease_s=LEASE_S, input_tokens=scenario.input_tokens)
        first_keys, last_key = fill(conn, scheduler, scenario)
        fleet = Fleet(scenario, scheduler, first_keys, last_key)
        started_at = shown_at = time.monotonic()
        vacuum_at = _VACUUM_EVERY

        def tick() -> None:
            nonlocal shown_at, vacuum_at
            done = len(fleet.log.ended_at)
            if done >= vacuum_at:
                vacuum_at += _VACUUM_EVERY
                conn.execute("vacuum tasks, llmqueue.attempt, llmqueue.ledger_grant, llmqueue.ledger_cell")
            if (now := time.monotonic()) - shown_at >= _PROGRESS_EVERY_S:
                shown_at = now
                on_progress(fleet.timeline.now, done)

        fleet.run(tick)
        return make_report(scenario, fleet, time.monotonic() - started_at)
