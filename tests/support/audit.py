"""Calls for the audit, made by hand, and what it says about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmqueue.audit import Auditor, Call, Judged, ModelReport, Scope

S = 1_000_000
START = 1_800_000_000 * S


def audit(calls: Sequence[Call], scope: Scope) -> ModelReport:
    """The report about calls of one model."""
    auditor = Auditor(scope)
    for call in calls:
        auditor.push(call)
    (report,) = auditor.finish()
    return report


def judged(report: ModelReport, what: str = "calls") -> Judged:
    (found,) = (judged for judged in report.limits if judged.what == what)
    return found


def sent(at_s: float, rpm: int = 60, **fields: Any) -> Call:
    """A call that was granted and sent at a moment."""
    at_us = START + round(at_s * S)
    return Call("m", at_us, rpm, at_us)._replace(**fields)


def unknown(at_s: float, rpm: int = 60, **fields: Any) -> Call:
    """A call that was granted at a moment, and sent nobody knows when."""
    return Call("m", START + round(at_s * S), rpm)._replace(**fields)
