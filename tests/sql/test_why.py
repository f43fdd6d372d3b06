"""llmqueue.why(): one test per reason to wait, with a clock that the test controls."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from tests.support.sql import T0, Queue
from tests.support.why import EARLIER, add, detail, only, start_cooldown, summary, why


@pytest.fixture(autouse=True)
def model(queue: Queue) -> None:
    queue.model("m", rpm=60)


# --- tasks that do not wait for a model -----------------------------------------------------------------------------


def test_no_such_task(queue: Queue) -> None:
    assert why(queue, 42) == []


@pytest.mark.parametrize("status", ["solved", "failed", "cancelled"])
def test_an_ended_task(queue: Queue, status: str) -> None:
    key = add(queue, status=status, finished_at=T0, error="boom", attempts=2)

    assert summary(queue, key) == (status, "ended", "m", None)
    assert detail(queue, key, "error", "attempts") == ("boom", 2)


def test_a_dead_letter_says_what_its_last_attempt_came_to(queue: Queue) -> None:
    key = add(queue)
    queue.bury(queue.claim().only)

    found = detail(queue, key, "last_outcome", "last_error_class", "last_error", "error")

    assert found == ("buried", "rejected", "400", "rejected: 400")


def test_a_quarantined_task(queue: Queue) -> None:
    key = add(queue)
    queue.rows("insert into llmqueue.quarantine (task_id, step, reason) values (%s, 'claim', 'too long')", key)

    assert summary(queue, key) == ("quarantined", "quarantined", "m", None)
    assert detail(queue, key, "step", "error") == ("claim", "too long")


def test_a_status_that_is_none_of_ours(queue: Queue) -> None:
    queue.rows("alter table tasks drop constraint tasks_status_check")
    key = add(queue, status="draft")

    assert summary(queue, key) == ("unknown", "not_queued", "m", None)
    assert detail(queue, key, "status") == ("draft",)


def test_a_running_task_until_its_timeout(queue: Queue) -> None:
    queue.model("m", timeout=timedelta(minutes=5))
    key = add(queue)
    queue.claim()
    queue.advance(3)

    assert summary(queue, key) == ("running", "running", "m", T0 + timedelta(minutes=5))
    assert detail(queue, key, "attempt", "max_attempts", "is_alive", "heartbeat_age_s") == (1, 5, True, 3)


def test_the_task_of_a_dead_worker_until_its_lease_is_over(queue: Queue) -> None:
    key = add(queue)
    queue.claim()
    queue.advance(25)

    assert summary(queue, key) == ("running", "worker_dead", "m", T0 + timedelta(seconds=20))
    assert detail(queue, key, "is_alive", "live_workers") == (False, 0)
    queue.register()
    assert detail(queue, key, "live_workers") == (1,)


def test_a_task_that_runs_by_its_status_only(queue: Queue) -> None:
    key = add(queue, status="running")

    assert summary(queue, key) == ("running", "no_attempt", "m", None)


def test_a_retry_is_not_due(queue: Queue) -> None:
    key = add(queue)
    queue.retry(queue.claim().only, delay_s=30)

    assert summary(queue, key) == ("delayed", "retry", "m", T0 + timedelta(seconds=30))
    assert detail(queue, key, "error", "attempts", "live_workers") == ("timeout: no reply", 1, 1)


def test_a_refused_task_is_not_due(queue: Queue) -> None:
    key = add(queue)
    queue.retry(queue.claim().only, delay_s=0, counts=False, error_class="429", refusal="quota", pause_s=40)

    state, reason, model, until_at = summary(queue, key)

    assert (state, reason, model) == ("delayed", "refused", "m")
    assert until_at is not None
    assert until_at >= T0 + timedelta(seconds=40)


def test_a_task_delayed_by_its_owner(queue: Queue) -> None:
    key = add(queue, status="delayed", run_at=T0 + timedelta(minutes=1))

    assert summary(queue, key) == ("delayed", "run_at", "m", T0 + timedelta(minutes=1))


def test_a_task_whose_run_at_is_ahead(queue: Queue) -> None:
    key = add(queue, run_at=T0 + timedelta(minutes=1))

    assert summary(queue, key) == ("ready", "not_due", "m", T0 + timedelta(minutes=1))


def test_a_task_that_never_becomes_due(queue: Queue) -> None:
    key = add(queue, run_at="infinity")

    found = queue.rows("select reason, until_at::text from llmqueue.why(%s)", key)

    assert found == [{"reason": "not_due", "until_at": "infinity"}]


def test_a_task_past_its_deadline(queue: Queue) -> None:
    key = add(queue, deadline_at=T0)

    assert summary(queue, key) == ("ready", "expired", "m", None)


# --- models that cannot take it -------------------------------------------------------------------------------------


def test_a_task_that_could_be_claimed_now(queue: Queue) -> None:
    key = add(queue)

    assert summary(queue, key) == ("ready", None, "m", None)
    assert queue.claim().ids == [key]


def test_a_model_that_nobody_has_configured(queue: Queue) -> None:
    key = add(queue, model="nobody's")

    assert summary(queue, key) == ("ready", "unknown", "nobody's", None)


@pytest.mark.parametrize("columns", [{"enabled": False}, {"rpm": 0}, {"tpm": 0}, {"max_concurrency": 0}, {"rpd": 0}])
def test_a_paused_model(queue: Queue, columns: dict[str, object]) -> None:
    queue.model("m", **columns)  # type: ignore[arg-type]
    key = add(queue)

    assert summary(queue, key) == ("ready", "paused", "m", None)


def test_a_charge_that_can_never_fit(queue: Queue) -> None:
    queue.model("m", tpm=100, max_output=99)
    key = add(queue, prompt="p" * 400)

    assert summary(queue, key) == ("ready", "never_fits", "m", None)
    assert detail(queue, key, "tokens", "tpm", "fits_elsewhere") == (108 + 99, 100, False)
    assert queue.claim().ids == []
    assert only(queue, key)["state"] == "failed"


def test_a_charge_that_fits_another_model_of_the_pool(queue: Queue) -> None:
    queue.model("m", tpm=100)
    queue.model("wide", tpm=10_000)
    key = add(queue, model=None, prompt="p" * 400)

    rows = {row["model"]: row for row in why(queue, key)}

    assert {name: row["reason"] for name, row in rows.items()} == {"m": "never_fits", "wide": None}
    assert rows["m"]["detail"]["fits_elsewhere"] is True


def test_no_live_worker_serves_the_model(queue: Queue) -> None:
    key = add(queue)
    queue.rows("update llmqueue.worker set models = array['other']")
    queue.rows("update llmqueue.worker set is_draining = true where worker = %s", queue.register())

    assert summary(queue, key) == ("ready", "no_worker", "m", None)
    workers = {"live": 1, "serving": 0, "idle": 0, "running": 0, "draining": 1}
    assert detail(queue, key, "workers") == (workers,)
    queue.rows("update llmqueue.worker set models = array['other', 'm']")
    assert only(queue, key)["reason"] is None
    queue.advance(21)
    assert only(queue, key)["reason"] == "no_worker"


def test_a_closed_model_until_it_opens(queue: Queue) -> None:
    key = add(queue)
    start_cooldown(queue, 30)

    assert summary(queue, key) == ("ready", "cooldown", "m", T0 + timedelta(seconds=30))
    assert detail(queue, key, "cooldown_reason") == ("429",)


def test_a_closed_model_whose_probe_this_task_may_be(queue: Queue) -> None:
    key = add(queue)
    start_cooldown(queue, -1)

    assert summary(queue, key) == ("ready", None, "m", None)
    assert queue.claim().ids == [key]


def test_asking_why_changes_nothing_and_works_where_nothing_can_be_written(queue: Queue) -> None:
    key = add(queue)
    start_cooldown(queue, -1)
    probe = queue.claim().only
    queue.rows("update llmqueue.model_state set probe_fence = %s", probe.fence)
    queue.advance(10)  # not refused for 5 s: a claim would end the cooldown
    waiting = add(queue)
    queue.rows("set transaction_read_only = on")

    assert summary(queue, waiting)[0] == "ready"
    assert summary(queue, key)[0] == "running"

    assert queue.values("select cooldown_until is not null from llmqueue.model_state") == [True]


def test_a_closed_model_that_is_probed(queue: Queue) -> None:
    probe = add(queue)
    start_cooldown(queue, -1)
    queue.claim()
    key = add(queue)

    assert summary(queue, key) == ("ready", "probe", "m", T0 + timedelta(seconds=5))
    assert detail(queue, key, "cooldown_reason") == ("429",)
    assert detail(queue, probe, "is_probe") == (True,)


def test_concurrency_is_full(queue: Queue) -> None:
    queue.model("m", max_concurrency=2, hot_share=0)
    queue.add(2, model="m", run_at=EARLIER)
    queue.claim()
    key = add(queue)

    assert summary(queue, key) == ("ready", "concurrency", "m", None)
    assert detail(queue, key, "most_in_flight", "kept_for_hot") == (2, 0)


def test_the_last_slot_is_kept_for_hot_tasks(queue: Queue) -> None:
    queue.model("m", max_concurrency=2)
    queue.add(2, model="m", run_at=EARLIER)
    queue.claim()
    (cold,) = queue.values("select id from llmqueue.task where is_ready")
    hot = add(queue, priority=100)

    assert (only(queue, cold)["reason"], only(queue, hot)["reason"]) == ("concurrency", None)
    assert detail(queue, cold, "kept_for_hot") == (1,)


def test_no_quota_until_the_claim_says_so_too(queue: Queue) -> None:
    queue.model("m", rpm=2, hot_share=0)
    queue.add(2, model="m", run_at=EARLIER)
    queue.claim()
    queue.advance(5)
    key = add(queue)

    state, reason, _, until_at = summary(queue, key)

    assert (state, reason) == ("ready", "rpm")
    assert detail(queue, key, "calls_60s", "rpm", "effective_rpm") == (2, 2, 2)
    assert until_at is not None
    assert queue.now is not None
    assert queue.claim().retry_in_s["m"] == pytest.approx((until_at - queue.now).total_seconds(), abs=1e-5)
    queue.now = until_at
    queue.beat(queue.register(worker=queue.worker))
    assert only(queue, key)["reason"] is None
    assert queue.claim().ids == [key]


def test_no_quota_of_tokens(queue: Queue) -> None:
    queue.model("m", tpm=100, token_mode="input", hot_share=0)
    first, second = (add(queue, prompt="p" * 200) for _ in range(2))
    queue.claim()

    assert only(queue, first)["state"] == "running"
    assert summary(queue, second)[:3] == ("ready", "tpm", "m")
    assert detail(queue, second, "tokens", "tpm") == (58, 100)


def test_no_quota_of_the_day(queue: Queue) -> None:
    queue.model("m", rpd=1)
    add(queue)
    queue.claim()

    assert summary(queue, add(queue)) == ("ready", "day", "m", datetime(2040, 1, 2, tzinfo=T0.tzinfo))


def test_no_quota_in_a_short_window(queue: Queue) -> None:
    queue.rows("update llmqueue.model_config set burst_windows = '{\"10\": 0.02}'")
    add(queue)
    queue.claim()

    state, reason, _, until_at = summary(queue, add(queue))

    assert (state, reason) == ("ready", "burst")
    assert until_at is not None
    assert timedelta(seconds=10) < until_at - T0 < timedelta(seconds=11)


def test_calls_are_spread_over_the_minute(queue: Queue) -> None:
    queue.model("m", rpm=60, hot_share=0)
    queue.add(5, model="m", run_at=EARLIER)
    queue.claim()
    (first, *_) = queue.values("select id from llmqueue.task where is_ready order by id")

    state, reason, _, until_at = summary(queue, first)

    assert (state, reason) == ("ready", "pace")
    assert until_at is not None
    assert until_at - T0 < timedelta(seconds=2)


def test_a_quiet_minute_after_a_step_of_the_clock(queue: Queue) -> None:
    key = add(queue)
    queue.rows("select llmqueue_internal.fill_ledger('m')")

    assert summary(queue, key)[:3] == ("ready", "clock", "m")
