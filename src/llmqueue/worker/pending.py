"""An end of an attempt on its way to the database, in memory or with its answer in the spill, and the line about it."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field

from llmqueue.logs import Event, logger
from llmqueue.spill.file import Place
from llmqueue.types import Bury, Complete, Decision, Release, Retry, Settlement


@dataclass(slots=True, eq=False)
class PendingSettlement:
    """`settlement` lacks its answer while that lies at `place` in the spill."""

    settlement: Settlement
    chars: int
    since: float = field(default_factory=time.monotonic)
    place: Place | None = None
    is_settled: bool = False
    # not JSON: only the database's own error would tell, and it stays in memory
    is_unspillable: bool = False
    # it was turned into a word that any database can take, and that word is in memory
    is_buried: bool = False
    # since when the disk does not give its answer back
    unread_since: float | None = None

    @property
    def is_in_memory(self) -> bool:
        return self.place is None and not self.is_settled


def pending(settlement: Settlement) -> PendingSettlement:
    """Returns an end that is in memory."""
    decision = settlement.decision
    answer = decision.answer if isinstance(decision, Complete | Bury) else None
    return PendingSettlement(settlement, len(answer) if isinstance(answer, str) else len(json.dumps(answer)))


def log_attempt(settlement: Settlement, outcome: str) -> None:
    """One INFO line per attempt, with all that is known about it but its words.

    Errors are named by class only: a backend's message may quote the prompt. `tasks show` has the text.
    """
    task, decision = settlement.grant.task, settlement.decision
    level = _level(decision, outcome)
    if not logger().is_enabled_for(level):
        return
    fields: dict[str, object] = {
        "task": str(task.id),
        "model": settlement.grant.model,
        "attempt": task.attempt_no,
        "fence": task.fence,
        "outcome": outcome,
    }
    if settlement.sent_after_s is not None:
        fields["sent_after_ms"] = round(settlement.sent_after_s * 1000, 1)
    if settlement.latency_s is not None:
        fields["latency_s"] = round(settlement.latency_s, 3)
    match decision:
        case Complete(usage=usage):
            fields |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        case Retry(error_class=error_class, delay_s=delay_s, refusal=refusal):
            fields |= {"error_class": error_class}
            if refusal is None:
                fields |= {"delay_s": round(delay_s, 1)}  # else the model's pause decides
        case Bury(error_class=error_class):
            fields["error_class"] = error_class
        case Release(error_class):
            fields["error_class"] = error_class
    logger().log(level, Event.ATTEMPT_ENDED, **fields)


def _level(decision: Decision, outcome: str) -> int:
    if outcome in {"set_aside", "unknown", "late"}:
        return logging.WARNING
    if isinstance(decision, Release) and decision.error_class.startswith("unreachable"):
        return logging.DEBUG  # an outage is one line, not one per task (I11)
    return logging.INFO
