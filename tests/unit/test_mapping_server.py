"""What `init` says of servers that are not at hand in the tests."""

from __future__ import annotations

from dataclasses import replace

from llmqueue.install.server import Server, judge

GOOD = Server(
    major=18,
    version="18.4",
    is_standby=False,
    is_read_only=False,
    database="app",
    role="owner",
    may_create_schema=True,
    has_schema=False,
    schema_owner=None,
)


def test_nothing_speaks_against_a_good_server() -> None:
    assert judge(GOOD) == []
    assert (
        judge(replace(GOOD, major=15, version="15.0", has_schema=True, schema_owner="owner", may_create_schema=False))
        == []
    )


def test_an_old_server_a_standby_and_a_foreign_schema_are_refused_with_the_remedy() -> None:
    assert judge(replace(GOOD, major=14, version="14.12")) == [
        "the server is PostgreSQL 14.12: llmqueue needs 15 or newer. Upgrade the server."
    ]
    assert judge(replace(GOOD, is_standby=True, is_read_only=True)) == [
        "the server is a standby, where nothing can be written. Connect to the primary."
    ]
    (problem,) = judge(replace(GOOD, has_schema=True, schema_owner="App Owner"))
    assert problem == (
        'the schema llmqueue belongs to the role "App Owner", and this session\'s role is owner. '
        'Connect as "App Owner", or add ?options=-crole%3DApp%20Owner to the URL of a member of it.'
    )
