"""The embedded PostgreSQL: a server of its own under LLMQUEUE_HOME. Start at server.py."""
