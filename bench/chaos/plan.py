"""The schedule of faults, which depends only on the seed and the length of the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

WORKERS = 3

# The target of a fault. No target has two faults at once, and there are never more than MOST_AT_ONCE in all.
Thing = Literal["worker", "database", "database link", "backend", "backend link"]
MOST_AT_ONCE = 2
EVERY_S = (2.0, 6.0)
CALM_S = 3.0  # at the start, before the first fault


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. `lasts_s` is its shortest and longest duration; for a fault of the backend, `rate` names its
    switch and `share` is the range of the share of affected calls."""

    name: str
    thing: Thing
    lasts_s: tuple[float, float]
    is_of_one: bool = False  # one worker, or one worker's link
    rate: str | None = None
    share: tuple[float, float] = (0.0, 0.0)


def kinds(lease_s: float, longest_s: float) -> Mapping[str, Kind]:
    """Returns all kinds by name; half-open links last up to `longest_s`."""
    listed = (
        Kind("kill -9 of a worker", "worker", (0.5, 4.0), is_of_one=True),
        Kind("worker frozen", "worker", (0.5, min(lease_s * 0.7, longest_s)), is_of_one=True),
        Kind("worker frozen past its lease", "worker", (lease_s + 1, lease_s + 10), is_of_one=True),
        Kind("database crashes", "database", (0.0, 4.0)),
        Kind("every session terminated", "database", (0.0, 0.0)),
        Kind("database of one worker cut", "database link", (0.5, 8.0), is_of_one=True),
        Kind("database of all cut", "database link", (0.5, 6.0)),
        Kind("database of one worker half-open", "database link", (1.0, longest_s), is_of_one=True),
        Kind("database of all half-open", "database link", (1.0, min(longest_s, 15.0))),
        Kind("backend cut", "backend link", (0.2, 5.0)),
        Kind("backend half-open", "backend link", (0.5, min(longest_s, 12.0))),
        Kind("backend killed", "backend", (0.5, 4.0)),
        Kind("backend answers 500", "backend", (2.0, 8.0), rate="error_rate", share=(0.2, 1.0)),
        Kind("backend answers 503", "backend", (2.0, 8.0), rate="unavailable_rate", share=(0.2, 1.0)),
        Kind("backend resets", "backend", (2.0, 8.0), rate="reset_rate", share=(0.2, 1.0)),
        Kind("backend hangs", "backend", (1.0, 4.0), rate="hang_rate", share=(0.1, 0.4)),
        Kind("backend unreadable", "backend", (2.0, 8.0), rate="unreadable_rate", share=(0.2, 1.0)),
    )
    return {kind.name: kind for kind in listed}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the schedule. `worker` is None if it is not about a single worker."""

    number: int
    kind: Kind
    at_s: float
    lasts_s: float
    worker: int | None
    share: float

    def __str__(self) -> str:
        whom = "" if self.worker is None else f" {self.worker}"
        share = f", {self.share:.0%} of calls" if self.share else ""
        return f"{self.at_s:6.1f} s  {self.kind.name}{whom}, {self.lasts_s:.1f} s{share}"


def schedule(seed: int, seconds: float, lease_s: float, longest_s: float) -> list[Fault]:
    """Returns the faults until `seconds`. Each kind comes once before any repeats; the seed decides the order."""
    rng = Random(f"chaos {seed}")
    every_kind = list(kinds(lease_s, longest_s).values())
    faults: list[Fault] = []
    waiting = _decks(every_kind, rng)
    put_back: list[Kind] = []
    at_s = CALM_S
    while at_s < seconds:
        candidates = [*put_back, next(waiting)]
        for kind in candidates:
            fault = _fault(kind, len(faults) + 1, at_s, rng)
            if _is_free(fault, faults):
                faults.append(fault)
                candidates.remove(kind)
                break
        put_back = candidates
        at_s += rng.uniform(*EVERY_S)
    return faults


def _decks(every_kind: list[Kind], rng: Random) -> Iterator[Kind]:
    while True:
        yield from rng.sample(every_kind, len(every_kind))


def _fault(kind: Kind, number: int, at_s: float, rng: Random) -> Fault:
    worker = rng.randrange(WORKERS) if kind.is_of_one else None
    return Fault(number, kind, round(at_s, 2), round(rng.uniform(*kind.lasts_s), 2), worker, rng.uniform(*kind.share))


def _is_free(fault: Fault, others: list[Fault]) -> bool:
    at_the_time = [other for other in others if other.at_s + other.lasts_s + 1.0 > fault.at_s]
    if len(at_the_time) >= MOST_AT_ONCE:
        return False
    return all(
        other.kind.thing != fault.kind.thing
        or (other.worker is not None and fault.worker is not None and other.worker != fault.worker)
        for other in at_the_time
    )
