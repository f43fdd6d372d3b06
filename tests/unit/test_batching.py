"""batching.Batching: which tasks of a claim share a call, and when that is worth it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from llmqueue.types import (
    LATE,
    Bury,
    Complete,
    Decision,
    Dispatch,
    Grant,
    Retry,
    Settlement,
    Task,
    Usage,
)
from llmqueue.worker import batching
from llmqueue.worker.batching import LARGEST, SLOWEST, Batch, Batching, most_together

FENCE = count(1)


def grant(
    model: str = "m", dispatch: Dispatch = "batch", max_batch: int = 10, *, is_hot: bool = False, attempt_no: int = 1
) -> Grant:
    fence = next(FENCE)
    task = Task(fence, fence, attempt_no, 5, 0, "why?", None, is_hot=is_hot)
    return Grant(model, task, 0.0, 1e9, 60.0, None, dispatch, max_batch)


BATCHES: dict[int, Batch | None] = {}  # by fence, as InFlight keeps them


def slices(batches: Batching, grants: list[Grant]) -> list[Sequence[Grant]]:
    made = list(batches.calls(grants))
    BATCHES.update((one.task.fence, batch) for together, batch in made for one in together)
    assert all((batch is not None) == (len(together) > 1) for together, batch in made)
    return [together for together, _ in made]


def ended(batches: Batching, settlement: Settlement) -> None:
    batches.ended(settlement, BATCHES.pop(settlement.grant.task.fence, None))


def sizes(batches: Batching, grants: list[Grant]) -> list[int]:
    return [len(together) for together in slices(batches, grants)]


def learn(batches: Batching, latency_s: float, calls: int = 50) -> None:
    for _ in range(calls):
        ended(batches, Settlement(grant(), Complete("42", Usage()), 0.0, latency_s))


@pytest.fixture
def batches() -> Batching:
    return Batching(can_batch=True)


@given(
    st.lists(
        st.builds(
            grant,
            model=st.sampled_from("ab"),
            dispatch=st.sampled_from(("batch", "single", "auto")),
            max_batch=st.integers(1, 7),
            is_hot=st.booleans(),
            attempt_no=st.integers(1, 2),
        ),
        max_size=60,
    )
)
def test_every_grant_goes_out_once_with_others_of_its_model_alone(grants: list[Grant]) -> None:
    made = slices(Batching(can_batch=True), grants)

    sent = [one.task.fence for together in made for one in together]
    assert sorted(sent) == sorted(one.task.fence for one in grants)
    for together in made:
        assert len({one.model for one in together}) == 1
        if len(together) > 1:
            assert not any(one.task.is_hot or one.task.attempt_no > 1 for one in together)


def test_a_batch_has_at_most_max_batch_tasks_and_batches_are_of_one_size(batches: Batching) -> None:
    assert sizes(batches, [grant(max_batch=10) for _ in range(21)]) == [7, 7, 7]
    assert sizes(batches, [grant(max_batch=1) for _ in range(3)]) == [1, 1, 1]


def test_hot_tasks_and_those_that_have_failed_have_a_call_of_their_own(batches: Batching) -> None:
    grants = [grant(), grant(is_hot=True), grant(attempt_no=2), grant()]

    made = [[one.task.fence for one in together] for together in slices(batches, grants)]

    fences = [one.task.fence for one in grants]
    assert made == [[fences[1]], [fences[2]], [fences[0], fences[3]]]


def test_what_has_no_attempt_left_is_not_ended_by_its_neighbours(batches: Batching) -> None:
    last = grant()
    last = replace(last, task=replace(last.task, max_attempts=1))

    assert [len(together) for together in slices(batches, [grant(), last, grant()])] == [1, 2]


FAILED = Retry("http_504", "Gateway Timeout", 0.0, counts=True)
REFUSED = Retry("rate_limited", "429", 0.0, counts=False, refusal="quota")


def end_batch(batches: Batching, *decisions: Decision) -> None:
    made = slices(batches, [grant() for _ in decisions])
    assert list(map(len, made)) == [len(decisions)]
    for one, decision in zip(made[0], decisions, strict=True):
        ended(batches, Settlement(one, decision, 0.0, 1.0))


@pytest.mark.parametrize(
    ("second", "goes_on"),
    [
        ([FAILED, FAILED], False),
        ([FAILED, Complete("42", Usage())], True),
        ([FAILED, Bury("http_400", "a bad prompt")], True),
    ],
)
def test_auto_leaves_batches_alone_once_they_fail_as_a_whole(
    batches: Batching, monkeypatch: pytest.MonkeyPatch, second: list[Decision], goes_on: bool
) -> None:
    monkeypatch.setattr(batches._load, "is_busy", True)
    learn(batches, 0.5)
    several = [grant(dispatch="auto") for _ in range(5)]
    end_batch(batches, FAILED, FAILED, FAILED)
    end_batch(batches, LATE, REFUSED)  # says nothing about batches
    assert sizes(batches, several) == [1, 4]

    end_batch(batches, *second)

    assert sizes(batches, several) == ([5] if goes_on else [1] * 5)
    assert sizes(batches, [grant() for _ in range(5)]) == [5], "who asks for batches gets them"


def test_a_backend_without_such_a_call_is_asked_for_it_once(batches: Batching) -> None:
    end_batch(batches, *[Retry("http_404", "Not Found", 0.0, counts=False)] * 3)

    assert sizes(batches, [grant() for _ in range(5)]) == [1] * 5


def test_what_was_rejected_together_is_tried_alone(batches: Batching) -> None:
    [together] = slices(batches, [grant(), grant()])
    for one in together:
        ended(batches, Settlement(one, Retry("http_422", "no", 0.0, counts=False), 0.0, 1.0))
    again = [replace(one, task=replace(one.task, fence=next(FENCE))) for one in together]

    assert sizes(batches, [*again, grant(), grant()]) == [1, 1, 2]


def test_a_call_that_timed_out_is_a_slow_one(batches: Batching) -> None:
    ended(batches, Settlement(grant(), Retry("timeout", "no answer", 0.0, counts=True), 0.0, 60.0))
    ended(batches, Settlement(grant(), Retry("connection_lost", "reset", 0.0, counts=True), 0.0, 0.1))

    assert list(batches._of("m").latencies) == [60.0]


def test_an_adapter_without_batches_gets_none() -> None:
    assert sizes(Batching(can_batch=False), [grant() for _ in range(3)]) == [1, 1, 1]


def test_while_auto_sends_batches_a_single_call_shows_now_and_then_how_long_one_takes(
    batches: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches._load, "is_busy", True)
    learn(batches, 0.5)

    assert sizes(batches, [grant(dispatch="auto") for _ in range(5)]) == [1, 4]
    assert sizes(batches, [grant(dispatch="auto") for _ in range(5)]) == [5]


def test_auto_is_single_until_the_process_is_busy_and_while_the_latencies_are_not_known(
    batches: Batching, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = [grant(dispatch="auto") for _ in range(10)]

    assert sizes(batches, several) == [1] * 10
    monkeypatch.setattr(batches._load, "is_busy", True)
    assert sizes(batches, several) == [1] * 10
    learn(batches, 0.5)
    assert sizes(batches, several) == [1, 9]


def test_what_came_in_a_batch_teaches_nothing_about_single_calls(batches: Batching) -> None:
    together = [grant() for _ in range(50)]
    slices(batches, together)
    shared = [BATCHES[one.task.fence] for one in together]

    for one in together:
        ended(batches, Settlement(one, Complete("42", Usage()), 0.0, 9.0))

    assert not batches._of("m").latencies
    assert all(batch is not None and batch.under_way == 0 for batch in shared)


def test_the_load_is_what_single_calls_would_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_s, now = 100.0, time.monotonic() + 1000
    monkeypatch.setattr(time, "process_time", lambda: cpu_s)
    load = batching._Load()
    load._since = load._cost_since = now

    def second(tasks: int, used_s: float, *, is_batched: bool) -> bool:
        nonlocal cpu_s, now
        cpu_s, now = cpu_s + used_s, now + 1
        load.is_batched = is_batched
        load.began(tasks, now)
        return load.is_busy

    for _ in range(batching.COSTS):
        assert not second(300, 0.3, is_batched=False)  # 1 ms each
    assert not second(900, 0.9, is_batched=False), "not for a moment's sake"
    assert second(900, 0.9, is_batched=False)
    assert second(900, 0.1, is_batched=True), "as single calls they would still take 0.9 s"
    assert not second(300, 0.05, is_batched=True)
    assert not second(10, 0.9, is_batched=False), "what else this process does is not the calls'"
    assert not second(300, 0.9, is_batched=False), "nor is it in one second among others"
    assert not second(900, 0.1, is_batched=True)
    seconds = [second(900, 0.1, is_batched=True) for _ in range(40)]
    assert seconds.count(False) > 0, "single again now and then, to see what that costs"
    assert seconds.count(True) >= 25


def test_equal_latencies_let_any_number_go_together_and_a_long_tail_few() -> None:
    rng = random.Random(7)
    assert most_together([0.5] * 30) == LARGEST
    assert most_together(sorted(rng.expovariate(1) for _ in range(200))) == 4  # E[slowest of n] is 1 + 1/2 + … + 1/n
    assert most_together([1.0] * 9 + [100.0]) == 2


@given(st.lists(st.floats(0.001, 100), min_size=2, max_size=5).map(sorted))
def test_the_slowest_of_so_many_takes_at_most_so_much_longer_in_the_mean(latencies: list[float]) -> None:
    def slowest(n: int) -> float:
        drawn = [max(several) for several in product(latencies, repeat=n)]
        return sum(drawn) / len(drawn)

    n = most_together(latencies)

    most = SLOWEST * sum(latencies) / len(latencies)
    if n <= 4:
        assert slowest(n) <= most * (1 + 1e-9)
    if n <= 2:
        assert slowest(2 * n) > most * (1 - 1e-9)


def test_that_batches_are_not_possible_is_said_once_per_model_and_reason(batches: Batching) -> None:
    with capture_logs() as lines:
        for _ in range(3):
            sizes(Batching(can_batch=False), [grant(dispatch="auto"), grant("other", dispatch="single")])
        assert lines == []
        unable = Batching(can_batch=False)
        for _ in range(3):
            assert sizes(unable, [grant(), grant(), grant("other")]) == [1, 1, 1]
        assert [line["model"] for line in lines] == ["m", "other"]
        end_batch(batches, *[Retry("http_404", "Not Found", 0.0, counts=False)] * 3)
        for _ in range(3):
            assert sizes(batches, [grant(), grant()]) == [1, 1]
    assert [(line["event"], line["model"]) for line in lines] == [
        ("not_batched", "m"),
        ("not_batched", "other"),
        ("not_batched", "m"),
    ]
    assert "LLMQUEUE_BACKEND_BATCH_PATH" in lines[-1]["reason"]


def test_batches_that_are_rejected_as_a_whole_twice_in_a_row_are_given_up(batches: Batching) -> None:
    for _ in range(2):
        assert sizes(batches, [grant(), grant(), grant()]) == [3]
        end_batch(batches, *[Retry("http_413", "Too Large", 0.0, counts=True)] * 3)

    assert sizes(batches, [grant(), grant(), grant()]) == [1, 1, 1]
