"""What the audit judges and what it counts, one thing at a time."""

from __future__ import annotations

from datetime import UTC, datetime

from llmqueue.audit import Auditor, Scope, Window, moment
from tests.support.audit import START, S, audit, judged, sent, unknown

MINUTE = Scope()


def test_a_window_is_half_open() -> None:
    exactly = audit([sent(0), sent(60)], MINUTE)
    within = audit([sent(0), sent(59.999999)], MINUTE)

    assert judged(exactly).worst.used == 1
    assert judged(within).worst == Window(moment(START - 1), moment(START + 60 * S - 1), 2, 60)


def test_an_unknown_call_counts_until_half_a_guard_after_its_grant() -> None:
    assert judged(audit([unknown(0), sent(60.249999)], MINUTE)).worst.used == 2
    assert judged(audit([unknown(0), sent(60.25)], MINUTE)).worst.used == 1
    # at its earliest it ends the window itself
    assert judged(audit([sent(0), unknown(59.999999)], MINUTE)).worst.used == 2
    assert judged(audit([sent(0), unknown(60)], MINUTE)).worst.used == 1


def test_calls_that_were_given_back_unsent_do_not_count() -> None:
    given_back = [
        unknown(0, outcome="released", error_class="late_grant"),
        unknown(0, outcome="released", error_class="worker_stopped"),
        unknown(0, outcome="retried", error_class="adapter_raised"),
        unknown(0, outcome="buried", error_class="unreadable_task"),
    ]
    may_be_sent = [
        unknown(0),
        unknown(0, outcome="lost"),
        unknown(0, outcome="late"),
        unknown(0, outcome="completed"),
        unknown(0, outcome="quarantined", error_class="22001"),
    ]

    report = audit([*given_back, *may_be_sent], MINUTE)

    assert (report.attempts, report.unsent, report.forfeited, report.unknown, report.sent) == (9, 4, 1, 5, 0)
    assert judged(report).worst.used == 5


def test_windows_after_a_lowering_are_judged_from_its_first_grant_on() -> None:
    before = [sent(n, rpm=10) for n in range(10)]

    fits = audit([*before, sent(68.5, rpm=2)], MINUTE)
    too_early = audit([*before, sent(67.5, rpm=2)], MINUTE)

    assert judged(fits).over == 0
    assert judged(too_early).violations == (
        Window(moment(START + round(7.5 * S)), moment(START + round(67.5 * S)), 3, 2),
    )


def test_a_raise_holds_for_what_was_granted_under_it_though_an_older_call_is_sent_later() -> None:
    old = sent(0, rpm=1)._replace(sent_us=START + 200_000)
    new = [sent(0.1, rpm=5) for _ in range(4)]

    report = audit([old, *new], MINUTE)

    assert (judged(report).worst.used, judged(report).worst.limit, judged(report).over) == (5, 5, 0)


def test_a_limit_of_0_is_exceeded_by_any_call() -> None:
    report = audit([sent(0, rpm=0)], MINUTE)

    assert report.is_violated
    assert (judged(report).worst.used, judged(report).worst.limit) == (1, 0)


def test_a_call_sent_late_is_a_violation() -> None:
    just = audit([sent(0)._replace(sent_us=START + 250_000)], MINUTE)
    late = audit([sent(0)._replace(sent_us=START + 250_002)], MINUTE)

    assert (just.sent_late, just.is_violated) == (0, False)
    assert (late.sent_late, late.is_violated, late.slowest_s) == (1, True, 0.250002)


def test_charges_are_judged_and_what_they_became_is_published() -> None:
    calls = [
        sent(n, tpm=100, tokens=50, tokens_final=80, ended_us=START + (n + 2) * S)
        for n in range(2)
    ]  # fmt: skip

    tokens = judged(audit(calls, MINUTE), "tokens")

    assert (tokens.worst.used, tokens.over, tokens.overshoot) == (100, 0, 60)
    assert tokens.final is not None
    assert (tokens.final.used, tokens.final.limit, tokens.final.overshoot) == (160, 100, 60)


def test_what_a_settlement_gave_back_leaves_room_only_after_it() -> None:
    first = sent(0, tpm=100, tokens=90, tokens_final=10, ended_us=START + 5 * S)

    assert judged(audit([first, sent(6, tpm=100, tokens=90)], MINUTE), "tokens").over == 0
    assert judged(audit([first, sent(4, tpm=100, tokens=90)], MINUTE), "tokens").over == 1


def test_a_charge_above_the_limit_is_seen_though_the_attempt_ended_at_once() -> None:
    soon = START + 60_000
    report = audit([sent(0, tpm=20_000, tokens=50_000, tokens_final=40, ended_us=soon), sent(1, tpm=20_000)], MINUTE)

    tokens = judged(report, "tokens")
    assert (tokens.over, tokens.worst.used, tokens.worst.limit) == (1, 50_000, 20_000)


def test_output_is_judged_by_its_own_limit() -> None:
    calls = [sent(n, tpm=100, tokens=10, output_tpm=20, output_tokens=15, output_tokens_final=25) for n in range(2)]

    output = judged(audit(calls, MINUTE), "output_tokens")

    assert (output.worst.used, output.worst.limit, output.over, output.overshoot) == (30, 20, 1, 20)
    assert judged(audit(calls, MINUTE), "tokens").over == 0


def test_overlapping_windows_over_the_limit_are_one_violation_with_its_worst() -> None:
    calls = [sent(n, rpm=2) for n in range(5)] + [sent(40, rpm=9), sent(58, rpm=2), sent(200, rpm=0)]

    found = judged(audit(calls, MINUTE))

    assert (found.over, [window.used for window in found.violations]) == (5, [7, 1])


def test_violations_are_named_up_to_a_hundred_and_all_counted() -> None:
    calls = [sent(n * 100, rpm=n % 2) for n in range(400)]

    found = judged(audit(calls, MINUTE))

    assert (found.over, len(found.violations)) == (200, 100)


def test_refusals_are_counted() -> None:
    report = audit(
        [
            sent(0, outcome="refused", error_class="rate_limited"),
            sent(1, outcome="buried", error_class="rate_limited"),
            sent(2, outcome="refused", error_class="overloaded"),
        ],
        MINUTE,
    )

    assert (report.refused, report.rate_limited, judged(report).worst.used) == (3, 2, 3)


def test_since_judges_windows_that_end_later_with_all_that_they_hold() -> None:
    scope = Scope(since_us=START + 30 * S)

    report = audit([sent(0, rpm=1), sent(1, rpm=1), sent(31, rpm=5)], scope)

    assert (report.attempts, judged(report).windows, judged(report).over) == (1, 1, 0)
    assert judged(report).worst.used == 3


def test_no_call_since_the_start_is_no_report() -> None:
    auditor = Auditor(Scope(since_us=START + 30 * S))
    auditor.push(sent(0))

    assert auditor.finish() == []


def test_windows_are_not_judged_across_a_step_of_the_clock_back() -> None:
    report = audit([sent(n, rpm=5) for n in (0, 1, 2, 3, 4, -10, -9)], MINUTE)

    assert (judged(report).worst.used, report.clock_steps, report.attempts) == (5, 1, 7)
    assert report.not_judged == 2


def test_windows_that_end_a_window_after_a_step_of_the_clock_are_judged_again() -> None:
    report = audit([sent(n, rpm=5) for n in (100, 0, 59, 60, 61)], MINUTE)

    assert (report.clock_steps, report.not_judged, report.is_violated) == (1, 2, False)


def test_a_call_sent_before_its_grant_is_a_violation() -> None:
    report = audit([sent(1)._replace(sent_us=START)], MINUTE)

    assert (report.sent_early, report.is_violated) == (1, True)


def test_a_grant_a_little_out_of_order_is_counted_in_its_place() -> None:
    report = audit([sent(0), sent(1.0), sent(0.5), sent(60.5)], MINUTE)

    assert (report.clock_steps, judged(report).windows, judged(report).worst.used) == (0, 4, 3)


def test_models_are_judged_each_for_itself() -> None:
    auditor = Auditor(MINUTE)
    for n in range(4):
        auditor.push(sent(n, rpm=2)._replace(model="b" if n % 2 else "a"))

    assert [(report.model, judged(report).worst.used) for report in auditor.finish()] == [("a", 2), ("b", 2)]


def test_moments_are_exact() -> None:
    assert moment(1_800_000_000_123_457) == datetime(2027, 1, 15, 8, 0, 0, 123457, tzinfo=UTC)
