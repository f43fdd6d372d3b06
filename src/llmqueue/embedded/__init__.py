"""The embedded PostgreSQL: a private server under LLMQUEUE_HOME."""

from llmqueue.embedded.server import PROGRAMS, leave, start

__all__ = ["PROGRAMS", "leave", "start"]
