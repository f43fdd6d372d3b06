"""Compares the limiter with a brute-force log: no window exceeds the limit, and no call waits without need.

The log is in true time, which never steps; the database's clock is true time plus an offset that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from tests.support.sql import T0, Claimed, Grant, Queue, release

WINDOW_S = 60.0
MODELS = ("a", "b", "c")
TICK = timedelta(microseconds=1)


@dataclass
class Logged:
    """A grant in true time; `guard` is how much later its call may be sent."""

    at: timedelta
    guard: timedelta
    grant: Grant
    is_refunded: bool = False


@dataclass
class Model:
    rpm: int
    log: list[Logged] = field(default_factory=list)

    def trailing(self, at: timedelta) -> int:
        """Calls that may be sent within the window that ends when a call granted now is sent at once."""
        window = timedelta(seconds=WINDOW_S)
        return sum(not logged.is_refunded and logged.at + logged.guard > at - window for logged in self.log)


class Fleet:
    """Workers of three models; `true` is the true time, `queue.now` the time of the database's clock."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self.queue = Queue(conn)
        self.true = timedelta(0)
        self.models = {name: Model(0) for name in MODELS}
        self.claims = 0
        self.windows = 0

    def set_rpm(self, name: str, rpm: int) -> None:
        self.queue.model(name, rpm)
        self.models[name].rpm = rpm

    def pass_time(self, gap: timedelta) -> None:
        self.true += gap
        self.queue.now += gap

    def to_cell_edge(self, cells: int, off: int) -> None:
        """Goes to the edge of the cell that is `cells` ahead, `off` microseconds beside it."""
        cell_us = 250_000
        now_us = (self.queue.now - T0) // TICK
        edge_us = (now_us // cell_us + cells) * cell_us + off
        self.pass_time(max(edge_us - now_us, 0) * TICK)

    def claim(self, models: list[str] | None, slots: int) -> Claimed:
        claimed = self.queue.claim(slots, models)
        self.claims += 1
        for grant in claimed.grants:
            model = self.models[grant.model]
            model.log.append(Logged(self.true, timedelta(seconds=grant.guard_s), grant))
        for name in {grant.model for grant in claimed.grants}:
            self.windows += 1
            model = self.models[name]
            assert model.trailing(self.true) <= model.rpm, (
                f"{name}: {model.trailing(self.true)} > {model.rpm} at {self.true}"
            )
        assert len(claimed.grants) <= slots
        self.check_verdicts(claimed)
        return claimed

    def check_verdicts(self, claimed: Claimed) -> None:
        for name, reason in claimed.reasons.items():
            retry_in_s = claimed.retry_in_s[name]
            match reason:
                case "rpm" | "pace":
                    assert retry_in_s is not None
                    assert retry_in_s > 0
                case "paused":
                    assert self.models[name].rpm == 0
                case other:
                    assert other is None, f"{name}: {other} with a backlog"

    def refund(self, nth: int) -> None:
        """Gives back one of the grants, perhaps one that has been given back before."""
        every = [logged for model in self.models.values() for logged in model.log]
        if every:
            logged = every[nth % len(every)]
            assert self.queue.settle(release(logged.grant)) == ["released"]
            logged.is_refunded = True

    def come_back(self) -> None:
        """Asks each model again exactly at its retry time, when it must grant a call."""
        for name in MODELS:
            claimed = self.queue.claim(1, [name])
            for grant in claimed.grants:
                self.models[name].log.append(Logged(self.true, timedelta(seconds=grant.guard_s), grant))
                assert self.models[name].trailing(self.true) <= self.models[name].rpm
            retry_in_s = claimed.retry_in_s[name]
            if retry_in_s is not None and claimed.reasons[name] in {"rpm", "pace"}:
                self.pass_time(timedelta(seconds=retry_in_s))
                assert len(self.claim([name], 1).grants) == 1, (
                    f"{name} said {claimed.reasons[name]}, back in {retry_in_s}"
                )


@contextmanager
def fleet(conn: psycopg.Connection[Any]) -> Iterator[Fleet]:
    try:
        yield Fleet(conn)
    finally:
        conn.rollback()


RPM = st.one_of(st.integers(0, 4), st.sampled_from([10, 60, 119, 600, 6000, 6_000_000]))
GAPS = st.one_of(
    st.sampled_from([0.0, 0.249999, 0.25, 0.250001, 0.5, 1.0, 30.0, 59.9, 60.0, 60.5, 60.75, 61.0, 300.0]),
    st.floats(0, 70).map(lambda s: round(s, 6)),
    st.floats(0, 2).map(lambda s: round(s, 6)),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("claim"),
            st.one_of(st.none(), st.lists(st.sampled_from(MODELS), min_size=1, unique=True)),
            st.integers(1, 40),
        ),
        st.tuples(st.just("claim"), st.just(None), st.just(120)),
        st.tuples(st.just("wait"), GAPS),
        st.tuples(st.just("edge"), st.integers(0, 260), st.integers(-1, 1)),
        st.tuples(st.just("rpm"), st.sampled_from(MODELS), RPM),
        st.tuples(st.just("refund"), st.integers(0, 1000)),
        st.tuples(st.just("step back"), st.one_of(st.floats(0, 1), st.floats(1.000001, 200), st.just(1.0))),
        st.tuples(st.just("seen step forward"), st.floats(0.3, 5000)),
        st.tuples(st.just("guard"), st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0, 10.0, 0.333333])),
        st.tuples(st.just("prune")),
        st.tuples(st.just("come back")),
    ),
    min_size=8,
    max_size=60,
)


@given(rpms=st.tuples(RPM, RPM, RPM), phase=st.floats(0, 1).map(lambda s: round(s, 6)), steps=STEPS)
@example(
    rpms=(60, 60, 60),
    phase=0.9,
    steps=[
        ("wait", 59.0),
        *[("claim", None, 6), ("wait", 0.25)] * 20,
        ("wait", 59.9),
        *[("claim", None, 6), ("wait", 0.25)] * 20,
    ],
)
@example(
    rpms=(1, 1, 1),
    phase=0.0,
    steps=[
        ("claim", None, 9),
        ("edge", 242, 0),
        ("claim", None, 9),
        ("edge", 1, -1),
        ("claim", None, 9),
        ("edge", 1, 0),
        ("claim", None, 9),
    ],
)
@example(
    rpms=(6, 6, 6),
    phase=0.0,
    steps=[
        ("claim", None, 9),
        ("step back", 60.0),
        ("claim", None, 9),
        ("refund", 0),
        ("refund", 1),
        ("wait", 62.0),
        *[("claim", None, 9), ("wait", 1.0)] * 10,
    ],
)
@example(
    rpms=(2, 2, 2),
    phase=0.0,
    steps=[
        ("guard", 10.0),
        ("claim", None, 9),
        ("wait", 50.0),
        ("guard", 0.5),
        ("guard", 1.0),
        ("wait", 13.0),
        ("claim", None, 9),
    ],
)
def test_no_window_is_over_the_limit_and_no_wait_is_in_vain(
    backlog: psycopg.Connection[Any], rpms: tuple[int, int, int], phase: float, steps: list[tuple[Any, ...]]
) -> None:
    with fleet(backlog) as world:
        world.pass_time(timedelta(seconds=phase))
        for name, rpm in zip(MODELS, rpms, strict=True):
            world.set_rpm(name, rpm)
        for step in steps:
            if sum(len(model.log) for model in world.models.values()) > 400:
                break  # the backlog must last
            match step:
                case ("claim", models, slots):
                    world.claim(models, slots)
                case ("wait", seconds):
                    world.pass_time(timedelta(seconds=seconds))
                case ("edge", cells, off):
                    world.to_cell_edge(cells, off)
                case ("rpm", name, rpm):
                    world.set_rpm(name, rpm)
                case ("refund", nth):
                    world.refund(nth)
                case ("step back", seconds):
                    world.queue.now -= timedelta(seconds=seconds)
                case ("seen step forward", seconds):
                    world.queue.now += timedelta(seconds=seconds)
                    world.queue.rows("select llmqueue.clock_stepped()")
                case ("guard", guard_s):
                    world.queue.register(guard_s=guard_s)
                case ("prune",):
                    world.queue.rows("select llmqueue_internal.prune_ledger()")
                case ("come back",):
                    world.come_back()
        event("windows checked", world.windows)


@settings(max_examples=max(20, settings.default.max_examples // 6))
@given(
    rpm=st.sampled_from([1, 2, 7, 60, 61, 600]),
    slots=st.integers(1, 20),
    expiry=st.lists(st.floats(0, 0.05).map(lambda s: round(s, 6)), min_size=1, max_size=20),
    refunds=st.sets(st.integers(0, 400), max_size=20),
)
def test_a_limit_is_used_up_to_the_last_call_that_a_window_admits(
    backlog: psycopg.Connection[Any], rpm: int, slots: int, expiry: list[float], refunds: set[int]
) -> None:
    """A worker that returns a little after each retry time gets at least what windows of 60.75 s admit."""
    with fleet(backlog) as world:
        world.set_rpm("a", rpm)
        log = world.models["a"].log
        turn = 0
        while world.true < timedelta(minutes=4) and len(log) < 400:
            claimed = world.claim(["a"], slots)
            given_back = refunds & set(range(len(log) - len(claimed.grants), len(log)))
            for nth in given_back:
                world.queue.settle(release(log[nth].grant))
                log[nth].is_refunded = True
            # What was given back can be had again at once; a worker's poll would ask within a second.
            retry_in_s = 0.0 if given_back else claimed.retry_in_s["a"] or 0.0
            world.pass_time(timedelta(seconds=retry_in_s + expiry[turn % len(expiry)]))
            turn += 1
        sent = sum(not logged.is_refunded for logged in log)
        due = int(world.true / timedelta(seconds=61.5)) * rpm

        assert sent >= min(due, 400 - len(refunds)) * 0.985
