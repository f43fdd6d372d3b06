"""attempt.Runner: what a prompt is charged before it is sent; what cannot be charged goes back (design I5)."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import anyio
import pytest

from llmqueue.attempt import Runner
from llmqueue.backend import Call, sending
from llmqueue.errors import DatabaseUnreachable, SqlError
from llmqueue.estimate import FRAME_TOKENS, estimate_input_tokens
from llmqueue.gate import Gate
from llmqueue.models import Answer, Complete, Grant, Json, Refusal, Release, Reply, Retry, Settlement, Task, Usage
from llmqueue.wakeup import Bell

pytestmark = pytest.mark.anyio

PROMPT = "7" * 400
ESTIMATE = 200 + FRAME_TOKENS


class Backend:
    """Sends at once and replies what the test says."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.reply: Reply = Answer("42", Usage(3, 5))

    async def call(self, call: Call) -> Reply:
        sending.send_now()
        self.calls.append(call)
        return self.reply

    async def probe(self) -> str | None:
        return None

    async def aclose(self) -> None: ...


class Run:
    """A runner; `asked` are the charges it wanted to raise, `answer` is what it is told, or raised."""

    def __init__(self) -> None:
        self.backend = Backend()
        self.ends: list[Settlement] = []
        self.asked: list[tuple[int, int]] = []
        self.answer: bool | Exception = True
        self.under_way = 0
        self.gate = anyio.Event()
        self.gate.set()
        gate = Gate(self.backend, "http://backend", Bell())
        self.runner = Runner(self.backend, gate, self.ends.append, self.top_up, random.Random(1))

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
        await self.runner.run(grant)
        [end] = self.ends
        return end


@pytest.fixture
def run(anyio_backend: str) -> Run:
    return Run()


def granted(input_charge: int | None, kinds_ratio: float | None = None, prompt: Json = PROMPT) -> Grant:
    tokens = None if input_charge is None else input_charge + 1000
    task = Task(1, 17, 1, 5, 0, prompt, None, tokens=tokens, input_charge=input_charge)
    return Grant("m", task, time.monotonic(), time.monotonic() + 60, 600.0, kinds_ratio)


@pytest.mark.parametrize(
    ("input_charge", "kinds_ratio", "need"),
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
    run: Run, input_charge: int, kinds_ratio: float | None, need: int | None
) -> None:
    end = await run.one(granted(input_charge, kinds_ratio))

    assert run.asked == ([] if need is None else [(17, need)])
    assert len(run.backend.calls) == 1
    assert isinstance(end.decision, Complete)


async def test_a_few_tokens_more_are_not_worth_a_statement(run: Run) -> None:
    await run.one(granted(1, prompt="7" * 16))  # 16 are needed

    assert run.asked == []


async def test_a_model_without_a_limit_on_tokens_costs_no_estimate(run: Run) -> None:
    end = await run.one(granted(None))

    assert run.asked == []
    assert end.kinds_estimate is None


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
        group.start_soon(run.runner.run, soon)
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
            group.start_soon(run.runner.run, each)
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
        group.start_soon(run.runner.run, granted(10))
        while not run.asked:
            await anyio.sleep(0.005)
        group.cancel_scope.cancel()

    assert [(end.decision, end.sent_after_s) for end in run.ends] == [(Release("worker_stopped"), None)]


@pytest.mark.parametrize("prompt", [PROMPT, "漢字", [{"role": "user", "content": "why?"}]], ids=repr)
async def test_the_estimate_goes_out_with_the_end_whatever_it_is(run: Run, prompt: Json) -> None:
    run.backend.reply = Refusal("quota", "rate_limited", "429", 3.0)

    end = await run.one(granted(10_000, kinds_ratio=3.0, prompt=prompt))

    assert isinstance(end.decision, Retry)
    assert end.decision.refusal == "quota"
    assert end.kinds_estimate == estimate_input_tokens(prompt)  # before calibration


async def test_a_task_that_cannot_be_read_has_no_estimate(run: Run) -> None:
    grant = granted(10)

    end = await run.one(replace(grant, task=replace(grant.task, unreadable="ValueError: no JSON")))

    assert end.kinds_estimate is None
    assert run.asked == []
