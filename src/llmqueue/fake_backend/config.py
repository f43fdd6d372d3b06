"""The configuration of a simulated Models Backend."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from llmqueue.fake_backend.faults import FaultRates
from llmqueue.fake_backend.latency import DEFAULT_MODELS
from llmqueue.fake_backend.providers import KINDS


@dataclass(frozen=True, slots=True)
class SimulatorConfig:
    """The models, their speed and their faults. Raises ValueError for values that make no sense."""

    models: tuple[str, ...] = DEFAULT_MODELS
    any_model: bool = False  # serves names outside `models` too, instead of replying 404
    speed: float = 1.0  # divides latencies, but not limits
    instant: bool = False  # no latency at all
    rpm: Mapping[str, int | None] = field(default_factory=dict)  # None or missing: no limit
    window_s: float = 60.0  # of the limits; shorter in tests
    provider: str = "sliding"  # the emulator that judges the limits, see providers.py
    faults: FaultRates = field(default_factory=FaultRates)
    faults_by_model: Mapping[str, FaultRates] = field(default_factory=dict)  # instead of `faults`
    seed: int | None = None  # gives the same draws for the same order of calls to a model
    log_path: Path | None = None
    log_size: int = 100_000  # calls kept in memory

    def __post_init__(self) -> None:
        """Checks the conditions that types cannot express."""
        if not (self.speed > 0 and math.isfinite(self.speed)):
            raise ValueError(f"speed must be above 0, not {self.speed:g}")
        if self.provider not in KINDS:
            raise ValueError(f"provider must be one of {', '.join(KINDS)}, not {self.provider!r}")
        if not self.models and not self.any_model:
            raise ValueError("at least one model is needed")
        if len(set(self.models)) < len(self.models):
            raise ValueError("a model is named twice")
        for model, rpm in self.rpm.items():
            if rpm is not None and rpm < 0:
                raise ValueError(f"the limit of {model} must be 0 or more, not {rpm}")
            if not self.serves(model):
                raise ValueError(f"a limit is set for {model}, which is not among the models")

    def serves(self, model: str) -> bool:
        """Returns whether calls to that model are answered."""
        return self.any_model or model in self.models
