"""What `llmqueue why` says of the task itself; model_reasons.py has what it says of the models that could take it."""

from __future__ import annotations

import shlex
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from llmqueue.cli.output import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NO_WORKER: Final = "Start one: llmqueue worker"
NOW_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Why:
    """A row of llmqueue.why(), times as text, with the key and the database's time."""

    key: str
    state: str
    reason: str | None
    until_at: str | None
    model: str | None
    detail: dict[str, Any]
    now: str

    def at(self, text: str | None) -> str:
        """A time as the reader's clock shows it, and how far off it is: `12:00:03 (in 2 s)`."""
        try:
            time, now = datetime.fromisoformat(text or ""), datetime.fromisoformat(self.now)
        except ValueError:
            return str(text)  # 'infinity', or a year that Python does not know
        here, seconds = time.astimezone(), (time - now).total_seconds()
        clock = here.strftime("%H:%M:%S" if here.date() == now.astimezone().date() else "%Y-%m-%d %H:%M:%S")
        return f"{clock} (in {duration(seconds)})" if seconds > 0 else f"{clock} ({duration(-seconds)} ago)"

    @property
    def until(self) -> str:
        """until_at as at() has it, or `now`."""
        with suppress(ValueError):
            left = datetime.fromisoformat(self.until_at or "") - datetime.fromisoformat(self.now)
            if left.total_seconds() < NOW_S:
                return "now"
        return self.at(self.until_at)

    @property
    def is_past(self) -> bool:
        """True when until_at has been reached."""
        try:
            return datetime.fromisoformat(self.until_at or "") <= datetime.fromisoformat(self.now)
        except ValueError:
            return False

    def has(self, name: str) -> bool:
        """True when there is such a number, and it is not 0."""
        return bool(self.detail.get(name))


def deadline(row: Why) -> Iterator[str]:
    if row.has("deadline_at"):
        yield f"if it is not claimed by its deadline, {row.at(row.detail['deadline_at'])}, it ends as a dead letter"


def _ended(row: Why) -> Iterator[str]:
    detail = row.detail
    when = f" {row.at(detail['ended_at'])}" if row.has("ended_at") else ""
    tries = f", after {plural(detail['attempts'], 'attempt')}" if row.has("attempts") else ""
    because = f", because of {detail['error']}" if row.has("error") else ""
    match row.state:
        case "failed":
            yield f"{f'has been dead since{when}' if when else 'is dead'}{tries}{because}"
        case "cancelled":
            yield f"was cancelled{' at' if when else ''}{when}{tries}"
        case _:
            yield f"was solved{' at' if when else ''}{when}{tries}"
    if row.has("last_outcome"):
        said = ": ".join(detail[name] for name in ("last_error_class", "last_error") if row.has(name))
        yield f"its last attempt, on model {row.model}, was {detail['last_outcome']}{f' ({said})' if said else ''}"
    if row.state != "solved":
        yield f"to run it again: llmqueue {'dead' if row.state == 'failed' else 'tasks'} retry {shlex.quote(row.key)}"


def _quarantined(row: Why) -> Iterator[str]:
    step, error = row.detail["step"], row.detail["error"]
    yield f"has been quarantined since {row.at(row.detail['since'])}: its row could not be written ({step}: {error})"
    yield f"once that is cured: llmqueue dead retry {shlex.quote(row.key)}"


def _not_queued(row: Why) -> Iterator[str]:
    status = row.detail.get("status")
    yield (
        f'is not queued: its status is "{status}"' if status else "is not queued: its row does not say that it is ready"
    )


def _running(row: Why) -> Iterator[str]:
    detail = row.detail
    yield (
        f"has run since {row.at(detail['since'])}: attempt {detail['attempt']} of {detail['max_attempts']} on model "
        f"{row.model}, worker {detail['worker']} (alive, heartbeat {duration(detail['heartbeat_age_s'])} ago)"
    )
    if detail["is_probe"]:
        yield f"it is the probe: model {row.model} leaves its cooldown when it succeeds"
    if row.until_at:
        yield f"it may take until {row.at(row.until_at)} at most (timeout {duration(detail['timeout_s'])})"


def _worker_dead(row: Why) -> Iterator[str]:
    detail = row.detail
    worker = f"worker {detail['worker']}" if row.has("worker") else "its worker"
    age = f" (heartbeat {duration(detail['heartbeat_age_s'])} ago)" if row.has("heartbeat_age_s") else ""
    yield (
        f"ran since {row.at(detail['since'])}, attempt {detail['attempt']} of {detail['max_attempts']} on model "
        f"{row.model}, but {worker} is dead{age}"
    )
    end = "ends as a dead letter" if detail["attempt"] >= detail["max_attempts"] else "comes back"
    if row.has("live_workers"):
        yield f"it {end} with the next sweep of a worker that has lived for a lease"
    else:
        yield f"it {end} with the first sweep of a live worker, and there is none. {NO_WORKER}"


def _no_attempt(row: Why) -> Iterator[str]:
    yield "says that it is running, but it was never claimed, and nobody runs it (a status written by hand?)"
    yield f"to run it: llmqueue tasks retry {shlex.quote(row.key)}"


def _delayed(row: Why) -> Iterator[str]:
    detail = row.detail
    match row.reason:
        case "retry":
            why = f"attempt {detail['attempts']} of {detail['max_attempts']} failed ({detail.get('error', '?')})"
        case "refused":
            who = (
                "the backend failed it" if row.detail.get("is_failure") else f"model {detail['last_model']} refused it"
            )
            why = f"{who} ({detail.get('error', '?')}), which cost no attempt"
        case _:
            why = "its run_at says so"
    if row.is_past:
        yield f"waits: it has been due since {row.at(row.until_at)}, and a live worker makes it ready within a second"
    else:
        yield f"waits: it is not due until {row.at(row.until_at)}, because {why}"
    if not row.has("live_workers"):
        yield f"no worker is live. {NO_WORKER}"
    yield from deadline(row)


def _not_due(row: Why) -> Iterator[str]:
    yield f"waits: it is not due until {row.at(row.until_at)}, because its run_at says so"
    yield from deadline(row)


def _expired(row: Why) -> Iterator[str]:
    yield (
        f"is past its deadline, {row.at(row.detail['deadline_at'])}: the next worker that looks ends it as a "
        "dead letter, unsent"
    )


def _no_model(row: Why) -> Iterator[str]:
    if row.has("weightless"):
        name = shlex.quote(row.detail["weightless"])
        yield f"waits: it names no model, and no enabled model has a weight. Run: llmqueue models set {name} --weight 1"
        return
    yield "waits: no enabled model with a weight may take it. Run: llmqueue models set NAME --rpm N"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


# Reasons that have nothing to do with a model; such a task has one row.
OF_TASK: Final[dict[str | None, Callable[[Why], Iterator[str]]]] = {
    "ended": _ended,
    "quarantined": _quarantined,
    "not_queued": _not_queued,
    "running": _running,
    "worker_dead": _worker_dead,
    "no_attempt": _no_attempt,
    "retry": _delayed,
    "refused": _delayed,
    "run_at": _delayed,
    "not_due": _not_due,
    "expired": _expired,
    "no_model": _no_model,
}
