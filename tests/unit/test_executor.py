"""executor.Executor: what a prompt is charged before it is sent; what cannot be charged goes back (design I5)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import anyio
import pytest

from llmqueue.backend import Call, sending
from llmqueue.backend.circuit_breaker import HALF, WINDOW
from llmqueue.backend.health import BackendHealth
from llmqueue.db.listen import WakeSignal
from llmqueue.errors import DatabaseUnreachable, SqlError
from llmqueue.estimate import FRAME_TOKENS, estimate_input_tokens
from llmqueue.types import (
    LATE,
    Answer,
    Bury,
    Complete,
    Grant,
    Json,
    PermanentError,
    Release,
    Reply,
    Retry,
    Settlement,
    Task,
    Throttled,
    TransientError,
    Usage,
)
from tests.support.executor import Ends, executor_of

pytestmark = pytest.mark.anyio

PROMPT = "7" * 400
ESTIMATE = 200 + FRAME_TOKENS


class Backend:
    """Sends at once and replies what the test says."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.reply: Reply = Answer("42", Usage(3, 5))
        self.batches: list[list[Call]] = []
        self.replies: list[Reply] | None = None

    async def call(self, call: Call) -> Reply:
        sending.send_now()
        self.calls.append(call)
        return self.reply

    async def call_batch(self, calls: Sequence[Call]) -> Sequence[Reply]:
        sending.send_now()
        self.batches.append(list(calls))
        return self.replies if self.replies is not None else [self.reply] * len(calls)

    async def probe(self) -> str | None:
        return None

    async def aclose(self) -> None: ...


class Run:
    """An executor; `asked` are the charges it wanted to raise, `answer` is what it is told, or raised."""

    def __init__(self) -> None:
        self.backend = Backend()
        self.ends = Ends()
        self.asked: list[tuple[int, int]] = []
        self.answer: bool | Exception = True
        self.under_way = 0
        self.gate = anyio.Event()
        self.gate.set()
        self.health = BackendHealth(self.backend, "http://backend", WakeSignal())
        self.executor = executor_of(self.backend, self.health, self.ends, self.top_up)

    async def top_up(self, fence: int, input_charge: int) -> bool:
        self.asked.append((fence, input_charge))
        self.under_way += 1
        assert self.under_way == 1, "claims and flushes need connections too"
        await self.gate.wait()
        self.under_way -= 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def one(self, grant: Grant) -> Settlement:
        await self.executor.run(grant)
        [end] = self.ends
        return end


@pytest.fixture
def run(anyio_backend: str) -> Run:
    return Run()


def granted(input_charge: int | None, char_class_ratio: float | None = None, prompt: Json = PROMPT) -> Grant:
    tokens = None if input_charge is None else input_charge + 1000
    task = Task(1, 17, 1, 5, 0, prompt, None, tokens=tokens, input_charge=input_charge)
    return Grant("m", task, time.monotonic(), time.monotonic() + 60, 600.0, char_class_ratio)


@pytest.mark.parametrize(
    ("input_charge", "char_class_ratio", "need"),
    [
        (ESTIMATE, None, None),
        (ESTIMATE * 10, None, None),
        (167, None, None),  # 208 is less than a quarter more
        (166, None, ESTIMATE),
        (108, None, ESTIMATE),
        (1, None, ESTIMATE),
        (0, None, ESTIMATE),
        (ESTIMATE, 1.0, None),
        (ESTIMATE, 1.2, None),
        (ESTIMATE, 1.3, 271),  # rounded up
        (ESTIMATE, 0.5, None),
        (1, 1e30, 2**31 - 1),
    ],
)
async def test_a_charge_that_is_clearly_too_low_is_raised_before_the_prompt_is_sent(
    run: Run, input_charge: int, char_class_ratio: float | None, need: int | None
) -> None:
    end = await run.one(granted(input_charge, char_class_ratio))

    assert run.asked == ([] if need is None else [(17, need)])
    assert len(run.backend.calls) == 1
    assert isinstance(end.decision, Complete)


async def test_a_few_tokens_more_are_not_worth_a_statement(run: Run) -> None:
    await run.one(granted(1, prompt="7" * 16))  # 16 are needed

    assert run.asked == []


async def test_a_model_without_a_limit_on_tokens_costs_no_estimate(run: Run) -> None:
    end = await run.one(granted(None))

    assert run.asked == []
    assert end.char_class_estimate is None


@pytest.mark.parametrize("answer", [False, DatabaseUnreachable("away"), SqlError("raised", "42883")], ids=repr)
async def test_what_cannot_be_charged_goes_back_unsent(run: Run, answer: bool | Exception) -> None:
    run.answer = answer

    end = await run.one(granted(10))

    assert end == Settlement(end.grant, Release("tokens"), None, None, ESTIMATE)
    assert run.backend.calls == []


async def test_the_grant_s_time_goes_on_while_its_charge_is_raised(run: Run) -> None:
    run.gate = anyio.Event()
    soon = replace(granted(10), send_before=time.monotonic() + 0.05)

    async with anyio.create_task_group() as group:
        group.start_soon(run.executor.run, soon)
        while time.monotonic() <= soon.send_before:
            await anyio.sleep(0.01)
        run.gate.set()

    assert [end.decision for end in run.ends] == [Release("late_grant")]
    assert run.backend.calls == []


async def test_many_that_need_more_ask_one_after_the_other_while_there_is_time(run: Run) -> None:
    run.gate = anyio.Event()
    soon = replace(granted(10), send_before=time.monotonic() + 0.05)

    async with anyio.create_task_group() as group:
        for each in (granted(10), soon, granted(10)):
            group.start_soon(run.executor.run, each)
            await anyio.sleep(0)
        while time.monotonic() <= soon.send_before:
            await anyio.sleep(0.01)
        run.gate.set()

    assert len(run.asked) == 2
    assert sorted(isinstance(end.decision, Complete) for end in run.ends) == [False, True, True]


async def test_a_grant_that_is_late_anyway_is_not_topped_up(run: Run) -> None:
    end = await run.one(replace(granted(10), send_before=time.monotonic() - 1))

    assert run.asked == []
    assert end.decision == Release("late_grant")


async def test_a_worker_that_stops_while_a_charge_is_raised_gives_the_task_back_whole(run: Run) -> None:
    run.gate = anyio.Event()

    async with anyio.create_task_group() as group:
        group.start_soon(run.executor.run, granted(10))
        while not run.asked:
            await anyio.sleep(0.005)
        group.cancel_scope.cancel()

    assert [(end.decision, end.sent_after_s) for end in run.ends] == [(Release("worker_stopped"), None)]


@pytest.mark.parametrize("prompt", [PROMPT, "漢字", [{"role": "user", "content": "why?"}]], ids=repr)
async def test_the_estimate_goes_out_with_the_end_whatever_it_is(run: Run, prompt: Json) -> None:
    run.backend.reply = Throttled("quota", "rate_limited", "429", 3.0)

    end = await run.one(granted(10_000, char_class_ratio=3.0, prompt=prompt))

    assert isinstance(end.decision, Retry)
    assert end.decision.refusal == "quota"
    assert end.char_class_estimate == estimate_input_tokens(prompt)  # before calibration


async def test_a_task_that_cannot_be_read_has_no_estimate(run: Run) -> None:
    grant = granted(10)

    end = await run.one(replace(grant, task=replace(grant.task, unreadable="ValueError: no JSON")))

    assert end.char_class_estimate is None
    assert run.asked == []


# --- several tasks in one call ----------------------------------------------------------------------------------


def several(how_many: int, **changes: Any) -> list[Grant]:
    grant = granted(None)
    return [replace(grant, task=replace(grant.task, id=n, fence=n, **changes)) for n in range(1, how_many + 1)]


async def test_tasks_of_one_call_have_each_their_own_end(run: Run) -> None:
    refused = Throttled("quota", "rate_limited", "429", 3.0)
    run.backend.replies = [Answer("one", Usage()), TransientError("no_result", "nothing"), refused]

    await run.executor.run(*several(3))

    [[first, *_]] = run.backend.batches
    assert (first.model, first.prompt, first.idempotency_key) == ("m", PROMPT, "1:0")
    ends = {end.grant.task.fence: end.decision for end in run.ends}
    assert ends[1] == Complete("one", Usage())
    assert isinstance(ends[2], Retry)
    assert ends[2].counts
    assert isinstance(ends[3], Retry)
    assert (ends[3].counts, ends[3].refusal) == (False, "quota")
    assert all(end.sent_after_s is not None for end in run.ends)


async def test_a_call_that_fails_as_a_whole_is_one_failure_of_the_backend(run: Run) -> None:
    run.backend.replies = [TransientError("http_502", "Bad Gateway")] * WINDOW

    await run.executor.run(*several(WINDOW))

    assert len(run.ends) == WINDOW
    assert all(isinstance(end.decision, Retry) and end.decision.counts for end in run.ends)
    assert run.health.breaker.is_closed


async def test_failures_that_are_found_to_be_the_backends_get_their_attempt_back_for_every_task_of_the_call(
    run: Run,
) -> None:
    for number in range(HALF):
        run.backend.replies = [broken := TransientError("http_502", "Bad Gateway"), broken]
        first, second = several(2)
        await run.executor.run(
            replace(first, task=replace(first.task, fence=10 * number)),
            replace(second, task=replace(second.task, fence=10 * number + 1)),
        )

    counted = {end.grant.task.fence for end in run.ends if isinstance(end.decision, Retry) and end.decision.counts}
    assert len(counted) == 2 * (HALF - 1)
    assert set(run.health.breaker.take_restorable()) == counted


@pytest.mark.parametrize(("status", "counts"), [(400, True), (413, True), (422, True), (404, False), (405, False)])
async def test_a_rejection_of_the_whole_call_buries_none_of_its_tasks(run: Run, status: int, counts: bool) -> None:
    run.backend.replies = [PermanentError(f"http_{status}", "no")] * 3

    await run.executor.run(*several(3))

    assert [end.decision for end in run.ends] == [Retry(f"http_{status}", "no", 0.0, counts=counts)] * 3


async def test_a_rejection_of_the_whole_call_shows_that_the_backend_works(run: Run) -> None:
    breaker = run.health.breaker
    breaker.begin_slowly()
    run.backend.replies = [PermanentError("http_422", "no")] * 3
    grants = several(3)
    for grant in grants:
        run.health.started(grant)

    await run.executor.run(*grants)

    assert breaker.calls_left(time.monotonic()) == 2


async def test_a_rejection_of_one_task_buries_that_one(run: Run) -> None:
    run.backend.replies = [PermanentError("http_400", "no"), Answer("two", Usage())]

    await run.executor.run(*several(2))

    assert [type(end.decision) for end in run.ends] == [Bury, Complete]


async def test_a_call_is_one_success_or_one_failure_however_many_tasks_it_carries(run: Run) -> None:
    breaker = run.health.breaker
    for number in range(HALF):
        good: list[Reply] = [Answer("42", Usage()) for _ in range(WINDOW)]
        bad: list[Reply] = [TransientError("http_502", str(each)) for each in range(WINDOW)]
        run.backend.replies = good if number % 2 else bad
        await run.executor.run(*several(WINDOW))
    assert breaker.is_closed
    for _ in range(HALF):
        run.backend.replies = [TransientError("http_502", "Bad Gateway")] * WINDOW
        await run.executor.run(*several(WINDOW))
    assert not breaker.is_closed


async def test_what_is_no_reply_costs_no_other_answer(run: Run) -> None:
    run.backend.replies = [Answer("one", Usage()), None]

    await run.executor.run(*several(2))

    first, second = (end.decision for end in run.ends)
    assert first == Complete("one", Usage())
    assert isinstance(second, Retry)
    assert second.error_class == "adapter_raised"


async def test_tasks_that_need_more_tokens_do_not_make_the_others_late(run: Run) -> None:
    now = time.monotonic()
    dear = [replace(each, task=replace(each.task, tokens=1000, input_charge=1)) for each in several(3)]
    cheap = replace(several(4)[3], granted_at=now - 1, send_before=now + 0.9)

    await run.executor.run(*(replace(each, granted_at=now - 1, send_before=now + 0.9) for each in dear), cheap)

    assert run.asked == [], "half of the time was gone before"
    assert {end.grant.task.fence: type(end.decision) for end in run.ends} == dict.fromkeys((1, 2, 3), Release) | {
        4: Complete
    }


async def test_a_late_call_goes_back_whole(run: Run) -> None:
    await run.executor.run(*(replace(grant, send_before=time.monotonic() - 1) for grant in several(3)))

    assert run.backend.batches == []
    assert [(end.decision, end.sent_after_s) for end in run.ends] == [(LATE, None)] * 3


async def test_what_cannot_be_charged_goes_back_at_once_and_the_others_are_sent(run: Run) -> None:
    run.answer = False
    fits, does_not, fits_too = several(3)
    dear = replace(does_not, task=replace(does_not.task, tokens=1000, input_charge=1))

    await run.executor.run(fits, dear, fits_too)

    assert [call.idempotency_key for [*batch] in run.backend.batches for call in batch] == ["1:0", "3:0"]
    assert {end.grant.task.fence: type(end.decision) for end in run.ends} == {1: Complete, 2: Release, 3: Complete}
    assert run.ends[0].grant.task.fence == 2, "before the call, not after it"


async def test_when_one_task_is_left_it_is_a_single_call(run: Run) -> None:
    readable, broken = several(2)

    await run.executor.run(readable, replace(broken, task=replace(broken.task, unreadable="no JSON")))

    assert (len(run.backend.calls), run.backend.batches) == (1, [])
    assert {end.grant.task.fence: type(end.decision) for end in run.ends} == {1: Complete, 2: Bury}


async def test_an_adapter_that_returns_nothing_has_a_bug_and_was_not_slow(run: Run) -> None:
    async def nothing(_: Sequence[Call]) -> Sequence[Reply]:
        sending.send_now()
        return None

    run.backend.call_batch = nothing  # type: ignore[method-assign,assignment]
    await run.executor.run(*several(3))

    assert [end.decision.error_class for end in run.ends if isinstance(end.decision, Retry)] == ["adapter_raised"] * 3


async def test_an_adapter_that_returns_too_few_replies_has_a_bug_and_no_task_is_lost(run: Run) -> None:
    run.backend.replies = [Answer("one", Usage())]

    await run.executor.run(*several(3))

    assert [end.decision.error_class for end in run.ends if isinstance(end.decision, Retry)] == ["adapter_raised"] * 3


async def test_a_worker_that_stops_settles_every_task_of_the_call_once(run: Run) -> None:
    began = anyio.Event()

    async def call_batch(_: Sequence[Call]) -> Sequence[Reply]:
        sending.send_now()
        began.set()
        await anyio.sleep_forever()
        raise AssertionError

    run.backend.call_batch = call_batch  # type: ignore[method-assign,assignment]
    async with anyio.create_task_group() as group:
        group.start_soon(run.executor.run, *several(3))
        await began.wait()
        group.cancel_scope.cancel()

    assert [end.grant.task.fence for end in run.ends] == [1, 2, 3]
    assert all(isinstance(end.decision, Retry) and end.decision.counts for end in run.ends)
