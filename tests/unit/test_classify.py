"""classify: whose fault each kind of reply is by itself, and what it shows of the backend (design I11)."""

from __future__ import annotations

import pytest

from llmqueue.backend.classify import Blame, Evidence, classify, may_be_backends
from llmqueue.types import Answer, Late, PermanentError, Reply, Throttled, TransientError, Unreachable, Usage


@pytest.mark.parametrize(
    ("reply", "blame", "evidence"),
    [
        (Answer("42", Usage()), None, "works"),
        (Late(), None, "silent"),
        (Unreachable("connection refused"), "backend", "unreachable"),
        (Throttled("quota", "rate_limited", "429", 3.0), "model", "silent"),
        (Throttled("credentials", "credentials_refused", "401", None), "model", "silent"),
        (TransientError("timeout", "no answer"), "attempt", "silent"),
        (TransientError("http_502", "Bad Gateway"), "attempt", "fails"),
        (TransientError("connection_lost", "reset"), "attempt", "fails"),
        (TransientError("unreadable_reply", "200 without JSON"), "attempt", "works"),
        (PermanentError("http_400", "bad"), "task", "works"),
    ],
    ids=str,
)
def test_a_reply_has_one_blame_and_one_evidence(reply: Reply, blame: Blame | None, evidence: Evidence) -> None:
    found = classify(reply)

    assert (found.blame, found.evidence) == (blame, evidence)


@pytest.mark.parametrize(
    ("error_class", "is_blamed"),
    [
        ("http_500", True),
        ("http_502", True),
        ("http_504", True),
        ("connection_lost", True),
        ("timeout", False),
        ("unreadable_reply", False),
        ("http_302", False),
        ("http_408", False),
        ("error_in_reply", False),
    ],
)
def test_which_failures_may_be_the_backends(error_class: str, is_blamed: bool) -> None:
    assert may_be_backends(error_class) is is_blamed
