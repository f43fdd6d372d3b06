"""How to call models: the Protocol, and the adapters that come with llmqueue."""

from llmqueue.backend.load import load_backend
from llmqueue.backend.protocol import Backend, BatchBackend, Call

__all__ = ["Backend", "BatchBackend", "Call", "load_backend"]
