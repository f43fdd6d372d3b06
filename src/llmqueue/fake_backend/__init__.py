"""A simulated Models Backend with measured latencies, strict limits, faults on request, and a log of every call."""

from llmqueue.fake_backend.answers import Usage, expected_answer, expected_usage
from llmqueue.fake_backend.call_log import CallLog, LoggedCall, read_calls, worst_window
from llmqueue.fake_backend.config import SimulatorConfig
from llmqueue.fake_backend.faults import FaultRates
from llmqueue.fake_backend.latency import DEFAULT_MODELS
from llmqueue.fake_backend.serving import CannotListen, RunningBackend, running, serve

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
