"""The lines about ended attempts: one per attempt, and one when a model refuses calls."""

from __future__ import annotations

import logging
import math
import time

from llmqueue.logs import Event, logger
from llmqueue.types import Bury, Complete, Decision, Release, Retry, Settlement

# All calls in flight may be refused at once, and each would be logged.
COOLDOWN_LOGGED_S = 10.0


class AttemptLog:
    """Logs what the database made of each end."""

    def __init__(self) -> None:
        self._cooldown_logged_at: dict[str, float] = {}

    def settled(self, settlement: Settlement, outcome: str) -> None:
        log_attempt(settlement, outcome)
        self._log_cooldown(settlement)

    def _log_cooldown(self, settlement: Settlement) -> None:
        """One line for all the calls that a model refuses at about the same time."""
        decision, model = settlement.decision, settlement.grant.model
        if not isinstance(decision, Retry) or decision.refusal is None:
            return
        now = time.monotonic()
        if now - self._cooldown_logged_at.get(model, -math.inf) < COOLDOWN_LOGGED_S:
            return
        self._cooldown_logged_at[model] = now
        logger().warning(Event.MODEL_COOLDOWN, model=model, pause_s=decision.pause_s, reason=decision.error_class)


def log_attempt(settlement: Settlement, outcome: str) -> None:
    """One INFO line per attempt, with all that is known about it but its texts.

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
    if outcome in {"quarantined", "unknown", "late"}:
        return logging.WARNING
    if isinstance(decision, Release) and decision.error_class.startswith("unreachable"):
        return logging.DEBUG  # an outage is one line, not one per task (I11)
    return logging.INFO
