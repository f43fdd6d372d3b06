"""An executor whose ends are collected instead of flushed."""

from __future__ import annotations

import random
from typing import cast

from llmqueue.backend.health import BackendHealth
from llmqueue.backend.protocol import Backend
from llmqueue.types import Settlement
from llmqueue.worker.batching import Batching
from llmqueue.worker.executor import Executor, TopUp
from llmqueue.worker.flusher import Flusher
from llmqueue.worker.in_flight import InFlight
from llmqueue.worker.planner import Planner


class Ends(list[Settlement]):
    """Stands for the flusher."""

    def put(self, settlement: Settlement) -> None:
        self.append(settlement)


async def no_top_up(fence: int, input_charge: int) -> bool:
    raise AssertionError("nothing is charged by tokens here")


def executor_of(backend: Backend, health: BackendHealth, ends: Ends, top_up: TopUp = no_top_up) -> Executor:
    batching = Batching(can_batch=health.can_batch)
    in_flight = InFlight(10, Planner(random.Random(1)), batching, health._wake)
    return Executor(backend, health, batching, in_flight, cast(Flusher, ends), top_up, random.Random(1))
