"""The time until each fault had no more effect.

It counts from the end of the fault (from the moment of a kill) until the next grant (if the database was down or cut),
until the next completed call (of any worker after a fault of the backend, of that worker after it was frozen or cut
off), or, for a killed worker, until its last open attempt has ended and the task waits again.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bench.chaos.evidence import Attempt, Evidence
from bench.chaos.judge import explains, is_hit
from bench.chaos.mishaps import Mishap


@dataclass(frozen=True, slots=True)
class Felt:
    """All faults of a kind. `tasks` were in progress during them, where they could be affected; `in_vain` of their
    attempts ended without an answer in the way in which such a fault ends them."""

    name: str
    times: int
    tasks: int
    in_vain: int
    until: str
    p50_s: float | None
    max_s: float | None


def felt(evidence: Evidence) -> list[Felt]:
    by_kind: dict[str, list[Mishap]] = defaultdict(list)
    for mishap in evidence.mishaps:
        by_kind[mishap.fault.kind.name].append(mishap)
    return [_felt(name, mishaps, evidence) for name, mishaps in sorted(by_kind.items())]


def _felt(name: str, mishaps: Sequence[Mishap], evidence: Evidence) -> Felt:
    tasks, in_vain, recovered = 0, 0, []
    for mishap in mishaps:
        hit = [a for a in evidence.attempts if is_hit(a, mishap, evidence) and a.granted_at <= mishap.ended_at]
        tasks += len({attempt.task for attempt in hit})
        in_vain += sum(explains(mishap, attempt, evidence) for attempt in hit)
        took_s = _recovery_s(mishap, hit, evidence.attempts, evidence)
        if took_s is not None:
            recovered.append(took_s)
    return Felt(
        name,
        len(mishaps),
        tasks,
        in_vain,
        _until(mishaps[0]),
        statistics.median(recovered) if recovered else None,
        max(recovered, default=None),
    )


def _until(mishap: Mishap) -> str:
    if "kill -9" in mishap.fault.kind.name:
        return "its tasks wait again"
    if mishap.fault.kind.thing in {"database", "database link"} and mishap.fault.worker is None:
        return "next grant"
    return "next answer" if mishap.fault.worker is None else "its next answer"


def _recovery_s(
    mishap: Mishap, hit: Sequence[Attempt], attempts: Sequence[Attempt], evidence: Evidence
) -> float | None:
    match _until(mishap):
        case "its tasks wait again":
            ends = [a.ended_at for a in hit if a.ended_at is not None and a.granted_at <= mishap.began_at]
            return max((at - mishap.began_at for at in ends), default=None)
        case "next grant":
            moments = [a.granted_at for a in attempts]
        case "next answer":
            moments = [a.ended_at for a in attempts if a.outcome == "completed" and a.ended_at is not None]
        case _:
            own = evidence.workers[mishap.fault.worker or 0]
            moments = [
                a.ended_at for a in attempts if a.outcome == "completed" and a.ended_at is not None and a.worker in own
            ]
    return min((at - mishap.ended_at for at in moments if at > mishap.ended_at), default=None)
