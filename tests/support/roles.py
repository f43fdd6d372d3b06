"""Logins that are members of llmqueue's roles, as an administrator creates them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.support.adoption import adopt

_NUMBER = count(1)


@contextmanager
def member(dsn: str, role: str) -> Iterator[str]:
    """Creates a login in the role and yields its DSN. Drops it afterwards, because roles belong to the cluster."""
    login = sql.Identifier(name := f"login_{next(_NUMBER)}")
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login in role {}").format(login, sql.Identifier(role)))
        try:
            yield make_conninfo(dsn, user=name)
        finally:
            conn.execute(sql.SQL("drop owned by {}").format(login))
            conn.execute(sql.SQL("drop role {}").format(login))


@contextmanager
def stranger(dsn: str, attributes: str = "login") -> Iterator[str]:
    """Creates a login without any membership and yields its name."""
    name = f"stranger_{next(_NUMBER)}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} {}").format(sql.Identifier(name), sql.SQL(attributes)))
        try:
            yield name
        finally:
            conn.execute(sql.SQL("drop owned by {}").format(sql.Identifier(name)))
            conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def with_roles(dsn: str) -> str:
    """Grants the roles their rights in this database."""
    adopt(dsn, with_roles=True)
    return dsn
