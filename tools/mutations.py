"""The lines on which the promises rest, each with a way to break it and the tests that must turn red."""

# ruff: noqa: E501 - a table: one mutation is one line

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
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
LOG: Final = "tests/properties/test_tokens.py"
LIMITER: Final = "tests/sql/test_limiter.py"
CLAIM: Final = "tests/sql/test_claim.py"
OWNERS: Final = "tests/sql/test_claim_owners_table.py"
SETTLE: Final = "tests/sql/test_settle.py"
HOSTILE: Final = "tests/system/test_hostile.py"
RELEASE: Final = "tests/sql/test_release.py"
SWEEP: Final = "tests/sql/test_sweep.py"
WAKE_UP: Final = "tests/sql/test_wake_up.py"
TOKENS: Final = "tests/sql/test_tokens.py"
ENDS: Final = "tests/sql/test_token_ends.py"
DAYS: Final = "tests/sql/test_days.py"
CLOSING: Final = "tests/sql/test_cooldown.py"
POOLS: Final = "tests/sql/test_pools.py"
HOT: Final = "tests/sql/test_hot.py"
USERS: Final = "tests/sql/test_users.py"
MARKS: Final = "tests/properties/test_cursors.py"
PICK: Final = "tests/properties/test_pick_of_user.py"
AGING: Final = "tests/properties/test_aging.py"
PLANS: Final = "tests/guards/test_plans.py"

ISOLATION: Final = "if current_setting('transaction_isolation') <> 'read committed' then"
LEASE_AGO: Final = "v_now - make_interval(secs => w.lease_s)"
SKIP: Final = " skip locked"
ASIDE: Final = "(select true from llmqueue.quarantine s where s.task_id = t.id) is null"
TURN: Final = "p_users ->> (p_rank || ' ' || given.lane)"
MARKED: Final = "(t.due_at, t.id) >= (v_cursor.due_at, v_cursor.task_id)"


def _in(function: str, *broken: tuple[str, str, str, str]) -> list[Mutation]:
    """Mutations of one SQL function: name, old, new, and the test files, parted by spaces."""
    file = _file(function)
    return [Mutation(name, (Edit(file, old, new),), tuple(tests.split())) for name, old, new, tests in broken]


def _file(function: str) -> str:
    """Returns the path of a SQL function, whatever its folder."""
    root = Path(__file__).parents[1]
    return next((path.relative_to(root).as_posix() for path in root.glob(f"sql/*/{function}.sql")), function)


def _together(name: str, tests: str, *edits: tuple[str, str, str]) -> Mutation:
    """A mutation that takes several edits: function, old, new."""
    return Mutation(name, tuple(Edit(_file(function), old, new) for function, old, new in edits), tuple(tests.split()))


# fmt: off
SEVERAL: Final = (
    # What reads like one careful statement reads the ledger as it was before the lock was got (design I1).
    _together("lock and read are one statement", FLEET,
        ("claim_model", "elsif not llmqueue_internal.lock_model(p_model, p_may_wait) then", "elsif false then"),
        ("claim_model", "v_budget := llmqueue_internal.headroom(v_config, v_now);",
         "select x.* into v_budget from (select llmqueue_internal.lock_model(p_model, true) as got offset 0) locked cross join lateral llmqueue_internal.headroom(v_config, v_now) x;")),
    _together("an answer is reconciled twice", ENDS,
        ("complete", "and (a.outcome is null or a.outcome = 'lost')", ""),
        ("reconcile", " or p_attempt.tokens_final is not null", "")),
    _together("the oldest has no turn", HOT,
        ("dequeue", "if p_budget.turn >= 9 and", "if false and"),
        ("dequeue", "greatest(0, (p_budget.turn + v_cold) / 10 - v_batch.aged)", "0")),
)
CLAIMING: Final = chain(
    _in("lock_model",
        ("SKIP LOCKED without the lock", "if pg_try_advisory_xact_lock(llmqueue_internal.lock_space(), hashtext(p_model)) then", "if true then", FLEET)),
    _in("claim",
        ("REPEATABLE READ: the isolation is not asserted", ISOLATION, "if false then", CLAIM),
        ("several models wait for each other", "coalesce(cardinality(p_models), 0) = 1", "true", TWO),
        ("a model that is not configured is empty", "or v_models[v_no] <> all (v_known)", "", CLAIM),
        ("a pool that has more is empty", "case when v_is_more or", "case when", POOLS),
        ("what one model cannot take the others do not take", "for v_round in 1..2 loop", "for v_round in 1..1 loop", POOLS),
        ("a model that was only asked for hot tasks is empty", "if v_cold <= 0 and p_slots > 0 and", "if false and", LOG)),
    _in("claim_model",
        ("now() for clock_timestamp()", "v_now := llmqueue_internal.clock();", "v_now := now();", TWO),
        ("paused models run", "elsif not llmqueue_internal.is_enabled(v_config) then", "elsif false then", f"{CLAIM} {LOG}"),
        ("a step back keeps the ledger", "perform llmqueue_internal.fill_ledger(p_model);", "null;", f"{LIMITER} {WINDOWS}"),
        ("models in cooldown run", "if v_cooldown.is_in_cooldown then", "if false then", f"{CLOSING} {LOG}"),
        ("a grant without a task is charged", "llmqueue_internal.charge(v_budget, v_batch.calls,", "llmqueue_internal.charge(v_budget, v_budget.calls,", CLAIM)),
    _in("refusal", ("retry_in_s from the held clock", "v_wait.retry_at - p_now", "v_wait.retry_at - p_budget.granted_at", WINDOWS)),
    _in("headroom",
        ("the oldest cell is off by one", "cell_of(v_budget.granted_at, v_budget.span_s);", "cell_of(v_budget.granted_at, v_budget.span_s) + 1;", f"{LIMITER} {WINDOWS}"),
        ("the span has no guard", "+ case when p_now", "+ 0 * case when p_now", f"{LIMITER} {WINDOWS}"),
        ("a guard that shrank is forgotten", "case when p_now < l.guard_kept_until", "case when false", f"tests/sql/test_register.py {WINDOWS}"),
        ("the open cell is not counted", "v_used.calls := v_used.calls + v_budget.open_calls;", "null;", f"{LIMITER} {WINDOWS}"),
        ("the open cell's tokens are not counted", "v_used.tokens := v_used.tokens + v_budget.open_tokens;", "null;", f"{TOKENS} {LOG}"),
        ("a step back is not held", "greatest(p_now, g.granted_at)", "p_now", f"{LIMITER} {WINDOWS}"),
        ("the bucket is bottomless", "floor(v_budget.level)::bigint)", "null)", LIMITER),
        ("tokens are not counted", "p_config.tpm - v_used.tokens", "p_config.tpm", f"{TOKENS} {LOG}"),
        ("output tokens are not counted", "p_config.output_tpm - v_used.output_tokens", "p_config.output_tpm", f"{TOKENS} {LOG}"),
        ("nothing is kept for hot tasks", "least(v_budget.rpm_free - v_budget.reserve,", "least(v_budget.rpm_free,", HOT)),
    _in("burst_headroom",
        ("short windows have no guard", "seconds + p_budget.span_s - p_budget.window_s)", "seconds)", LOG),
        ("short windows forget the open cell", "case when p_budget.open_cell >= v_first then p_budget.open_calls else 0 end", "0", LOG)),
    _in("day_headroom",
        ("the day forgets its minutes", "m.minute >= v_minute", "false", DAYS),
        ("the day begins in the wrong zone", "llmqueue_internal.day_start(p_config.quota_timezone, p_now)", "llmqueue_internal.day_start('UTC', p_now)", f"{DAYS} {LOG}")),
    _in("fill_ledger", ("a step of the clock begins the day anew", "v_open.calls + v_dropped.calls,", "0,", f"{DAYS} {LOG}")),
    _in("when_free",
        ("retry_at is a moment too early", "interval '1 microsecond'", "interval '-1 millisecond'", f"{LIMITER} {WINDOWS}"),
        ("a day's end is not told", "p_budget.day_calls < 1 or", "false and", f"{DAYS} {LOG}")),
    _in("frees_at",
        ("what leaves a window is told a cell too early", "(v_cell + 1) * llmqueue", "v_cell * llmqueue", f"{WINDOWS} {LOG}"),
        ("when tokens leave is not asked", "and v_tokens >= coalesce(p_tokens, 0)", "", f"{TOKENS} {LOG}")),
    _in("charge",
        ("a closed cell is lost", "if p_budget.open_cell < p_budget.cell\n", "if false and p_budget.open_cell < p_budget.cell\n", f"{LIMITER} {WINDOWS}"),
        ("tokens are not charged", "p_hot_calls, p_tokens, p_output_tokens", "p_hot_calls, 0, p_output_tokens", f"{TOKENS} {LOG}")),
    _in("estimate_charge", ("output is not reserved", "else v_charge.input_charge::bigint + v_charge.output_charge end", "else v_charge.input_charge::bigint end", f"{TOKENS} {LOG}")),
    _in("clock_stepped", ("a step forward is not answered", "perform llmqueue_internal.fill_ledger(v_model);", "null;", f"{LIMITER} {WINDOWS}")),
    _in("register", ("only the last guard is remembered", "guard_before_s = v_before_s", "guard_before_s = v_limiter.guard_s", "tests/sql/test_register.py")),
    _in("free_concurrency",
        ("what has ended is read", "and a.fence >= coalesce(p_from, 0::bigint)", "", PLANS),
        ("the count of open attempts begins too late", "coalesce(min(open.fence), v_drawn)", "v_drawn", CLAIM),
        ("max_concurrency is not read", "if p_max_concurrency is null then", "if true then", CLAIM),
        ("no slot of a model is kept for hot tasks", "greatest(1, floor(p_hot_share * p_max_concurrency))::integer end", "0 end", HOT)),
    _in("calls_left", ("slots for hot tasks are not used", "p_batch.slots + p_batch.hot_slots - p_batch.calls", "p_batch.slots - p_batch.calls", f"{HOT} {CLAIM}")),
    _in("admit",
        ("a prompt that never fits waits for ever", "if v_error is not null then", "if false then", f"{TOKENS} {LOG}"),
        ("the head of a lane is overtaken", "exit when is_blocked;", "continue when is_blocked;", TOKENS),
        ("the day's tokens are not looked at", "or v_tokens + v_output + v_charge.tokens + v_charge.output_tokens > p_budget.day_tokens", "", f"{DAYS} {LOG}")),
    _in("top_up",
        ("a top-up is not charged", "perform llmqueue_internal.charge(v_budget, 0, 0, v_more, 0, 0);", "null;", f"{ENDS} {LOG}"),
        ("a top-up goes over the day", "end, v_budget.day_tokens) then", "end) then", LOG),
        ("a top-up is forgotten with its release", "set input_charge = greatest(a.input_charge, p_input)", "set input_charge = a.input_charge", f"{ENDS} {LOG}")),
    _in("pick_by_priority",
        ("claim waits for rows of users in turn", SKIP, "", PICK),
        ("claim locks no rows of users in turn", "for no key update of t skip locked", "", PICK),
        ("tasks of users in turn are taken though in quarantine", ASIDE, "true", PICK),
        ("rows of users in turn are taken though not due", "t.due_at <= p_now and t.id", "t.id", f"{USERS} {PICK}"),
        ("who has no turns is not told from who has", "is not distinct from v_first.user_key", "is not null", USERS),
        ("turns of users begin anew with each claim", TURN, "null", USERS),
        ("users are served one after the other", "order by head.round, head.n", "order by head.n, head.round", USERS)),
    _in("pick_of_user",
        ("claim waits for rows", SKIP, "", TWO),
        ("claim locks no rows", "for no key update of t skip locked", "", TWO),
        ("tasks in quarantine are taken", ASIDE, "true", f"{CLAIM} {OWNERS}"),
        ("rows that are not due are taken", "t.due_at <= p_now and t.id", "t.id", f"{CLAIM} {PICK}"),
        ("rows that somebody holds are not seen", "if seen < p_wanted then", "if false then", f"{TWO} {PICK}")),
    _in("lane_width", ("all lanes have as many turns", "return greatest(1, (", "return least(1, (", POOLS)),
    _in("dequeue_some",
        ("held rows hide the lane", "exit when v_only > cardinality(v_batch.lanes);", "exit;", TWO),
        ("tokens that were taken are not counted", "v_batch.tokens := v_batch.tokens + v_row.tokens;", "null;", TOKENS),
        ("hot tasks that were taken are not counted", "v_batch.hot_calls := v_batch.hot_calls + 1;", "null;", f"{CLAIM} tests/sql/test_hot.py"),
        ("a lane gives more than its share", "v_batch.most[v_lane] - 1;", "v_batch.most[v_lane];", POOLS)),
    _in("models_with_tasks",
        ("the lanes of several models are sorted", "order by t.waiting_since, t.id limit 1) <= p_now", "order by t.due_at, t.id limit 1) <= p_now", PLANS),
        ("the lanes of several models are read from the start", "when p_cursors is not null then (", "when false then (", PLANS)),
    _in("mark_running",
        ("attempts are not counted", "coalesce(t.attempts, 0) + 1", "coalesce(t.attempts, 0)", SETTLE),
        ("a restart goes on counting", "case when t.finished_at is null then", "case when true then", "tests/sql/test_restart.py"),
        ("a row put back runs over and over", "where r.is_running\n    --", "where true\n    --", OWNERS),
        ("a task whose key has changed runs without an attempt", "if v_running > cardinality(v_rows) then", "if false then", OWNERS)),
    _in("mark_each_running", ("a trigger sees the others changed", "or not (llmqueue_internal.update_triggers()).has_row_after", "or true", OWNERS)),
    _in("next_user",
        ("cursors are not read from", MARKED, "true", PLANS),
        ("the task at a cursor is passed over", ">= (v_cursor.due_at", "> (v_cursor.due_at", MARKS)),
    _in("next_priority", ("a priority is passed over", "v_most := v_at_cursor - 1", "v_most := v_at_cursor - 2", MARKS)),
    _in("advance_cursors", ("heavy users are forgotten", "x.taken desc", "x.taken", CLAIM)),
    _in("dequeue",
        ("several lanes are in order", "           and cardinality(v_batch.lanes) = 1\n", "", AGING),
        ("several priorities are in order", "           and llmqueue_internal.next_priority(v_batch.lanes[1], v_rank - 1, null) is null then", "        then", AGING),
        ("several users are in order", "v_is_in_order := coalesce(", "v_is_in_order := true or coalesce(", AGING),
        ("what is left of higher priorities is passed over for the oldest", "v_most = v_best and v_rank", "v_rank", AGING),
        ("what is taken in order is not the oldest's", "v_batch.aged := v_batch.aged + least(v_for_oldest, (p_budget.turn + v_batch.calls) / 10 - v_batch.aged);", "null;", AGING)),
    _in("look_behind", ("what comes back is not looked for", "if not found then", "if true then", MARKS)),
    _in("share_out", ("weights are ignored", "task.no / other.weight", "task.no", POOLS)),
    _in("note_served", ("a model that had no room catches up", "case when not n.has_room then", "case when false then", POOLS)),
)
ENDING: Final = chain(
    _in("settle",
        ("settle waits for rows", SKIP, "", TWO),
        ("a task that a trigger sets back is told as done", "and not v_triggers.has_any then", "then", OWNERS),
        ("one bad row stops a flush", "if not llmqueue_internal.is_row_fault(sqlstate, true) then", "if true then", OWNERS)),
    _in("complete",
        ("the fence is not compared", " and v_fences[width_bucket(t.fence, v_fences)] = t.fence", "", f"{SETTLE} {FENCE}"),
        ("a swallowed end is tried twice", "and (((t.is_ready or t.is_delayed)", "and (t.is_running or ((t.is_ready or t.is_delayed)", OWNERS),
        ("the outcome is not looked at", "and (a.outcome is null or a.outcome = 'lost')", "", f"{SETTLE} {FENCE}"),
        ("the worker is not compared", " and a.worker = p_worker", "", SETTLE),
        ("an earlier life's answer counts", " and t.finished_at is null", "", f"{SETTLE} {FENCE}"),
        ("an answer reaches a new row under an old key", " and t.fence >= v_item.fence", "", HOSTILE),
        ("... and between the attempts of a later one", "newer.attempt_no <= v_attempt.attempt_no", "false", f"{SETTLE} {FENCE}"),
        ("a late answer is thrown away", "case when not v_is_applied then v_item.answer end", "null", SETTLE),
        ("a paid late answer is not accepted", "(a.outcome is null or a.outcome = 'lost')", "a.outcome is null", SETTLE),
        ("an answer puts no charge right", "perform llmqueue_internal.reconcile(v_attempt, v_item.input_tokens, v_item.output_tokens);", "null;", f"{ENDS} {LOG}")),
    _in("reconcile",
        ("a charge is put right below 0", "greatest(v_tokens - p_attempt.tokens - coalesce(p_attempt.top_up_tokens, 0), -p_attempt.tokens)",
         "v_tokens - p_attempt.tokens - coalesce(p_attempt.top_up_tokens, 0)", f"{ENDS} {LOG}"),
        ("a charge is put right in another cell", "select p_attempt.model, p_attempt.cell, 0,", "select p_attempt.model, p_attempt.cell + 1, 0,", f"{ENDS} {LOG}")),
    _in("release",
        ("a refund twice", "a.outcome is null", "true", f"{RELEASE} {SETTLE}"),
        ("a swept attempt is refunded", "a.outcome is null", "(a.outcome is null or a.outcome = 'lost')", f"{RELEASE} {FENCE}"),
        ("a released attempt counts", "attempts = t.attempts - 1", "attempts = t.attempts", RELEASE)),
    _in("refund",
        ("a refund into the wrong cell", "select unsent.model, unsent.cell, -", "select unsent.model, unsent.cell + 1, -", RELEASE),
        ("a refund without its charge", " and g.cell = unsent.cell and g.granted_at = unsent.granted_at", "", RELEASE),
        ("the charge of a refund is not locked", " for key share", "", TWO),
        ("no refund", "-count(*)", "0 * count(*)", RELEASE),
        ("no refund of tokens", "-coalesce(sum(unsent.tokens), 0)", "0", f"{ENDS} {LOG}"),
        ("no refund of a top-up", "0, -unsent.top_up_tokens", "0, 0", f"{ENDS} {LOG}")),
    _in("retry",
        ("a refused attempt counts", "attempts = t.attempts - (not g.counts)::integer", "attempts = t.attempts", f"{SETTLE} {CLOSING}"),
        ("refusals never count", "free.is_so is false or refused.times >= v_free_retries as counts", "free.is_so is false as counts", SETTLE)),
    _in("start_cooldown",
        ("the shorter deadline wins", "greatest(v_state.cooldown_until, p_now + make_interval(secs => v_pause_s))", "p_now + make_interval(secs => v_pause_s)", f"{CLOSING} {LOG}"),
        ("calls in flight double the pause", "v_is_news := coalesce(p_granted_at > coalesce(v_state.cooldown_started_at, v_state.cooldown_ended_at), true)", "v_is_news := true", CLOSING)),
    _in("check_cooldown",
        ("a probe for each worker", "a.fence = v_state.probe_fence and a.ended_at is null", "false", f"{CLOSING} {LOG}"),
        ("all rush in after a pause", "probes := 1;", "probes := null;", f"{CLOSING} {LOG}")),
    [_together("an old probe ends the cooldown", f"{CLOSING} {LOG}", *(
        (function, "s.probe_fence = any (v_answered)", "s.model in (select a.model from llmqueue.attempt a where a.fence = any (v_answered))")
        for function in ("complete", "retry", "bury")))],
    _in("sweep",
        ("who has just come sweeps", f"w.beating_since <= {LEASE_AGO}", "true", SWEEP),
        ("who has slept sweeps", "and abs(extract(epoch from v_now - w.heartbeat_at)) < w.lease_s / 2\n", "\n", SWEEP),
        ("the living are swept", "w.worker = a.worker and", "false and", SWEEP),
        ("a server that has just started is swept", f"and pg_postmaster_start_time() <= {LEASE_AGO}", "", SWEEP),
        ("sweep waits for rows", SKIP, "", TWO)),
)
WAKING: Final = [
    Mutation(name, (Edit("src/llmqueue/install/mapping_sql.py", old, new),), (WAKE_UP,)) for name, old, new in (
        ("the wake-up raises", "exception when others then\n    return null;\n", ""),
        ("the wake-up rings always", "if v_is_idle then", "if true then"))
]
IN_TURN: Final = [
    Mutation(name, (Edit(f"src/llmqueue/worker/{module}.py", old, new),), (f"tests/unit/test_{module}.py",)) for module, name, old, new in (
        ("claimer", "calls begin before the next claim goes out", "if wait_s > 0 or not gave_all:", "if True:"),
        ("claimer", "a hot call waits for the next claim to go out", "if wait_s > 0 or not gave_all:", "if wait_s > 0:"),
        ("flusher", "slots are freed before the next flush goes out", "        if self._pending.waiting:\n            asyncio", "        if False:\n            asyncio"),
        ("flusher", "a slot is never freed", "settled[TOLD_AT_ONCE:])", "settled[TOLD_AT_ONCE + 1 :])"),
        ("in_flight", "an end that waits for the database holds its slot", "self._ended += 1\n", "pass\n"),
        ("in_flight", "the slots kept for hot tasks are lent", "self._for_cold - self._cold_calls - waiting", "free"),
        ("planner", "a flood of hot tasks keeps the cold ones out", "and not self._was_for_hot and", "and"),
        ("planner", "what comes while a worker says that it waits is not looked for", "self._is_announced = self._must_look_again = True", "self._is_announced = True"))
]
# fmt: on
MUTATIONS: Final = (*SEVERAL, *CLAIMING, *ENDING, *WAKING, *IN_TURN)
