"""Answers on disk: settlements that wait for an unreachable database, and their recovery by the next worker."""
