"""What is simulated. Values only, checked where they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmqueue.fake_backend.providers import KINDS

HOT = 100  # from this priority on a task is hot
MOST_TASKS = 500_000  # of one lane, in the table: ten minutes' work for the machine that simulates
# Of a call that is not described otherwise: the means of the Azure trace (1,155 in, 211 out), rounded.
INPUT_TOKENS = 1150
OUTPUT_TOKENS = 210


@dataclass(frozen=True, slots=True)
class Model:
    """A row of llmqueue.model_config; columns that are not named have their defaults."""

    name: str
    rpm: int
    columns: Mapping[str, object] = field(default_factory=dict)  # beside model and rpm

    @property
    def tpm(self) -> int | None:
        tpm = self.columns.get("tpm")
        return int(str(tpm)) if tpm is not None else None

    @property
    def is_enabled(self) -> bool:
        return self.columns.get("enabled") is not False and self.rpm > 0


@dataclass(frozen=True, slots=True)
class PoolMember:
    """A row of llmqueue.pool_member."""

    pool: str
    model: str
    weight: float


@dataclass(frozen=True, slots=True)
class Lane:
    """Tasks that wait from the start, in a model's lane, a pool's, or the default pool's ('')."""

    lane: str
    tasks: int
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Models, backlog, hot arrivals and workers."""

    models: tuple[Model, ...]
    backlog: tuple[Lane, ...] = ()
    pools: tuple[PoolMember, ...] = ()
    hot_per_minute: float = 0.0  # on average: a Poisson process, into the default pool
    workers: int = 1
    slots: int = 1000  # of each worker
    provider: str = "sliding"
    for_s: float = 600.0
    guard_s: float = 0.5
    input_tokens: int = INPUT_TOKENS
    output_tokens: int = OUTPUT_TOKENS
    seed: int | None = None

    @classmethod
    def empty(cls, guard_s: float) -> Scenario:
        """Nothing yet, with the usual values."""
        return cls(models=(), guard_s=guard_s)

    def checked(self) -> Scenario:
        """Returns it. Raises ValueError where it makes no sense."""
        if not self.models:
            raise ValueError("there is no model: name one with --model NAME=RPM")
        if self.provider not in KINDS:
            raise ValueError(f"provider must be one of {', '.join(KINDS)}, not {self.provider!r}")
        if not self.backlog and not self.hot_per_minute:
            raise ValueError("there is nothing to do: no backlog (--tasks) and no hot tasks (--hot)")
        return self

    @property
    def tasks(self) -> int:
        """All that wait at the start."""
        return sum(lane.tasks for lane in self.backlog)

    def takers(self, lane: str) -> list[Model]:
        """The models that may take tasks of that lane."""
        members = {member.model for member in self.pools if member.pool == lane}
        return [
            model
            for model in self.models
            if model.is_enabled
            and (model.name == lane or model.name in members or (lane == "" and model.columns.get("weight") != 0))
        ]


def affordable(scenario: Scenario, lane: Lane) -> int:
    """How many tasks of the lane are simulated: no more than can be called in that time, the rest is extrapolated."""
    minutes = scenario.for_s / 60 + 2
    callable_in_time = int(sum(model.rpm for model in scenario.takers(lane.lane)) * minutes) + 1
    return min(lane.tasks, callable_in_time, MOST_TASKS)
