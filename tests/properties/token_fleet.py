"""Models whose every charge is checked: each action on the database is repeated on a log by hand, and compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tests.properties.token_log import CELL_S, FILLED, Entry, Limits, Logged, Model
from tests.support.sql import T0, Claimed, Grant, Queue, complete, release, retry

TICK = timedelta(microseconds=1)
PROBE_EVERY = timedelta(seconds=5)
COLUMNS = ("calls", "hot_calls", "tokens", "output_tokens")
SUMS = """
    select model, cell, cell / 240 as minute, sum(calls)::bigint as calls, sum(hot_calls)::bigint as hot_calls,
           sum(tokens)::bigint as tokens, sum(output_tokens)::bigint as output_tokens
      from (select model, cell, calls, hot_calls, tokens, output_tokens from llmqueue.ledger_cell
            union all
            select model, cell, calls, hot_calls, tokens, output_tokens from llmqueue.ledger_grant g
             where cell = (select max(cell) from llmqueue.ledger_grant last where last.model = g.model)) counted
     group by model, cell
    union all
    -- what the limits of a day that began with this minute would see
    select model, null, minute, sum(sum(calls)) over since, sum(sum(hot_calls)) over since, sum(sum(tokens)) over since,
           sum(sum(output_tokens)) over since
      from (select model, cell / 240 as minute, calls, 0 as hot_calls, tokens, output_tokens
              from llmqueue.ledger_cell
            union all
            select model, cell / 240, calls, 0, tokens, output_tokens from llmqueue.ledger_grant g
             where cell = (select max(cell) from llmqueue.ledger_grant last where last.model = g.model)
            union all
            select model, minute, calls, 0, tokens, output_tokens from llmqueue.ledger_minute) counted
     group by model, minute window since as (partition by model order by minute desc)"""
FILLS = """
    select distinct on (model) model, entry_no, cell from llmqueue.ledger_cell where calls > %s
     order by model, entry_no desc"""
CHARGED = """
    select cell, granted_at, is_probe, token_mode, input_charge, output_charge, tokens,
           coalesce(output_tokens_charged, 0) as output_tokens from llmqueue.attempt where fence = %s"""


class Fleet:
    """Models that take from their own lanes only; `true` is the time that passes, `queue.now` what the clock says."""

    def __init__(self, conn: psycopg.Connection[Any], limits: dict[str, Limits]) -> None:
        self.queue = Queue(conn)
        self.queue.rows("delete from tasks")
        self.queue.rows("select setseed(0.5)")
        self.true = timedelta(0)
        self.models: dict[str, Model] = {}
        self.tasks: dict[int, tuple[str, int, int | None, int]] = {}  # model, bytes, max_output, known input
        self.used: set[datetime] = set()  # what the clock said when something was charged
        self.kept_since = 0  # the cell from which on nothing was pruned
        self.grants = 0
        for name, given in limits.items():
            self.set_limits(name, given)

    # --- what happens -------------------------------------------------------------------------------------------

    def set_limits(self, name: str, limits: Limits) -> None:
        self.queue.model(name, weight=0, **limits.columns())
        self.models.setdefault(name, Model(limits)).limits = limits

    def arrive(self, name: str, how_many: int, size: int, max_output: int | None, priority: int) -> None:
        params = None if max_output is None else Jsonb({"max_tokens": max_output})
        ids = self.queue.add(max(how_many, 0), model=name, prompt="x" * size, params=params, priority=priority)
        self.tasks |= dict.fromkeys(ids, (name, size, max_output, 0))

    def wait(self, seconds: float) -> None:
        self.pass_time(timedelta(seconds=seconds))

    def pass_time(self, gap: timedelta) -> None:
        self.true += gap
        self.queue.now += gap

    def edge(self, cells: int, off: int) -> None:
        """Goes to the edge of the cell that is `cells` ahead, `off` microseconds beside it."""
        now_us = (self.queue.now - T0) // TICK
        self.pass_time(max((now_us // 250_000 + cells) * 250_000 + off - now_us, 0) * TICK)

    def cell(self) -> int:
        return int(self.queue.now.timestamp() / CELL_S)

    def midnight(self, name: str, off: int) -> None:
        """Goes to the model's next midnight, `off` microseconds beside it."""
        limits = self.models[name].limits
        following = limits.midnight(limits.midnight(self.queue.now) + timedelta(hours=36))
        self.pass_time(max(following - self.queue.now + off * TICK, timedelta(0)))

    def step_back(self, seconds: float) -> None:
        self.queue.now -= timedelta(seconds=seconds)

    def step_forward(self, seconds: float) -> None:
        self.queue.now += timedelta(seconds=seconds)
        self.queue.rows("select llmqueue.clock_stepped()")
        self.check_ledger()

    def run(self, rounds: int, late_s: float, slots: int) -> None:
        """A backlog, and a worker that comes back when it is told, or so much later."""
        for name in self.models:
            self.arrive(name, 40 - self.queue.count(f"llmqueue.task where is_ready and lane = '{name}'"), 30, None, 0)
        for _ in range(rounds):
            claimed = self.claim(None, slots, 0)
            if set(claimed.reasons.values()) <= {"day", "paused", "empty"}:
                break
            told = [retry_in_s for retry_in_s in claimed.retry_in_s.values() if retry_in_s is not None]
            self.wait(min(*told, 61.0, 61.0) + late_s)

    def guard(self, guard_s: float) -> None:
        self.queue.register(guard_s=guard_s)

    def prune(self) -> None:
        self.queue.rows("select llmqueue_internal.prune_ledger()")
        self.kept_since = max(self.kept_since, self.cell() - 720)

    def claim(self, names: list[str] | None, slots: int, hot_slots: int) -> Claimed:
        self.at_a_moment_of_its_own()
        closed = {name: model.cooldown_until is not None for name, model in self.models.items()}
        claimed = self.queue.claim(slots, names, hot_slots=hot_slots)
        for grant in claimed.grants:
            self.note(grant)
        granted = {grant.model for grant in claimed.grants}
        for name in self.models:
            closed[name] = closed[name] and not self.opened_by_waiting(name)
        for name in granted:
            model = self.models[name]
            rpm = model.limits.rpm
            if model.is_cut:
                rpm = self.queue.value("select llmqueue_internal.effective_rpm(%s, %s, %s)", name, rpm, self.queue.now)
            assert model.broken(self.true, self.queue.now, rpm) == [], (name, self.true)
            assert not model.limits.is_paused
            if closed[name]:
                self.check_probe(name, [grant for grant in claimed.grants if grant.model == name])
        assert len(claimed.grants) <= slots + hot_slots
        self.check_verdicts(claimed, closed, self.check_buried())
        self.check_ledger()
        return claimed

    def at_a_moment_of_its_own(self) -> None:
        """The ledger knows a charge by its microsecond: after a step back two would be the same one, in a test only."""
        while self.queue.now in self.used:
            self.pass_time(TICK)

    def note(self, grant: Grant) -> None:
        model, row = self.models[grant.model], self.queue.rows(CHARGED, grant.fence)[0]
        name, size, max_output, known = self.tasks[grant.id]
        assert name == grant.model
        given, taken, tokens, output_tokens = model.limits.charge(size, max_output, known)
        if model.limits.counts_tokens:
            assert not model.limits.can_never_take(tokens, output_tokens)
            stored = row["input_charge"], row["output_charge"], row["tokens"], row["output_tokens"]
            assert stored == (given, taken, tokens, output_tokens), model.limits
            self.tasks[grant.id] = name, size, max_output, given
        else:
            assert row["tokens"] is None
            tokens = output_tokens = 0
        sent_by = self.true + timedelta(seconds=grant.guard_s)
        entry = self.entry(model, sent_by, row["cell"], 1, int(grant.is_hot), tokens, output_tokens)
        mode = row["token_mode"] or ""
        model.log.append(
            Logged(grant, self.true, self.queue.now, model.limits.tpm, mode, taken, row["tokens"], [entry])
        )
        self.grants += 1

    def entry(
        self, model: Model, sent_by: timedelta, cell: int, calls: int, hot_calls: int, tokens: int, output_tokens: int
    ) -> Entry:
        self.used.add(self.queue.now)
        return Entry(self.true, sent_by, self.queue.now, cell, model.epoch, calls, hot_calls, tokens, output_tokens)

    def nth(self, nth: int) -> tuple[Model, Logged] | None:
        """One of the attempts that have not ended."""
        every = [(model, logged) for model in self.models.values() for logged in model.log if logged.is_open]
        return every[nth % len(every)] if every else None

    def release(self, nth: int) -> None:
        """Gives a call back unsent; once more, if it was given back before."""
        if (found := self.nth(nth)) is not None:
            _, logged = found
            assert self.queue.settle(release(logged.grant)) == ["released"]
            assert self.queue.settle(release(logged.grant)) == ["released"]
            logged.is_open = False
            logged.refund()
            self.check_ledger()

    def complete(self, nth: int, used: float | None, output_tokens: int | None) -> None:
        """An answer whose usage is so many times what was charged."""
        if (found := self.nth(nth)) is None:
            return
        model, logged = found
        input_tokens = None if used is None else int(used * (logged.tokens or 10))
        item = {**complete(logged.grant), "input_tokens": input_tokens, "output_tokens": output_tokens}
        assert self.queue.settle(item) == ["completed"]
        assert self.queue.settle(item) == ["completed"]
        logged.is_open = False
        logged.reconcile(input_tokens, output_tokens)
        self.opened(model, logged)
        self.check_ledger()

    def top_up(self, nth: int, factor: float) -> None:
        """The worker finds the prompt larger than it was estimated to be."""
        if (found := self.nth(nth)) is None or found[1].tokens is None or len(found[1].entries) > 1:
            return
        self.at_a_moment_of_its_own()
        model, logged = found
        name, size, max_output, known = self.tasks[logged.grant.id]
        wanted = int(known * factor) + 1
        more = self.topped_up(logged, wanted) - (logged.tokens or 0)
        is_done = self.queue.value(
            "select llmqueue.top_up(%s, %s, %s)", logged.grant.worker, logged.grant.fence, wanted
        )
        row = self.queue.attempt(logged.grant)
        assert row["input_charge"] == (max(known, wanted) if more > 0 else known)
        self.tasks[logged.grant.id] = name, size, max_output, row["input_charge"]
        if row["top_up_cell"] is not None:
            assert is_done
            assert row["top_up_tokens"] == more
            sent_by = max(logged.entries[0].sent_by, self.true)
            logged.entries.append(self.entry(model, sent_by, row["top_up_cell"], 0, 0, more, 0))
            broken = model.broken(self.true, self.queue.now, model.limits.rpm)
            assert [one for one in broken if one.startswith("tp")] == []
        self.check_ledger()

    @staticmethod
    def topped_up(logged: Logged, wanted: int) -> int:
        if logged.mode == "max":
            return max(wanted, logged.output_charge)
        return wanted + (logged.output_charge if logged.mode in {"sum", "actual"} else 0)

    def refuse(self, nth: int, refusal: str, pause_s: float | None) -> None:
        if (found := self.nth(nth)) is None:
            return
        model, logged = found
        item = {**retry(logged.grant, delay_s=0, counts=False), "refusal": refusal, "pause_s": pause_s}
        assert self.queue.settle(item) == ["refused"]
        logged.is_open = False
        (state,) = self.queue.rows("select * from llmqueue.model_state where model = %s", logged.grant.model)
        if pause_s is not None:
            assert state["cooldown_until"] >= self.queue.now + timedelta(seconds=pause_s)
        assert model.cooldown_until is None or state["cooldown_until"] >= model.cooldown_until, (
            "the later deadline wins"
        )
        model.cooldown_until = state["cooldown_until"]
        model.probe = model.probe if state["probe_fence"] else None
        model.is_cut |= refusal == "quota"
        model.is_crowded |= refusal == "capacity"
        assert self.queue.attempt(logged.grant)["outcome"] == "refused"

    def opened(self, model: Model, logged: Logged) -> None:
        if model.probe is logged:
            model.cooldown_until = model.probe = None

    def come_back(self, name: str) -> None:
        """Returns exactly at each retry time: the reason to wait is over, and soon there is a call.

        How large the next task is is known once there is leave to call; then it may wait for tokens, and for the pace.
        """
        claimed = self.claim([name], 1, 0)
        for _ in range(4):
            reason, retry_in_s = claimed.reasons[name], claimed.retry_in_s[name]
            if claimed.grants or retry_in_s is None:
                return
            self.wait(retry_in_s)
            claimed = self.claim([name], 1, 0)
            told = f"{name} said {reason}, back in {retry_in_s}, and then {claimed.reasons[name]}"
            is_over = claimed.reasons[name] != reason or claimed.retry_in_s[name] is None
            assert claimed.grants or (self.models[name].limits.counts_tokens and (is_over or reason == "pace")), told
        assert claimed.grants, told

    # --- what must hold -----------------------------------------------------------------------------------------

    def opened_by_waiting(self, name: str) -> bool:
        """Returns whether the claim has ended the cooldown, because the probe was not refused for 5 s."""
        model = self.models[name]
        if self.queue.value("select cooldown_until from llmqueue.model_state where model = %s", name) is not None:
            return False
        assert model.probe is not None
        assert model.probe.is_open
        assert model.probe.clock <= self.queue.now - PROBE_EVERY
        model.cooldown_until = model.probe = None
        return True

    def check_probe(self, name: str, grants: list[Grant]) -> None:
        model = self.models[name]
        assert model.cooldown_until is not None
        assert self.queue.now >= model.cooldown_until
        assert len(grants) == 1
        assert model.probe is None or not model.probe.is_open, "one probe at a time"
        model.probe = model.log[-1]

    def check_verdicts(self, claimed: Claimed, closed: dict[str, bool], buried: int) -> None:
        for name, reason in claimed.reasons.items():
            retry_in_s, limits = claimed.retry_in_s[name], self.models[name].limits
            match reason:
                case None:
                    # A claim holds the model's lock: after a hundred dead letters it stops, to be made again at once.
                    assert claimed.grants or buried >= 100
                case "rpm" | "pace" | "burst" | "tpm" | "day":
                    assert retry_in_s is not None
                    assert retry_in_s > 0
                case "paused":
                    assert limits.is_paused
                case "cooldown":
                    assert closed[name]
                case "concurrency":
                    assert self.models[name].is_crowded
                case "empty":
                    due = "select count(*) from llmqueue.task where is_ready and lane = %s and due_at <= %s"
                    assert self.queue.value(due, name, self.queue.now) == 0
                case other:
                    raise AssertionError(f"{name}: {other}")

    def check_buried(self) -> int:
        """What was buried could never have been sent, and its error says why in numbers. Returns how many."""
        buried = self.queue.rows("delete from tasks where status = 'failed' returning id, error")
        for row in buried:
            name, size, max_output, known = self.tasks.pop(row["id"])
            limits = self.models[name].limits
            given, _, tokens, output_tokens = limits.charge(size, max_output, known)
            assert limits.counts_tokens
            assert limits.can_never_take(tokens, output_tokens), (limits, row["error"])
            assert row["error"].startswith(f"exceeds_tpm: charged {tokens} tokens (")
            assert str(given) in row["error"] or str(output_tokens) in row["error"]
        return len(buried)

    def check_ledger(self) -> None:
        """No cell is below 0: that would be leave to call. The last minute's cells hold exactly what is in the log."""
        for fill in self.queue.rows(FILLS, FILLED):
            model = self.models[fill["model"]]
            if fill["entry_no"] > model.filled_no:
                model.fill(fill["entry_no"], fill["cell"])
        held: dict[str, dict[tuple[int, str], int]] = {name: {} for name in self.models}
        for row in self.queue.rows(SUMS):
            sums = {column: row[column] for column in COLUMNS}
            if row["cell"] is None:
                assert min(sums.values()) >= 0, row
            else:
                held[row["model"]] |= {(row["cell"], column): value for column, value in sums.items() if value}
        for name, model in self.models.items():
            since = max(model.filled_cell + 1, self.kept_since, self.cell() - 300)
            assert {key: value for key, value in held[name].items() if key[0] >= since} == model.cells(since), name


@contextmanager
def fleet(conn: psycopg.Connection[Any], limits: dict[str, Limits]) -> Iterator[Fleet]:
    try:
        yield Fleet(conn, limits)
    finally:
        conn.rollback()
