"""Where simulated calls arrive: a provider per model that judges them, and the latency of real calls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from random import Random

from llmqueue.fake_backend.latency import LatencyFit, fit_for
from llmqueue.fake_backend.providers import Provider
from llmqueue.forecast.scenario import Model, Scenario
from llmqueue.types import Answer, Reply, Throttled, TransientError, Usage

REFUSED_AFTER_S = 0.02  # a 429 is quick
_USUAL_MAX_OUTPUT = 1024


@dataclass(slots=True)
class Calls:
    """What arrived at one model."""

    arrivals: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)  # of each, as its provider counts them
    refused: int = 0
    answered: int = 0


class Endpoint:
    """One model at its provider."""

    def __init__(self, model: Model, fit: LatencyFit, scenario: Scenario, rng: Random) -> None:
        self.calls = Calls()
        self._usage = Usage(scenario.input_tokens, scenario.output_tokens)
        self._tokens = counted_tokens(model, scenario.input_tokens, scenario.output_tokens)
        self._fit = fit
        self._rng = rng
        # Our clock's minute and theirs have nothing to do with each other.
        phase_s = rng.uniform(0, 60)
        self._provider = Provider(scenario.provider, model.rpm, token_limit=model.tpm, phase_s=phase_s)

    def call(self, at_s: float, timeout_s: float) -> tuple[Reply, float]:
        """Judges a call that arrives now. Returns the reply and the seconds until it is there."""
        self.calls.arrivals.append(at_s)
        self.calls.tokens.append(self._tokens)
        wait_s = self._provider.admit(at_s, self._tokens)
        if wait_s is not None:
            self.calls.refused += 1
            return Throttled("quota", "http_429", "over the limit", float(max(1, math.ceil(wait_s)))), REFUSED_AFTER_S
        latency_s = self._fit.draw_s(self._rng)
        if latency_s >= timeout_s:
            return TransientError("timeout", f"no reply within {timeout_s:g} s"), timeout_s
        self.calls.answered += 1
        return Answer("", self._usage), latency_s


def open_endpoints(scenario: Scenario) -> dict[str, Endpoint]:
    """Each model with draws of its own: they do not depend on how calls to the others fall in between."""
    endpoints = {}
    for position, model in enumerate(scenario.models):
        seed = None if scenario.seed is None else f"{scenario.seed}:{model.name}"
        endpoints[model.name] = Endpoint(model, fit_for(model.name, position), scenario, Random(seed))
    return endpoints


def counted_tokens(model: Model, input_tokens: int, output_tokens: int) -> int:
    """What a provider of the model's `token_mode` counts for one call; 0 where the model has no limit on tokens."""
    if model.tpm is None:
        return 0
    most = model.columns.get("max_output")
    max_output = int(str(most)) if most is not None else min(_USUAL_MAX_OUTPUT, model.tpm // 4)
    match model.columns.get("token_mode", "sum"):
        case "input" | "split":
            return input_tokens
        case "max":
            return max(input_tokens, max_output)
        case "actual":
            return input_tokens + output_tokens
    return input_tokens + max_output
