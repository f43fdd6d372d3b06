"""The audit against a brute force over all windows, and against a limiter that does its work."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmqueue.audit import EPOCH, Call, Scope
from tests.support.audit import START, S, audit, judged

# Few calls fill a short window, and on a grid of an eighth of a second its edges are hit.
SHORT = Scope(window_s=2.0, guard_s=0.5)
TICK = S // 8


def us(at: datetime) -> int:
    return (at - EPOCH) // timedelta(microseconds=1)


# --- brute force ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Placed:
    """A call that counts, and when it may have been sent."""

    call: Call
    lo: int
    hi: int


def counted(calls: Sequence[Call], scope: Scope = SHORT) -> list[Placed]:
    result = []
    for call in calls:
        if call.outcome == "released":
            continue
        if call.sent_us is None:
            result.append(Placed(call, call.granted_us, call.granted_us + scope.send_within_us))
        else:
            result.append(Placed(call, call.sent_us, call.sent_us))
    return result


def charge(call: Call, at: int, scope: Scope = SHORT) -> int:
    charged = call.tokens or 0
    if call.ended_us is None or call.tokens_final is None or call.ended_us - scope.send_within_us > at:
        return charged
    if at == (call.granted_us if call.sent_us is None else call.sent_us):
        return charged  # nobody had seen it settled
    return min(charged, call.tokens_final)


@dataclass(frozen=True)
class Found:
    at: int
    used: int
    limit: int


def every_window(calls: Sequence[Call], what: str, scope: Scope = SHORT) -> list[Found]:
    """For each moment at which a call may first have been sent, the window that ends then."""
    placed = counted(calls, scope)
    result = []
    for at in sorted({one.lo for one in placed}):
        members = [one.call for one in placed if one.lo <= at and one.hi > at - scope.window_us]
        newest = members[-1]  # they are in the order of their grants
        if what == "calls":
            result.append(Found(at, len(members), newest.rpm))
        elif newest.tpm is not None:
            result.append(Found(at, sum(charge(call, at, scope) for call in members), newest.tpm))
    return result


def share(used: int, limit: int) -> tuple[float, int]:
    return (used / limit if limit else math.inf, used if not limit else 0)


# --- calls ------------------------------------------------------------------------------------------------------

TPM = st.sampled_from([None, 20, 50])


@st.composite
def logs(draw: st.DrawFn) -> list[Call]:
    """Calls of one model in the order of their grants, with limits that change now and then."""
    at, rpm, tpm, calls = START, draw(st.integers(1, 6)), draw(TPM), []
    for _ in range(draw(st.integers(1, 25))):
        at += TICK * draw(st.sampled_from([0, 0, 1, 1, 2, 3, 15, 16, 17, 40]))
        if draw(st.integers(0, 6)) == 0:
            rpm, tpm = draw(st.integers(1, 6)), draw(TPM)
        sent_after = draw(st.sampled_from([None, 0, 0, 1, 2, 4, 20]))
        ended_after = draw(st.sampled_from([None, 4, 8, 12]))
        calls.append(
            Call(
                model="m",
                granted_us=at,
                rpm=rpm,
                sent_us=None if sent_after is None else at + sent_after * TICK,
                ended_us=None if ended_after is None else at + ended_after * TICK,
                outcome=draw(st.sampled_from(["completed", "completed", "released"])),
                tpm=tpm,
                tokens=draw(st.one_of(st.none(), st.integers(0, 20))),
                tokens_final=draw(st.one_of(st.none(), st.integers(0, 30))),
            )
        )
    return calls


@given(logs(), st.sampled_from(["calls", "tokens"]))
def test_the_worst_window_and_the_violations_are_those_of_the_brute_force(calls: list[Call], what: str) -> None:
    windows = every_window(calls, what)
    found = [judged for judged in audit(calls, SHORT).limits if judged.what == what]

    if not windows:
        assert found == []
        return
    (kind,) = found
    assert kind.windows == len(windows)
    assert kind.over == sum(window.used > window.limit for window in windows)
    worst = max(windows, key=lambda window: share(window.used, window.limit))
    assert share(kind.worst.used, kind.worst.limit) == share(worst.used, worst.limit)
    assert Found(us(kind.worst.to_at), kind.worst.used, kind.worst.limit) in windows
    named = {(us(window.to_at), window.used, window.limit) for window in kind.violations}
    assert named <= {(window.at, window.used, window.limit) for window in windows if window.used > window.limit}
    assert bool(named) == (kind.over > 0)


@given(logs(), st.randoms(use_true_random=False))
def test_no_placement_of_the_unknown_is_worse_than_what_is_said(calls: list[Call], rng: random.Random) -> None:
    calls = [call._replace(rpm=5) for call in calls if call.outcome != "released"]
    if not calls:
        return
    worst = judged(audit(calls, SHORT)).worst

    placed = [call._replace(sent_us=rng.randint(one.lo, one.hi)) for one in counted(calls) for call in [one.call]]
    into_the_worst = [
        one.call._replace(sent_us=min(one.hi, max(one.lo, us(worst.from_at) + 1))) for one in counted(calls)
    ]

    assert judged(audit(placed, SHORT)).worst.used <= worst.used
    assert judged(audit(into_the_worst, SHORT)).worst.used == worst.used


@given(logs())
def test_the_use_is_the_mean_over_all_full_windows(calls: list[Call]) -> None:
    placed = counted(calls)
    if not placed:
        return
    begun, ended = min(one.lo for one in placed) + SHORT.window_us, max(one.lo for one in placed)
    marks = {one.lo for one in placed} | {one.lo + SHORT.window_us for one in placed} | {begun, ended}
    moments = sorted(mark for mark in marks if begun <= mark <= ended)
    limits = {window.at: window.limit for window in every_window(calls, "calls")}
    sent_us = allowed_us = 0
    for at, until in pairwise(moments):
        sent_us += sum(one.lo <= at < one.lo + SHORT.window_us for one in placed) * (until - at)
        allowed_us += limits[max(lo for lo in limits if lo <= at)] * (until - at)

    use = judged(audit(calls, SHORT)).use_pct

    assert use == (round(float(Fraction(100 * sent_us, allowed_us)), 2) if allowed_us else None)


# --- a limiter ----------------------------------------------------------------------------------------------------


class Limiter:
    """What the ledger does: all that was granted in the last window and guard fits, with the grant, into the limit."""

    def __init__(self, span_us: int) -> None:
        self.span_us = span_us
        self.calls: list[Call] = []

    def grant(self, at: int, rpm: int, tpm: int | None, tokens: int, rng: random.Random) -> None:
        recent = [call for call in self.calls if call.granted_us > at - self.span_us and call.outcome != "released"]
        used = sum(self.charge(call, at) for call in recent)
        if len(recent) + 1 > rpm or (tpm is not None and used + tokens > tpm):
            return
        sent_us = rng.choice([None, at + rng.randint(0, SHORT.send_within_us)])
        ended_us = rng.choice([None, at + rng.randint(SHORT.send_within_us, 4 * S)])
        final = None if ended_us is None else rng.randint(0, 2 * tokens)
        self.calls.append(Call("m", at, rpm, sent_us, ended_us, None, None, tpm, None, tokens, None, final))

    def charge(self, call: Call, at: int) -> int:
        is_settled = call.ended_us is not None and call.ended_us <= at and call.tokens_final is not None
        return (call.tokens_final if is_settled else call.tokens) or 0

    def release(self, rng: random.Random) -> None:
        n = rng.randrange(len(self.calls))
        self.calls[n] = self.calls[n]._replace(outcome="released", sent_us=None)


def run_limiter(span_us: int, rng: random.Random) -> list[Call]:
    limiter, at, rpm, tpm = Limiter(span_us), START, rng.randint(1, 5), 50
    for _ in range(150):
        at += rng.choice([0, TICK, TICK, 1, rng.randint(0, S // 2)])
        if rng.random() < 0.05:
            rpm, tpm = rng.randint(1, 5), rng.choice([30, 50])
        limiter.grant(at, rpm, tpm, rng.randint(0, 20), rng)
        if limiter.calls and rng.random() < 0.1:
            limiter.release(rng)
    return limiter.calls


@given(st.integers(0, 2**32))
def test_a_limiter_that_does_its_work_is_never_accused(seed: int) -> None:
    calls = run_limiter(SHORT.window_us + SHORT.send_within_us, random.Random(seed))

    if not all(call.outcome == "released" for call in calls):
        report = audit(calls, SHORT)
        assert not report.is_violated, report
        for kind in report.limits:
            if kind.final is not None:
                assert kind.final.used <= kind.final.limit + kind.final.overshoot


@pytest.mark.parametrize("short_by_s", [0.3, 1.0])
def test_a_limiter_with_a_window_too_short_is_found_out(short_by_s: float) -> None:
    span_us = SHORT.window_us - round(short_by_s * S)

    reports = [audit(run_limiter(span_us, random.Random(seed)), SHORT) for seed in range(20)]

    assert any(report.is_violated for report in reports)
