"""A simulated Models Backend: real latencies, strict limits, faults on request, and a log of every call."""

from llmqueue.simulator.answers import Usage, expected_answer, expected_usage
from llmqueue.simulator.call_log import CallLog, LoggedCall, read_calls, worst_window
from llmqueue.simulator.config import SimulatorConfig
from llmqueue.simulator.faults import FaultRates
from llmqueue.simulator.latency import DEFAULT_MODELS
from llmqueue.simulator.serving import CannotListen, RunningBackend, running, serve

__all__ = [
    "DEFAULT_MODELS",
    "CallLog",
    "CannotListen",
    "FaultRates",
    "LoggedCall",
    "RunningBackend",
    "SimulatorConfig",
    "Usage",
    "expected_answer",
    "expected_usage",
    "read_calls",
    "running",
    "serve",
    "worst_window",
]
