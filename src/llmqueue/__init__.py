"""llmqueue runs large numbers of LLM tasks from a Postgres table, as fast as the quotas allow and never faster."""

__version__ = "0.1.0"
