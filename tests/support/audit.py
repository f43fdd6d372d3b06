"""Calls for the audit, made by hand, and the audit's report on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmqueue.audit import Auditor, Call, Judged, ModelReport, Scope

S = 1_000_000
START = 1_800_000_000 * S


def audit(calls: Sequence[Call], scope: Scope) -> ModelReport:
    """Returns the report on calls of one model."""
    auditor = Auditor(scope)
    for call in calls:
        auditor.push(call)
    (report,) = auditor.finish()
    return report


def judged(report: ModelReport, what: str = "calls") -> Judged:
    (found,) = (judged for judged in report.limits if judged.what == what)
    return found


def sent(at_s: float, rpm: int = 60, **fields: Any) -> Call:
    """Returns a call that was granted and sent at `at_s`."""
    at_us = START + round(at_s * S)
    return Call("m", at_us, rpm, at_us)._replace(**fields)


def unknown(at_s: float, rpm: int = 60, **fields: Any) -> Call:
    """Returns a call that was granted at `at_s` and sent at an unknown time."""
    return Call("m", START + round(at_s * S), rpm)._replace(**fields)
