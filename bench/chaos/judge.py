"""Compares the guarantees with the evidence, and describes each violation in a sentence.

Delayed calls. Calls count when they arrive at the backend. A silent proxy or a frozen machine delays bytes that were
sent in time. A call counts when it was sent, by the attempt log, if it took longer than half a guard and the link was
silent, or the prober detected a stall, during that time. All other calls count when they arrived, late or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.chaos import scene
from bench.chaos.evidence import Attempt, Evidence, Task
from bench.chaos.mishaps import Mishap
from llmqueue.demo.windows import Period, fullest, windows
from llmqueue.fake_backend import LoggedCall, expected_answer

GUARD_S = 0.5
MOST_SHOWN = 5
ENDED = {"solved", "failed", "cancelled"}
# Outcomes of attempts without an answer; their tasks are called again.
IN_VAIN = {"retried", "refused", "lost", "late", "buried", "quarantined"}
# From a fault's end until the last affected attempt has ended.
FELT_S = 3.0


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one model, as the backend saw them."""

    rpm: int
    calls: int
    worst: int
    held_back: int


@dataclass(slots=True)
class Verdict:
    violations: list[str]
    models: Mapping[str, Calls]
    ends: Counter[str]  # of tasks, by status
    outcomes: Counter[tuple[str, str | None]]  # of attempts
    refused: int = 0  # tasks that the backend refuses for good, and that are dead letters for that reason
    hits: int = 0
    paid_again: int = 0
    matched: Mapping[int, LoggedCall] = field(default_factory=dict)  # by fence


def judge(evidence: Evidence) -> Verdict:
    by_task: dict[int, list[Attempt]] = defaultdict(list)
    for attempt in evidence.attempts:
        by_task[attempt.task].append(attempt)
    matched = _matched(evidence.calls, by_task)
    models, over = _limits(evidence, matched)
    explained = {a.fence for a in evidence.attempts if a.outcome in IN_VAIN and _reason(a, evidence)}
    calls = Counter(call.key for call in evidence.calls)
    violations = [
        *evidence.problems,
        *_shown("has no end", [t for t in evidence.tasks if t.status not in ENDED], _task),
        *_shown("is answered wrongly", [t for t in evidence.tasks if _is_wrong(t)], _task),
        *_shown("has another number of recorded answers", list(_recorded(evidence.tasks, by_task)), str),
        *_shown("is a dead letter without a reason", list(_dead(evidence.tasks, by_task, explained)), str),
        *_shown("was called too often", list(_too_often(evidence.tasks, by_task, explained, calls)), str),
        *_shown("is still open", [a for a in evidence.attempts if a.ended_at is None], _attempt),
        *_shown(
            "ended in vain without a fault",
            [a for a in evidence.attempts if a.outcome in IN_VAIN and not _reason(a, evidence)],
            _attempt,
        ),
        *over,
        *_strangers(evidence, calls),
    ]
    return Verdict(
        violations,
        models,
        Counter(task.status for task in evidence.tasks),
        Counter((attempt.outcome or "open", attempt.error_class) for attempt in evidence.attempts),
        sum(task.status == "failed" and scene.BROKEN_MARK in task.prompt for task in evidence.tasks),
        len(explained),
        sum(count - 1 for count in calls.values()),
        matched,
    )


# --- tasks ------------------------------------------------------------------------------------------------------


def _is_wrong(task: Task) -> bool:
    return task.answer != expected_answer(task.prompt) if task.status == "solved" else task.answer is not None


def _recorded(tasks: Sequence[Task], by_task: Mapping[int, list[Attempt]]) -> Iterator[str]:
    for task in tasks:
        recorded = sum(attempt.outcome == "completed" for attempt in by_task[task.id])
        if recorded != (task.status == "solved"):
            yield f"{task.id} ({task.status}): {recorded}"


def _dead(tasks: Sequence[Task], by_task: Mapping[int, list[Attempt]], explained: set[int]) -> Iterator[str]:
    """Yields dead letters that the backend does not refuse for good and that were hit by fewer faults than attempts."""
    for task in tasks:
        if task.status != "failed" or scene.BROKEN_MARK in task.prompt:
            continue
        hits = sum(a.fence in explained and a.outcome in {"lost", "retried", "buried"} for a in by_task[task.id])
        if hits < (task.max_attempts or 5):
            yield f"{task.id} ({hits} hits): {task.error}"


def _too_often(
    tasks: Sequence[Task], by_task: Mapping[int, list[Attempt]], explained: set[int], calls: Counter[str | None]
) -> Iterator[str]:
    for task in tasks:
        allowed = 1 + sum(attempt.fence in explained for attempt in by_task[task.id])
        if (made := calls[f"{task.id}:0"]) > allowed:
            yield f"{task.id}: {made} calls, {allowed - 1} faults"


def _strangers(evidence: Evidence, calls: Counter[str | None]) -> Iterator[str]:
    known = {f"{task.id}:0" for task in evidence.tasks}
    if strange := [key for key in calls if key not in known]:
        yield f"{len(strange)} calls have keys of no task: {strange[:MOST_SHOWN]}"
    if unknown := {call.model for call in evidence.calls} - set(scene.RPM):
        yield f"calls to models that nobody configured: {sorted(unknown)}"


# --- causes -----------------------------------------------------------------------------------------------------


def _reason(attempt: Attempt, evidence: Evidence) -> Mishap | str | None:
    """Returns the cause of an attempt in vain; None if nothing explains it."""
    prompt = evidence.prompts[attempt.task]
    if scene.STUMBLING_MARK in prompt and attempt.error_class == "http_500":
        return "its own"
    if scene.BROKEN_MARK in prompt and attempt.outcome == "buried":
        return "its own"
    return next((mishap for mishap in evidence.mishaps if explains(mishap, attempt, evidence)), None)


def explains(mishap: Mishap, attempt: Attempt, evidence: Evidence) -> bool:
    """Returns whether the fault may be the cause of an attempt in vain.

    The loss of the database by all workers explains no lost attempt, because no worker counts as dead after it (I9).
    """
    if attempt.outcome not in IN_VAIN or not is_hit(attempt, mishap, evidence):
        return False
    if attempt.outcome in {"lost", "late"}:
        return mishap.fault.worker is not None
    # a frozen worker finds its calls past their deadline, or the backend has closed its connections
    is_frozen = mishap.fault.kind.name.startswith("worker frozen")
    return mishap.fault.kind.thing in {"backend", "backend link"} or is_frozen


def is_hit(attempt: Attempt, mishap: Mishap, evidence: Evidence) -> bool:
    """Returns whether the attempt was in progress during the fault, where the fault could affect it."""
    worker = mishap.fault.worker
    if worker is not None and attempt.worker not in evidence.workers[worker]:
        return False
    ended_at = attempt.ended_at if attempt.ended_at is not None else float("inf")
    return attempt.granted_at <= mishap.ended_at + FELT_S and ended_at >= mishap.began_at


# --- limits -----------------------------------------------------------------------------------------------------


def _matched(calls: Sequence[LoggedCall], by_task: Mapping[int, list[Attempt]]) -> dict[int, LoggedCall]:
    """Returns calls by fence: each belongs to the newest attempt that could have just sent it, else to the oldest."""
    matched: dict[int, LoggedCall] = {}
    for call in sorted(calls, key=lambda call: call.arrived_at):
        task = (call.key or "").partition(":")[0]
        candidates = [
            attempt
            for attempt in by_task.get(int(task) if task.isdigit() else -1, ())
            if attempt.model == call.model
            and attempt.granted_at <= call.arrived_at + 0.001
            and attempt.fence not in matched
            and attempt.outcome != "released"
        ]
        at_once = [a for a in candidates if call.arrived_at - (a.sent_at or a.granted_at) <= GUARD_S]
        if candidates:
            matched[(at_once[-1] if at_once else candidates[0]).fence] = call
    return matched


def _limits(evidence: Evidence, matched: Mapping[int, LoggedCall]) -> tuple[dict[str, Calls], list[str]]:
    attempts = {id(matched[a.fence]): a for a in evidence.attempts if a.fence in matched}
    counted = defaultdict(list)
    held_back: Counter[str] = Counter()
    for call in evidence.calls:
        attempt = attempts.get(id(call))
        at = call.arrived_at
        if attempt is not None and (held_at := _held_since(call, attempt, evidence)) is not None:
            held_back[call.model] += 1
            at = held_at
        counted[call.model].append(at)
    models, over = {}, []
    for model, rpm in scene.RPM.items():
        found = windows(counted[model], [Period(float("-inf"), rpm)])
        worst = fullest(found)
        models[model] = Calls(rpm, len(counted[model]), worst.calls if worst else 0, held_back[model])
        if worst and worst.is_over:
            bad = sum(window.is_over for window in found)
            over.append(
                f"{model}: {worst.calls} calls within 60 s until {worst.at_s:.3f}, {rpm} allowed; {bad} windows"
            )
    return models, over


def _held_since(call: LoggedCall, attempt: Attempt, evidence: Evidence) -> float | None:
    """Returns when the call was sent, if it took long for a known reason; None: it counts when it arrived."""
    sent_at = attempt.sent_at if attempt.sent_at is not None else attempt.granted_at
    if call.arrived_at - sent_at <= GUARD_S / 2:
        return None
    silences = [
        (mishap.began_at, mishap.ended_at)
        for mishap in evidence.mishaps
        if mishap.fault.kind.thing == "backend link" or mishap.fault.kind.name == "backend killed"
    ]
    times = [*silences, *((stall.from_at, stall.to_at) for stall in evidence.stalls)]
    return sent_at if any(begin <= call.arrived_at and end >= sent_at for begin, end in times) else None


# --- words ------------------------------------------------------------------------------------------------------


def _shown(what: str, found: Sequence[object], text: object) -> list[str]:
    if not found:
        return []
    assert callable(text)
    some = "; ".join(text(item) for item in found[:MOST_SHOWN])
    return [f"{len(found)} x {what}: {some}{' …' if len(found) > MOST_SHOWN else ''}"]


def _task(task: Task) -> str:
    return f"task {task.id} ({task.status}, {task.attempts} attempts, {task.error})"


def _attempt(attempt: Attempt) -> str:
    took_s = (attempt.ended_at or attempt.granted_at) - attempt.granted_at
    return f"attempt {attempt.fence} of task {attempt.task} ({attempt.outcome}, {attempt.error_class}, {took_s:.1f} s)"
