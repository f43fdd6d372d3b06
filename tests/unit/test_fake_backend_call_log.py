"""The call log is a witness: it forgets nothing it should keep and makes nothing up."""

from pathlib import Path
from random import Random

import pytest

from llmqueue.fake_backend.call_log import Arrival, CallLog, read_calls, worst_window

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def brute_force_worst(arrivals: list[float], window_s: float) -> int:
    return max((sum(start <= other < start + window_s for other in arrivals) for start in arrivals), default=0)


@pytest.mark.parametrize("seed", range(20))
def test_worst_window_equals_counting_from_every_arrival(seed: int):
    rng = Random(seed)
    arrivals = [float(rng.randrange(0, 300)) for _ in range(rng.randrange(0, 80))]

    assert worst_window(arrivals, 60.0) == brute_force_worst(arrivals, 60.0)


def test_a_window_is_half_open():
    assert worst_window([0.0, 60.0]) == 1
    assert worst_window([0.0, 59.999]) == 2


def test_an_open_call_is_shown_and_then_finished_in_place():
    log = CallLog()

    call = log.arrive(Arrival(1.0, 2.0), "m", "7:0")
    (before,) = log.calls()
    log.finish(call, 200)
    (after,) = log.calls()

    assert (before.status, before.finished_at) == (None, None)
    assert after.status == 200
    assert after.finished_at is not None
    assert (after.arrived_at, after.arrived_monotonic, after.key) == (1.0, 2.0, "7:0")


def test_in_flight_counts_the_calls_to_the_same_model_only():
    log = CallLog()
    first = log.arrive(Arrival.now(), "m", None)
    log.arrive(Arrival.now(), "other", None)

    assert log.arrive(Arrival.now(), "m", None).in_flight == 1

    log.finish(first, 200)
    assert log.arrive(Arrival.now(), "m", None).in_flight == 1


def test_memory_is_bounded_and_says_what_it_dropped():
    log = CallLog(size=10)
    slow = log.arrive(Arrival.now(), "m", "slow")
    for _ in range(24):
        log.finish(log.arrive(Arrival.now(), "m", None), 200)

    log.finish(slow, 200)  # its place is taken by then

    assert [call.seq for call in log.calls()] == list(range(16, 26))
    assert log.dropped == 15


def test_pages_follow_each_other_without_gap_or_repeat():
    log = CallLog()
    for number in range(25):
        log.arrive(Arrival.now(), "even" if number % 2 else "odd", None)

    pages = [log.calls(since, limit=10) for since in (0, 10, 20, 25)]

    assert [call.seq for page in pages for call in page] == list(range(1, 26))
    assert {call.model for call in log.calls(model="even")} == {"even"}


async def test_the_file_holds_every_call_and_also_those_that_never_finished(tmp_path: Path):
    log = CallLog(tmp_path / "calls.jsonl", size=1)
    log.finish(log.arrive(Arrival.now(), "m", "1:0"), 200)
    hanging = log.arrive(Arrival.now(), "m", "2:0")
    log.mark(hanging, "hang")
    log.finish(log.arrive(Arrival.now(), "m", "3:0"), 429, "limit")

    log.stop()
    log.finish(hanging, None, "hang")  # cut off by the stop itself
    log.close()

    found = [
        (call.key, call.status, call.fault, call.finished_at is None) for call in read_calls(tmp_path / "calls.jsonl")
    ]
    assert found == [
        ("1:0", 200, None, False),
        ("2:0", None, "hang", True),
        ("3:0", 429, "limit", False),
    ]


async def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path):
    path = tmp_path / "calls.jsonl"
    log = CallLog(path)
    log.finish(log.arrive(Arrival.now(), "m", None), 200)
    log.close()
    with path.open("a") as file:
        file.write('{"seq": 2, "arr')

    assert [call.seq for call in read_calls(path)] == [1]
