"""The judge of `make chaos` bites: each broken promise is named, and what a fault explains is not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from bench.chaos import scene
from bench.chaos.evidence import Attempt, Evidence, Stall, Task
from bench.chaos.judge import Verdict, judge
from bench.chaos.mishaps import Mishap
from bench.chaos.plan import Fault, kinds, schedule
from bench.chaos.recovery import felt
from llmqueue.fake_backend import LoggedCall, expected_answer

LEASE_S = 20.0
MODEL = "replicate-llama-2-70b"
RPM = scene.RPM[MODEL]
T0 = 1_000_000.0


def task(number: int = 1, **fields: object) -> Task:
    given = Task(number, f"prompt {number}", expected_answer(f"prompt {number}"), "solved", 1, None, None)
    return replace(given, **fields)  # type: ignore[arg-type]


def attempt(fence: int = 1, task: int = 1, at: float = T0, **fields: object) -> Attempt:
    given = Attempt(fence, task, MODEL, "w0", "completed", None, 1, at, at + 0.01, at + 2.0)
    return replace(given, **fields)  # type: ignore[arg-type]


def call(seq: int = 1, task: int = 1, at: float = T0 + 0.02) -> LoggedCall:
    return LoggedCall(seq, at, at, MODEL, f"{task}:0", 0, 200, at + 1)


def mishap(name: str, began_at: float, lasts_s: float, worker: int | None = None) -> Mishap:
    kind = kinds(LEASE_S, 30.0)[name]
    return Mishap(Fault(1, kind, 0.0, lasts_s, worker, 0.5), began_at, began_at + lasts_s)


def judged(
    tasks: list[Task],
    attempts: list[Attempt],
    calls: list[LoggedCall],
    *mishaps: Mishap,
    stalls: tuple[Stall, ...] = (),
) -> Verdict:
    return judge(Evidence(tasks, attempts, calls, mishaps, stalls, [{"w0"}, {"w1"}, {"w2"}]))


def test_a_run_without_a_fault_and_with_all_answers_is_clean() -> None:
    assert judged([task()], [attempt()], [call()]).violations == []


@pytest.mark.parametrize(
    ("tasks", "attempts", "calls", "word"),
    [
        ([task(status="running", answer=None)], [attempt(outcome=None, ended_at=None)], [call()], "has no end"),
        ([task(answer="another")], [attempt()], [call()], "answered wrongly"),
        ([task(status="failed")], [attempt(outcome="buried")], [call()], "answered wrongly"),
        ([task()], [attempt(1), attempt(2, at=T0 + 5)], [call()], "recorded answers"),
        ([task()], [attempt()], [call(1), call(2, at=T0 + 3)], "called too often"),
        ([task(status="failed", answer=None)], [attempt(outcome="retried")], [call()], "is a dead letter"),
        ([task()], [attempt(outcome="lost"), attempt(2, at=T0 + 5)], [call()], "without a fault"),
        ([task()], [attempt(), attempt(2, outcome=None, ended_at=None)], [call()], "still open"),
        ([task()], [attempt()], [call(), call(2, task=99)], "keys of no task"),
    ],
)
def test_each_broken_promise_is_named(
    tasks: list[Task], attempts: list[Attempt], calls: list[LoggedCall], word: str
) -> None:
    assert any(word in violation for violation in judged(tasks, attempts, calls).violations)


def test_a_kill_explains_a_second_call_of_its_worker_and_of_no_other() -> None:
    attempts = [attempt(outcome="lost", sent_at=None, ended_at=T0 + 25), attempt(2, at=T0 + 26, worker="w1")]
    calls = [call(), call(2, at=T0 + 26.02)]

    assert judged([task()], attempts, calls, mishap("kill -9 of a worker", T0 + 1, 0, 0)).violations == []
    assert judged([task()], attempts, calls, mishap("kill -9 of a worker", T0 + 1, 0, 1)).violations != []


def test_a_database_that_everybody_loses_explains_no_second_call() -> None:
    attempts = [attempt(outcome="lost", ended_at=T0 + 25), attempt(2, at=T0 + 26, worker="w1")]
    calls = [call(), call(2, at=T0 + 26.02)]

    found = judged([task()], attempts, calls, mishap("database crashes", T0 + 1, 2)).violations

    assert any("called too often" in violation for violation in found)


def many(how_many: int, way_s: float) -> tuple[list[Task], list[Attempt], list[LoggedCall]]:
    """The limit, and then as many again a minute after those were sent: in order, if they arrive in time."""
    moments = [T0 + n * 60.6 / how_many for n in range(2 * how_many)]
    return (
        [task(n) for n in range(len(moments))],
        [attempt(n, n, at) for n, at in enumerate(moments)],
        [call(n, n, at + (way_s if n < how_many // 2 else 0.02)) for n, at in enumerate(moments)],
    )


def test_one_call_more_than_the_limit_in_a_window_is_named() -> None:
    assert judged(*many(RPM, 0.02)).violations == []
    assert any(MODEL in violation for violation in judged(*many(RPM + 1, 0.02)).violations)


def test_calls_that_a_silent_link_held_back_count_when_they_were_sent_and_others_when_they_arrived() -> None:
    evidence = many(RPM, way_s=20.0)
    silence = mishap("backend half-open", T0, 90.0)

    assert judged(*evidence, silence).violations == []
    assert judged(*evidence, stalls=(Stall(T0, T0 + 90),)).violations == []
    assert any(MODEL in violation for violation in judged(*evidence).violations)


def test_the_schedule_is_the_seeds_and_never_does_two_things_to_one() -> None:
    faults = schedule(7, 600, LEASE_S, 30.0)

    assert faults == schedule(7, 600, LEASE_S, 30.0)
    assert faults != schedule(8, 600, LEASE_S, 30.0)
    assert {fault.kind.name for fault in faults} == set(kinds(LEASE_S, 30.0))
    assert len(faults) > 100
    for earlier, later in pairwise(faults):
        is_over = earlier.at_s + earlier.lasts_s < later.at_s
        is_of_others = earlier.kind.thing != later.kind.thing or earlier.worker != later.worker
        assert is_over or is_of_others, (earlier, later)


def test_recovery_of_a_kill_is_until_its_last_task_waits_again() -> None:
    attempts = [
        attempt(1, 1, outcome="lost", ended_at=T0 + 20),
        attempt(2, 2, outcome="lost", ended_at=T0 + 22),
        attempt(3, 3, worker="w1", ended_at=T0 + 40),
    ]
    evidence = Evidence(
        [task(1), task(2), task(3)], attempts, [], [mishap("kill -9 of a worker", T0 + 1, 0, 0)], (), [{"w0"}, {"w1"}]
    )

    (kill,) = felt(evidence)

    assert (kill.tasks, kill.in_vain, kill.max_s) == (2, 2, 21.0)
