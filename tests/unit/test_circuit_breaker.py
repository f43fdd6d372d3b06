"""circuit_breaker.CircuitBreaker: when a run of failures is the backend's, a model's, or each attempt's own (I11)."""

from __future__ import annotations

import random
from itertools import count

import pytest

from llmqueue.backend.circuit_breaker import (
    FRESH_S,
    HALF,
    PAUSE_S,
    PROBE_S,
    WINDOW,
    CircuitBreaker,
    Failed,
    FailureBlame,
)


class Calls:
    """A circuit breaker, and a clock in the test's hand; every call has a fence of its own."""

    def __init__(self) -> None:
        self.breaker = CircuitBreaker(random.Random(7))
        self.now = 1000.0
        self.fences = count(1)

    def good(self, model: str = "m", how_many: int = 1) -> None:
        for _ in range(how_many):
            fence = next(self.fences)
            self.breaker.started(fence, self.now)
            self.breaker.succeeded(model, fence, self.now)
            self.breaker.ended(fence)

    def bad(self, model: str = "m", how_many: int = 1, granted_at: float | None = None) -> list[FailureBlame]:
        return [self.fail(next(self.fences), model, granted_at) for _ in range(how_many)]

    def fail(self, fence: int, model: str = "m", granted_at: float | None = None) -> FailureBlame:
        self.now += 0.001
        at = self.now if granted_at is None else granted_at
        blame = self.breaker.failed(Failed(model, fence, at, "http_502"), self.now)
        self.breaker.ended(fence)
        return blame

    @property
    def calls_left(self) -> int | None:
        return self.breaker.calls_left(self.now)

    def probe(self) -> int:
        """Waits until one call may go out, and begins it."""
        for _ in range(1000):
            if self.calls_left:
                break
            self.now += 0.1
        assert self.calls_left == 1
        fence = next(self.fences)
        self.breaker.started(fence, self.now)
        return fence


@pytest.fixture
def calls() -> Calls:
    return Calls()


def test_nine_failures_are_each_attempts_own_and_the_tenth_opens_the_breaker(calls: Calls) -> None:
    assert calls.bad(how_many=HALF - 1) == ["attempt"] * (HALF - 1)
    assert calls.calls_left is None
    assert calls.breaker.take_restorable() == []

    assert calls.bad() == ["backend"]

    assert calls.calls_left == 0
    assert calls.breaker.take_restorable() == list(range(1, HALF)), "those that were counted before it was known"
    assert calls.breaker.take_restorable() == [], "once is enough"


def test_half_of_the_last_twenty_are_needed_not_ten_of_many(calls: Calls) -> None:
    for _ in range(100):
        calls.good(how_many=2)
        assert calls.bad() == ["attempt"]

    assert calls.calls_left is None


def test_a_task_that_always_fails_among_good_ones_never_opens_it(calls: Calls) -> None:
    for _ in range(50):
        calls.good(how_many=9)
        assert calls.bad() == ["attempt"]


def test_failures_of_calls_that_were_under_way_when_it_opened_are_the_backends(calls: Calls) -> None:
    before = calls.now
    calls.bad(how_many=HALF)
    opened = calls.now

    assert calls.bad(how_many=50, granted_at=before) == ["backend"] * 50
    calls.breaker.ended(calls.probe())
    assert calls.bad(granted_at=opened) == ["backend"]


def test_one_call_at_a_time_tries_and_the_pauses_double_with_jitter_up_to_half_a_minute() -> None:
    pauses: dict[int, list[float]] = {}
    for seed in range(40):
        calls = Calls()
        calls.breaker = CircuitBreaker(random.Random(seed))
        calls.bad(how_many=HALF)
        for step in range(9):
            opened = calls.now
            while not calls.calls_left:
                calls.now += 0.01
            pauses.setdefault(step, []).append(calls.now - opened)
            fence = next(calls.fences)
            calls.breaker.started(fence, calls.now)
            assert calls.calls_left == 0, "one at a time"
            assert calls.fail(fence) == "backend"

    for step, seen in pauses.items():
        longest = min(PAUSE_S[0] * 2**step, PAUSE_S[1])
        assert longest / 2 <= min(seen) <= 0.65 * longest, "with jitter: workers do not try together"
        assert 0.85 * longest <= max(seen) <= longest + 0.02


def test_after_a_good_probe_calls_come_back_in_ones_twos_and_fours_not_all_at_once(calls: Calls) -> None:
    granted = calls.now
    calls.bad(how_many=HALF)
    fence = calls.probe()
    seen = [1]

    while calls.calls_left is not None:
        calls.breaker.succeeded("m", fence, calls.now)
        calls.breaker.ended(fence)
        if calls.calls_left is None:
            break
        seen.append(calls.calls_left)
        fence = next(calls.fences)
        calls.breaker.started(fence, calls.now)

    assert seen == [1, 2, 4, 8, 16]
    assert calls.breaker.reason is None
    assert calls.bad(how_many=2 * HALF, granted_at=granted) == ["backend"] * 2 * HALF, "sent before it opened"
    assert calls.calls_left is None
    assert calls.bad(how_many=HALF - 1) == ["attempt"] * (HALF - 1), "what was before it closed is forgotten"


def test_a_few_failures_among_good_probes_do_not_begin_the_pauses_anew(calls: Calls) -> None:
    calls.bad(how_many=HALF)
    for _ in range(2):
        fence = calls.probe() if calls.calls_left in {0, 1} else next(calls.fences)
        calls.breaker.started(fence, calls.now)
        calls.breaker.succeeded("m", fence, calls.now)
        calls.breaker.ended(fence)
    fence = next(calls.fences)
    calls.breaker.started(fence, calls.now)

    assert calls.fail(fence) == "backend", "it costs no attempt, as it is not known yet"
    assert calls.calls_left == 4


def test_a_slow_probe_lets_another_go_after_a_while(calls: Calls) -> None:
    calls.bad(how_many=HALF)
    calls.probe()

    assert calls.calls_left == 0
    calls.now += PROBE_S
    assert calls.calls_left == 1


def test_a_probe_that_ends_without_a_word_makes_room_for_another(calls: Calls) -> None:
    calls.bad(how_many=HALF)
    fence = calls.probe()

    calls.breaker.ended(fence)

    assert calls.calls_left == 1


def test_after_an_outage_it_begins_with_one_call(calls: Calls) -> None:
    calls.breaker.begin_slowly()

    assert calls.calls_left == 1
    calls.probe()
    assert calls.calls_left == 0


def test_one_model_that_fails_while_others_are_fine_is_blamed_alone(calls: Calls) -> None:
    calls.good("fine")
    before = calls.now
    blamed = []
    for _ in range(HALF):
        blamed += calls.bad("broken")
        calls.good("fine")

    assert blamed == ["attempt"] * (HALF - 1) + ["model"]
    assert len(calls.breaker.take_restorable()) == HALF - 1
    assert calls.calls_left is None
    assert calls.bad("broken", 30, granted_at=before) == ["model"] * 30, "under way when it closed"
    assert calls.bad("broken", HALF) == ["model"] * HALF, "granted before the others knew"
    calls.good("broken")
    assert calls.bad("broken", HALF - 1) == ["attempt"] * (HALF - 1), "it was back: counted from the start"
    assert calls.calls_left is None


def test_a_flood_of_one_broken_model_does_not_blame_the_others(calls: Calls) -> None:
    calls.good("fine")

    assert calls.bad("broken", 200) == ["attempt"] * (HALF - 1) + ["model"] * (201 - HALF)

    assert calls.calls_left is None


@pytest.mark.parametrize("how", ["others fail", "others are long ago", "no others"])
def test_where_no_other_model_is_known_to_be_well_it_is_the_backends(calls: Calls, how: str) -> None:
    if how != "no others":
        calls.good("other")
    if how == "others fail":
        calls.bad("other")
    calls.now += FRESH_S if how == "others are long ago" else 0

    assert "backend" in calls.bad("broken", HALF)
    assert calls.calls_left == 0


def test_in_an_outage_of_all_models_every_failure_is_given_back(calls: Calls) -> None:
    models = [f"m{n}" for n in range(10)]
    for model in models:
        calls.good(model, WINDOW)
    blamed = {}
    for _ in range(40):
        for model in models:
            fence = next(calls.fences)
            blamed[fence] = calls.fail(fence, model)

    counted = {fence for fence, blame in blamed.items() if blame == "attempt"}
    assert counted == set(calls.breaker.take_restorable())
