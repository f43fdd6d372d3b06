"""A clock for databases of tests and simulations: it shows what the session says, and the real time otherwise."""

from __future__ import annotations

from typing import LiteralString

# Takes the place of sql/claim/clock.sql. Only the owner of the schema can do that (tests/sql/test_roles.py).
INSTALL: LiteralString = """
create or replace function llmqueue_internal.clock() returns timestamptz language sql volatile as $$
    select coalesce(nullif(current_setting('llmqueue.simulated_now', true), '')::timestamptz, clock_timestamp())
$$
"""
SET: LiteralString = "select set_config('llmqueue.simulated_now', coalesce(%s::timestamptz::text, ''), false)"
