"""One simulated call from its arrival to its outcome: limit, fault, latency, answer, log."""

import asyncio
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import TypeAlias

from llmqueue.fake_backend.answers import Json, Usage, expected_answer, expected_usage
from llmqueue.fake_backend.call_log import Arrival, CallLog
from llmqueue.fake_backend.config import SimulatorConfig
from llmqueue.fake_backend.faults import BROKEN, ForcedFaults
from llmqueue.fake_backend.latency import fit_for
from llmqueue.fake_backend.limits import RateLimits

FAULT_RETRY_AFTER_S = 1  # Retry-After of a forced or drawn 429, 503 or 529
# Refusals by the model, sent at once with Retry-After. Other 5xx take the latency of the call.
_MODEL_REFUSALS = (429, 503, 529)
_KINDS = {404: "unknown_model", 429: "rate_limited", 503: "unavailable", 529: "overloaded"}


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a model."""

    model: str
    prompt: Json
    params: Mapping[str, Json] = field(default_factory=dict)
    key: str | None = None  # Idempotency-Key, or the item's id inside a batch


@dataclass(frozen=True, slots=True)
class Answered:
    """The model's answer."""

    answer: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Refused:
    """An error that the client receives."""

    status: int
    message: str
    retry_after_s: int | None = None

    @property
    def kind(self) -> str:
        """The error's `type`, which for an item of a batch stands for its status."""
        return _KINDS.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request")


@dataclass(frozen=True, slots=True)
class Broken:
    """A reply that the client cannot use."""

    how: str  # one of faults.BROKEN


Outcome: TypeAlias = Answered | Refused | Broken


@dataclass(frozen=True, slots=True)
class _Plan:
    """The end of a call, decided at its arrival."""

    outcome: Outcome
    wait_s: float = 0.0  # inf: until the client leaves
    fault: str | None = None


class Simulation:
    """The models of one backend. Limits and fault rates may change while it runs."""

    def __init__(self, config: SimulatorConfig, log: CallLog) -> None:
        self.config = config
        self.log = log
        self.faults = config.faults
        self.limits = RateLimits(dict.fromkeys(config.models) | dict(config.rpm), config.window_s, config.provider)
        self._forced = ForcedFaults()
        self._positions = {model: position for position, model in enumerate(config.models)}
        self._rngs: dict[str, Random] = {}

    async def run(self, call: Call, arrival: Arrival) -> Outcome:
        """Returns the call's outcome after its latency; logs it in any case, even if the client leaves."""
        entry = self.log.arrive(arrival, call.model, call.key)
        plan = self._plan(call, arrival)
        if plan.wait_s == math.inf:
            self.log.mark(entry, "hang")
        try:
            await _wait(plan.wait_s)
        except asyncio.CancelledError:
            self.log.finish(entry, None, plan.fault or "client left")
            raise
        self.log.finish(entry, _status(plan.outcome), plan.fault)
        return plan.outcome

    def _plan(self, call: Call, arrival: Arrival) -> _Plan:
        if not self.config.serves(call.model):
            return _Plan(Refused(404, f"there is no model {call.model}"))
        retry_after_s = self.limits.admit(call.model, arrival.monotonic)
        if retry_after_s is not None:
            limit = self.limits.rpm[call.model]
            message = f"{call.model} takes {limit} calls in {self.config.window_s:g} s"
            return _Plan(Refused(429, message, retry_after_s), fault="limit")
        rng = self._rng(call.model)
        rates = self.config.faults_by_model.get(call.model, self.faults)
        fault = self._forced.next_fault(call.prompt) or rates.draw(rng)
        latency_s = self._latency_s(call.model, rng)
        if fault is None:
            return _Plan(_answer(call), latency_s)
        if fault == "429":
            self.limits.withdraw(call.model, arrival.monotonic)
        return _faulty_plan(fault, call, latency_s)

    def _latency_s(self, model: str, rng: Random) -> float:
        if self.config.instant:
            return 0.0
        position = self._positions.get(model, zlib.crc32(model.encode("utf-8", "surrogatepass")))
        return fit_for(model, position).draw_s(rng) / self.config.speed

    def _rng(self, model: str) -> Random:
        # One per model, so that the draws of a model do not depend on calls to others.
        rng = self._rngs.get(model)
        if rng is None:
            seed = self.config.seed
            rng = self._rngs[model] = Random(None if seed is None else f"{seed}:{model}")
        return rng


def _faulty_plan(fault: str, call: Call, latency_s: float) -> _Plan:
    if fault == "hang":
        return _Plan(_answer(call), math.inf, fault)
    if fault in BROKEN:
        return _Plan(Broken(fault), latency_s, fault)
    status = int(fault)
    message = f"simulated fault {status}"
    if status in _MODEL_REFUSALS:
        return _Plan(Refused(status, message, FAULT_RETRY_AFTER_S), fault=fault)
    return _Plan(Refused(status, message), latency_s if status >= 500 else 0.0, fault)


def _answer(call: Call) -> Answered:
    return Answered(expected_answer(call.prompt), expected_usage(call.prompt, call.params))


def _status(outcome: Outcome) -> int | None:
    match outcome:
        case Refused(status=status):
            return status
        case Broken(how="reset"):
            return None
        case Broken(how="redirect"):
            return 307
    return 200


async def _wait(seconds: float) -> None:
    if seconds == math.inf:
        await asyncio.get_running_loop().create_future()
    elif seconds > 0:
        await asyncio.sleep(seconds)
