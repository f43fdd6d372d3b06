"""Runs the cases of one target, each with a deadline; shrinks and keeps failing cases."""

from __future__ import annotations

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

DEADLINE_S = 30.0
SHRINK_S = 20.0
MOST_FAILURES = 5


class Hung(BaseException):
    """A case did not end in time. It is a BaseException, so that no handler for Exception catches it."""


class Failed(Exception):
    """A case broke a guarantee."""


@dataclass(frozen=True, slots=True)
class Case:
    """The input, in pieces, some of which can be omitted to make it smaller."""

    pieces: Sequence[bytes]
    about: dict[str, str] = field(default_factory=dict)


class Target(Protocol):
    """`make` draws a case; `check` runs it and raises Failed, or any other exception, if a guarantee is broken."""

    name: str

    def make(self, rng: Random) -> Case: ...

    def check(self, case: Case) -> None: ...

    def note(self) -> str:
        """Returns a remark for the end of the report, or an empty text."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    target: str
    seed: int
    number: int
    error: str
    case: Case

    def __str__(self) -> str:
        return f"{self.target}, seed {self.seed}, case {self.number}: {self.error.strip().splitlines()[-1][:300]}"


@dataclass(slots=True)
class Found:
    target: str
    cases: int = 0
    slowest_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)


def hunt(
    target: Target,
    seed: int,
    is_enough: Callable[[int, float], bool],
    first: int = 1,
    say: Callable[[str], object] = str,
) -> Found:
    """Runs cases from number `first` until `is_enough(cases, seconds)`. Each case depends on seed and number alone."""
    found = Found(target.name)
    began_at = time.monotonic()
    number = first
    while not is_enough(found.cases, time.monotonic() - began_at) and len(found.failures) < MOST_FAILURES:
        case = target.make(Random(f"{target.name} {seed} {number}"))
        case_began_at = time.monotonic()
        error = _error(target, case)
        found.slowest_s = max(found.slowest_s, time.monotonic() - case_began_at)
        found.cases += 1
        if error is not None:
            smaller = _shrunk(target, case, error)
            found.failures.append(Failure(target.name, seed, number, _error(target, smaller) or error, smaller))
            say(str(found.failures[-1]))
        number += 1
    return found


def _error(target: Target, case: Case) -> str | None:
    try:
        with _deadline(DEADLINE_S):
            target.check(case)
    except (Exception, Hung) as error:  # noqa: BLE001 - any exception is a failure of the case
        return "".join(traceback.format_exception(error))
    return None


def _shrunk(target: Target, case: Case, error: str) -> Case:
    """Omits pieces that the failure does not need, for a limited time: halves first, then single pieces."""
    give_up_at = time.monotonic() + SHRINK_S
    kind = error.strip().splitlines()[-1].partition(":")[0]
    step = max(1, len(case.pieces) // 2)
    while step >= 1 and "Hung" not in kind:
        at = 0
        while at < len(case.pieces) and time.monotonic() < give_up_at:
            fewer = Case([*case.pieces[:at], *case.pieces[at + step :]], case.about)
            if (again := _error(target, fewer)) and again.strip().splitlines()[-1].startswith(kind):
                case = fewer
            else:
                at += step
        step //= 2
    return case


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Hung(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def keep(failure: Failure, folder: Path) -> Path:
    """Writes a failure to two files, the input and its description; returns the path of the description."""
    stem = folder / f"{failure.target}-{failure.seed}-{failure.number}"
    stem.with_suffix(".input").write_bytes(b"".join(failure.case.pieces))
    about = {"error": failure.error, "about": failure.case.about, "pieces": [p.hex() for p in failure.case.pieces]}
    stem.with_suffix(".json").write_text(json.dumps(about, indent=2))
    return stem.with_suffix(".json")
