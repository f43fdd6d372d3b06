"""One finished end of an attempt as one line of a spill file, and back.

    <crc32, 8 hex digits> <length> <JSON in ASCII>\n

Length and checksum tell a line that was cut off from one that can be relied on. ASCII carries whatever a backend may
answer: lone surrogates and NUL too. The prompt is left out: it lies in the user's table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import assert_never
from zlib import crc32

from llmqueue.types import Bury, Complete, Decision, Grant, Json, Release, Retry, Settlement, Task, Usage


class Damaged(ValueError):
    """A line that was not written to its end, or has changed since."""


def frame(value: Json) -> bytes:
    """Raises ValueError or RecursionError for what is not JSON."""
    payload = json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    return b"%08x %d %b\n" % (crc32(payload), len(payload), payload)


def unframe(line: bytes) -> Json:
    """Returns what was framed; raises Damaged."""
    try:
        checksum, length, payload = line.rstrip(b"\n").split(b" ", 2)
        is_whole = line.endswith(b"\n") and len(payload) == int(length) and crc32(payload) == int(checksum, 16)
        if is_whole:
            return json.loads(payload)
    except (ValueError, RecursionError):
        pass
    raise Damaged("a line is cut off or has changed")


@dataclass(frozen=True, slots=True)
class Record:
    """An end, without its prompt and its grant's time; `ended_at` in seconds of time.time(), None: not known."""

    settlement: Settlement
    ended_at: float | None


def encode(settlement: Settlement, ended_at: float | None = None) -> bytes:
    """Returns the line of an end; raises ValueError or RecursionError if its answer is not JSON."""
    grant, task = settlement.grant, settlement.grant.task
    return frame(
        {
            "task": str(task.id),
            "fence": task.fence,
            "attempt": task.attempt_no,
            "model": grant.model,
            "sent_after_s": settlement.sent_after_s,
            "latency_s": settlement.latency_s,
            "char_class_estimate": settlement.char_class_estimate,
            "ended_at": ended_at,
            **_decision(settlement.decision),
        }
    )


def decode(line: bytes) -> Record:
    """Raises Damaged."""
    value = unframe(line)
    try:
        task = Task(value["task"], value["fence"], value["attempt"], 0, 0, None, None)
        settlement = Settlement(
            Grant(value["model"], task, 0.0, 0.0, 0.0),
            _read_decision(value),
            value["sent_after_s"],
            value["latency_s"],
            value["char_class_estimate"],
        )
        return Record(settlement, value.get("ended_at"))
    except (KeyError, TypeError):
        raise Damaged("a line is not the end of an attempt") from None


def _decision(decision: Decision) -> dict[str, Json]:
    match decision:
        case Complete(answer, usage):
            tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
            return {"verb": "complete", "answer": answer, **tokens}
        case Retry(error_class, error, delay_s, counts, refusal, pause_s, may_be_backends):
            more = {"delay_s": delay_s, "counts": counts, "refusal": refusal, "pause_s": pause_s}
            blame = {"may_be_backends": may_be_backends}
            return {"verb": "retry", "error_class": error_class, "error": error, **more, **blame}
        case Bury(error_class, error, answer):
            return {"verb": "bury", "error_class": error_class, "error": error, "answer": answer}
        case Release(error_class):
            return {"verb": "release", "error_class": error_class}
        case _:
            assert_never(decision)


def _read_decision(value: dict[str, Json]) -> Decision:
    match value["verb"]:
        case "complete":
            return Complete(value["answer"], Usage(value["input_tokens"], value["output_tokens"]))
        case "retry":
            cause = value["error_class"], value["error"]
            # a file from before it was written says nothing of it
            may_be_backends = value.get("may_be_backends", False)
            return Retry(*cause, value["delay_s"], value["counts"], value["refusal"], value["pause_s"], may_be_backends)
        case "bury":
            return Bury(value["error_class"], value["error"], value["answer"])
        case "release":
            return Release(value["error_class"])
    raise KeyError("verb")
