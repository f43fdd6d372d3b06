"""The embedded PostgreSQL: a server of one's own under LLMQUEUE_HOME."""

from llmqueue.embedded.server import PROGRAMS, leave, start

__all__ = ["PROGRAMS", "leave", "start"]
