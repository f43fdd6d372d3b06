"""How to call models: the Protocol, and the adapters that come with llmqueue."""

from llmqueue.backend.load import load_backend
from llmqueue.backend.protocol import Backend, Call

__all__ = ["Backend", "Call", "load_backend"]
