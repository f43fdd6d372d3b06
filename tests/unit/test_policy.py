"""policy.decide: whose fault it was, and what that means for the task (design I11)."""

from __future__ import annotations

import json
import random

import pytest

from llmqueue.backend.classify import Blame, classify
from llmqueue.types import (
    Answer,
    Bury,
    Complete,
    Decision,
    Late,
    PermanentError,
    Release,
    Reply,
    Retry,
    Throttled,
    ThrottleKind,
    TransientError,
    Unreachable,
    Usage,
)
from llmqueue.worker import policy
from llmqueue.worker.policy import BACKOFF_CAP_S, backoff_s

RNG = random.Random(7)


def decide(reply: Reply, attempt_no: int = 1, blame: Blame | None = None) -> Decision:
    return policy.decide(reply, blame or classify(reply).blame, attempt_no, RNG)


def test_an_answer_completes() -> None:
    assert decide(Answer("42", Usage(1, 2))) == Complete("42", Usage(1, 2))


@pytest.mark.parametrize("reply", [Late(), Unreachable("connection refused")])
def test_what_was_never_sent_goes_back_whole(reply: Late | Unreachable) -> None:
    assert isinstance(decide(reply, 3), Release)


@pytest.mark.parametrize(
    ("pause_s", "longest_s"), [(20.0, 1.0), (86_400.0, 1.0), (3.0, 0.3), (0.02, 0.002), (0.0, 0.0), (None, 1.0)]
)
def test_a_refusal_pauses_the_model_as_asked_and_the_task_adds_a_little(
    pause_s: float | None, longest_s: float
) -> None:
    decisions = [decide(Throttled("quota", "rate_limited", "429", pause_s)) for _ in range(200)]

    assert all(isinstance(decision, Retry) and decision.pause_s == pause_s for decision in decisions)
    delays = [decision.delay_s for decision in decisions if isinstance(decision, Retry)]
    assert 0 <= min(delays) <= 0.1 * longest_s
    assert 0.9 * longest_s <= max(delays) <= longest_s


@pytest.mark.parametrize("kind", ["quota", "capacity", "credentials"])
@pytest.mark.parametrize("attempt_no", [1, 19, 10_000])
def test_a_refusal_costs_no_attempt_and_says_its_kind(kind: ThrottleKind, attempt_no: int) -> None:
    decision = decide(Throttled(kind, "class", "message", None), attempt_no)

    assert isinstance(decision, Retry)
    assert (decision.refusal, decision.counts, decision.pause_s) == (kind, False, None)
    assert (decision.error_class, decision.error) == ("class", "message")


def test_a_failure_counts_and_backs_off_with_full_jitter() -> None:
    decision = decide(TransientError("timeout", "no reply"))
    assert isinstance(decision, Retry)
    assert decision.counts
    assert decision.refusal is None

    for attempt_no in (1, 2, 5, 9, 60, 10_000):
        pauses = [backoff_s(attempt_no, RNG) for _ in range(500)]
        ceiling = min(BACKOFF_CAP_S, 2.0 ** (attempt_no - 1) if attempt_no < 50 else BACKOFF_CAP_S)
        assert 0.05 <= min(pauses) <= 0.2 * ceiling + 0.05
        assert 0.8 * ceiling <= max(pauses) <= ceiling


@pytest.mark.parametrize(
    ("blame", "counts", "refusal"), [("attempt", True, None), ("model", False, "failures"), ("backend", False, None)]
)
def test_a_failure_counts_only_where_it_is_the_attempts_own(
    blame: Blame, counts: bool, refusal: ThrottleKind | None
) -> None:
    decision = decide(TransientError("http_502", "Bad Gateway"), 1, blame)

    assert isinstance(decision, Retry)
    assert (decision.counts, decision.refusal, decision.may_be_backends) == (counts, refusal, True)


def test_a_rejection_is_a_dead_letter_at_once() -> None:
    assert decide(PermanentError("http_400", "bad prompt")) == Bury("http_400", "bad prompt")


@pytest.mark.parametrize(
    "answer", ["a\x00b", "lone \ud800", {"a": "x\x00"}, ["\udfff"], {"\x00": 1}, [{"deep": ["\ud83d"]}]], ids=repr
)
def test_what_postgres_cannot_hold_is_buried_and_kept_in_words_it_can(answer: object) -> None:
    decision = decide(Answer(answer, Usage()))

    assert isinstance(decision, Bury)
    assert decision.answer is not None
    assert "\x00" not in decision.answer
    assert decision.answer.isascii()
    assert json.loads(decision.answer) == answer


@pytest.mark.parametrize(
    "answer", ["", "🎉 عربى \u202e", "\\u0000 as text", "\t\r\n", 0, False, [], {"a": None}], ids=repr
)
def test_every_other_answer_completes(answer: object) -> None:
    assert isinstance(decide(Answer(answer, Usage())), Complete)
