"""grant_expiry.GrantExpiry: when no grant can be sent in time it says so once a minute and slows the claims down."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from llmqueue.worker.grant_expiry import CLAIMS, JUDGED_AFTER_S, ClaimedGrants, GrantExpiry

GRANTS = 2


class Worker:
    """Claims whenever it may, at `now`; a claim takes 0.3 s."""

    def __init__(self) -> None:
        self.expiry = GrantExpiry()
        self.now = 1000.0

    def claim(self) -> ClaimedGrants:
        self.now += 0.3
        return self.expiry.claimed(GRANTS, self.now, 0.3)

    def claim_late(self) -> None:
        self.end(self.claim(), is_late=True)

    def end(self, claimed: ClaimedGrants, grants: int = GRANTS, *, is_late: bool = False) -> None:
        for _ in range(grants):
            claimed.ended(is_late=is_late)

    def wait(self) -> float:
        """Returns how long it had to pause."""
        since = self.now
        while self.expiry.is_paused(self.now):
            self.now = self.expiry.paused_until
        return round(self.now - since, 3)


@pytest.fixture
def worker() -> Worker:
    worker = Worker()
    for _ in range(CLAIMS):
        assert worker.wait() == 0
        worker.claim_late()
    return worker


def test_the_pause_doubles_up_to_ten_seconds_while_it_goes_on(worker: Worker) -> None:
    pauses = []
    for _ in range(6):
        pauses.append(worker.wait())
        worker.claim_late()

    assert pauses == [1, 2, 4, 8, 10, 10]


def test_it_is_said_once_a_minute_with_what_a_claim_takes(worker: Worker) -> None:
    since = worker.now
    with capture_logs() as lines:
        while worker.now - since < 120:
            worker.wait()
            worker.claim_late()

    assert [(line["event"], line["log_level"], line["claim_s"]) for line in lines] == [
        ("grants_late", "warning", 0.3)
    ] * 2


def test_one_grant_in_time_ends_it(worker: Worker) -> None:
    worker.wait()
    worker.end(worker.claim())

    assert worker.wait() == 0
    worker.claim_late()
    assert worker.wait() == 0


def test_a_call_that_is_under_way_was_sent_in_time(worker: Worker) -> None:
    worker.wait()
    worker.claim()

    assert worker.wait() == JUDGED_AFTER_S, "its grants might yet be given back"
    worker.claim_late()
    assert worker.wait() == 0


def test_the_last_claim_is_waited_for_before_it_is_judged() -> None:
    worker = Worker()
    for _ in range(CLAIMS - 1):
        worker.claim_late()
    claimed = worker.claim()

    assert worker.expiry.is_paused(worker.now)
    worker.end(claimed, is_late=True)
    worker.now = worker.expiry.paused_until
    assert worker.wait() == 1


def test_claims_with_calls_in_flight_or_late_ones_among_them_are_no_reason() -> None:
    worker = Worker()
    for number in range(30):
        claimed = worker.claim()
        worker.end(claimed, GRANTS if number % 2 else 1, is_late=True)
        assert worker.wait() == 0
