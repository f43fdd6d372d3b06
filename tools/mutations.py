"""The lines on which the promises rest, each with a way to break it and the tests that must turn red."""

# ruff: noqa: E501 - a table: one mutation is one line

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Final


@dataclass(frozen=True, slots=True)
class Edit:
    """Every occurrence of `old` in the file becomes `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """A way to break a promise, and the files of tests that must see it."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


FLEET: Final = "tests/concurrency/test_fleet.py"
TWO: Final = "tests/concurrency/test_interleavings.py"
FENCE: Final = "tests/properties/test_fence.py"
WINDOWS: Final = "tests/properties/test_limiter.py"
LIMITER: Final = "tests/sql/test_limiter.py"
CLAIM: Final = "tests/sql/test_claim.py"
OWNERS: Final = "tests/sql/test_claim_owners_table.py"
SETTLE: Final = "tests/sql/test_settle.py"
HOSTILE: Final = "tests/system/test_hostile.py"
RELEASE: Final = "tests/sql/test_release.py"
SWEEP: Final = "tests/sql/test_sweep.py"
WAKE_UP: Final = "tests/sql/test_wake_up.py"

ISOLATION: Final = "if current_setting('transaction_isolation') <> 'read committed' then"
LEASE_AGO: Final = "v_now - make_interval(secs => w.lease_s)"
SKIP: Final = " skip locked"
ASIDE: Final = "(select true from llmqueue.set_aside s where s.task_id = t.id) is null"


def _in(function: str, *broken: tuple[str, str, str, str]) -> list[Mutation]:
    """Mutations of one SQL function: name, old, new, and the test files, parted by spaces."""
    file = f"sql/functions/{function}.sql"
    return [Mutation(name, (Edit(file, old, new),), tuple(tests.split())) for name, old, new, tests in broken]


# What reads like one careful statement reads the ledger as it was before the lock was got (design I1).
ONE_STATEMENT: Final = Mutation(
    "lock and read are one statement",
    (
        Edit(
            "sql/functions/claim.sql",
            "elsif not llmqueue.lock_model(v_model, coalesce(cardinality(p_models), 0) = 1) then",
            "elsif false then",
        ),
        Edit(
            "sql/functions/claim.sql",
            "from llmqueue.allowance(",
            "from (select llmqueue.lock_model(v_model, true) as got offset 0) locked cross join llmqueue.allowance(",
        ),
    ),
    (FLEET,),
)

# fmt: off
CLAIMING: Final = chain(
    _in("lock_model",
        ("the lock is not taken", "if pg_try_advisory_xact_lock(llmqueue.lock_space(), hashtext(p_model)) then", "if true then", FLEET)),
    _in("claim",
        ("the isolation is not asserted", ISOLATION, "if false then", CLAIM),
        ("now() for clock_timestamp()", "coalesce(p_now, clock_timestamp())", "coalesce(p_now, now())", TWO),
        ("several models wait for each other", "coalesce(cardinality(p_models), 0) = 1", "true", TWO),
        ("paused models run", "not v_config.enabled or v_config.rpm = 0", "false", CLAIM),
        ("a grant without a task is charged", "llmqueue.charge(v_model, v_taken,", "llmqueue.charge(v_model, v_allowed.calls,", CLAIM),
        ("retry_in_s from the held clock", "v_allowed.retry_at - v_now", "v_allowed.retry_at - v_allowed.granted_at", WINDOWS)),
    _in("allowance",
        ("the oldest cell is off by one", "v_span_s) / v_cell_s)::bigint", "v_span_s) / v_cell_s)::bigint + 1", f"{LIMITER} {WINDOWS}"),
        ("the span has no guard", "+ case when p_now", "+ 0 * case when p_now", f"{LIMITER} {WINDOWS}"),
        ("a guard that shrank is forgotten", "case when p_now < l.guard_kept_until", "case when false", f"tests/sql/test_register.py {WINDOWS}"),
        ("the open cell is not counted", "v_used := v_used + open_calls;", "null;", f"{LIMITER} {WINDOWS}"),
        ("a step back is not held", "granted_at := greatest(p_now, v_last.granted_at);", "granted_at := p_now;", f"{LIMITER} {WINDOWS}"),
        ("retry_at is a moment too early", "interval '1 microsecond'", "interval '-1 millisecond'", f"{LIMITER} {WINDOWS}"),
        ("the bucket is bottomless", "p_rpm - v_used, floor(level))", "p_rpm - v_used)", LIMITER)),
    _in("charge", ("a closed cell is lost", "if p_open_cell < p_cell and p_open_calls <> 0 then", "if false then", f"{LIMITER} {WINDOWS}")),
    _in("hold_clock", ("a step back keeps the ledger", "perform llmqueue.fill_ledger(p_model, p_now);", "null;", f"{LIMITER} {WINDOWS}")),
    _in("clock_stepped", ("a step forward is not answered", "perform llmqueue.fill_ledger(v_model, p_now);", "null;", f"{LIMITER} {WINDOWS}")),
    _in("register", ("only the last guard is remembered", "guard_before_s = v_before_s", "guard_before_s = v_limiter.guard_s", "tests/sql/test_register.py")),
    _in("room", ("max_concurrency is not read", "if p_max_concurrency is null then", "if true then", CLAIM)),
    _in("lease_rank",
        ("claim waits for rows", SKIP, "", TWO),
        ("claim locks no rows", "for no key update of t skip locked", "", TWO),
        ("tasks set aside are taken", ASIDE, "true", f"{CLAIM} {OWNERS}"),
        ("held rows hide the lane", "exit when v_lanes = array[''] or (cardinality(v_lanes) = 2 and v_seen < v_left);", "exit;", TWO),
        ("rows that are not due are taken", " and t.due_at <= p_now", "", CLAIM)),
    _in("lease_rows",
        ("attempts are not counted", "coalesce(t.attempts, 0) + 1", "coalesce(t.attempts, 0)", SETTLE),
        ("a restart goes on counting", "case when t.finished_at is null then", "case when true then", "tests/sql/test_restart.py"),
        ("a row put back runs over and over", "if v_is_running then", "if v_row.task_id is not null then", OWNERS)),
)
ENDING: Final = chain(
    _in("settle",
        ("settle waits for rows", SKIP, "", TWO),
        ("one bad row stops a flush", "if not llmqueue.is_fault_of_row(sqlstate, true) then", "if true then", OWNERS)),
    _in("complete",
        ("the fence is not compared", "(t.is_running and t.fence = v_item.fence)", "t.is_running", f"{SETTLE} {FENCE}"),
        ("the outcome is not looked at", "and (a.outcome is null or a.outcome = 'lost')", "", f"{SETTLE} {FENCE}"),
        ("the worker is not compared", " and a.worker = p_worker", "", SETTLE),
        ("an earlier life's answer counts", " and t.finished_at is null", "", f"{SETTLE} {FENCE}"),
        ("an answer reaches a new row under an old key", " and t.fence >= v_item.fence", "", HOSTILE),
        ("... and between the attempts of a later one", "newer.attempt_no <= v_attempt.attempt_no", "false", f"{SETTLE} {FENCE}"),
        ("a late answer is thrown away", "case when not v_is_applied then v_item.answer end", "null", SETTLE),
        ("a paid late answer is not accepted", "(a.outcome is null or a.outcome = 'lost')", "a.outcome is null", SETTLE)),
    _in("release",
        ("a refund at every try", "a.outcome is null", "true", f"{RELEASE} {SETTLE}"),
        ("a swept attempt is refunded", "a.outcome is null", "(a.outcome is null or a.outcome = 'lost')", f"{RELEASE} {FENCE}"),
        ("a released attempt counts", "attempts = t.attempts - 1", "attempts = t.attempts", RELEASE)),
    _in("refund",
        ("a refund into another cell", "select unsent.model, unsent.cell, -", "select unsent.model, unsent.cell + 1, -", RELEASE),
        ("a refund without its charge", " and g.cell = unsent.cell and g.granted_at = unsent.granted_at", "", RELEASE),
        ("the charge of a refund is not locked", " for key share", "", TWO),
        ("no refund", "-count(*)", "0 * count(*)", RELEASE)),
    _in("retry",
        ("a refused attempt counts", "attempts = t.attempts - (not g.counts)::integer", "attempts = t.attempts", SETTLE),
        ("refusals never count", "i.counts or v_refusals <=", "i.counts or 1000 <=", SETTLE)),
    _in("sweep",
        ("who has just come sweeps", f"w.beating_since <= {LEASE_AGO}", "true", SWEEP),
        ("who has slept sweeps", "and abs(extract(epoch from v_now - w.heartbeat_at)) < w.lease_s\n", "\n", SWEEP),
        ("the living are swept", "w.worker = a.worker and", "false and", SWEEP),
        ("a server that has just started is swept", f"and pg_postmaster_start_time() <= {LEASE_AGO}", "", SWEEP),
        ("sweep waits for rows", SKIP, "", TWO)),
    _in("wake_up",
        ("the wake-up raises", "exception when others then\n    return null;\n", "", WAKE_UP),
        ("the wake-up rings always", "if exists (select from llmqueue.idle_worker) then", "if true then", WAKE_UP)),
)
# fmt: on
MUTATIONS: Final = (ONE_STATEMENT, *CLAIMING, *ENDING)
