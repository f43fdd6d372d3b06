"""The SQL functions: their headers, their rights, and the findings of plpgsql_check."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from llmqueue.install.rights import FOR_EVERYBODY
from llmqueue.install.rights import FUNCTIONS as FUNCTIONS_OF
from tests.support.adoption import adopt, run
from tools.sql_pages import LABELS, SQL, function_paths, read_function

Connection = psycopg.Connection[tuple[object, ...]]

FILES = function_paths()
SQL_FILES = sorted(SQL.rglob("*.sql"))

API = {path.stem for path in FILES if path.parent.name == "api"}
# Whoever may insert tasks, or may read the views, need not have rights on what lies below them.
SECURITY_DEFINERS = {
    "wake_up": "runs on an INSERT by a role that has no rights on our schema",
    "count_backlog": "shows numbers of tasks to those who may read the views but not the tasks",
    "count_60s": "as count_backlog, over the ledger",
    "count_today": "as count_60s",
    "count_ready": "as count_backlog",
    "effective_rpm": "as count_60s, of the learned ceiling",
    "effective_concurrency": "as effective_rpm",
    **dict.fromkeys(API - {"oldest_program"}, "a role calls it, and reaches no table and no clock but through it (I7)"),
}

# What plpgsql_check says and we know better: (function, part of the message) -> why.
JUSTIFIED: dict[tuple[str, str], str] = {
    ("pick_by_priority", "should be STABLE"): "it locks rows",
    ("pick_by_age", "should be STABLE"): "it locks rows",
    ("pick_of_user", "should be STABLE"): "it locks rows",
}

# What can be different about a table, in as few tables as will do.
TABLES: dict[str, dict[str, Any]] = {
    "default": {},
    "uuid": {
        "definition": "create table public.tasks (id uuid primary key default gen_random_uuid(), prompt jsonb,"
        " answer jsonb, done boolean default false, priority bigint default 0, user_id integer)",
        "own_status": True,
        "status_column": "done",
        "queued_value": "false",
        "done_value": "true",
        "columns": {"priority": "priority", "user_id": "user_id"},
    },
    "text": {
        "definition": "create table public.tasks (id varchar(40) primary key, prompt varchar(9), answer varchar(9),"
        " params json, status varchar(12) default 'unsolved', attempts smallint default 0, model varchar(20))",
        "columns": {"params": "params", "attempts": "attempts", "model": "model"},
    },
}

# Condition on pg_proc: functions of both schemas.
OURS = "pronamespace::regnamespace::text in ('llmqueue', 'llmqueue_internal')"

KEYWORDS = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|CREATE|REPLACE|FUNCTION|RETURNS|LANGUAGE|BEGIN|END|DECLARE|RETURN|PERFORM|RAISE|LOOP|"
    r"FOREACH|WHERE|FROM|JOIN|LATERAL|ORDER|GROUP|LIMIT|WITH|VALUES|CASE|WHEN|THEN|ELSE|NULL|TABLE|INDEX|CONSTRAINT|VIEW)\b"
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_function_says_what_returns_locks_and_why(path: Path) -> None:
    function = read_function(path)

    assert all(function.header[label] for label in LABELS)


@pytest.mark.parametrize("path", SQL_FILES, ids=lambda path: path.name)
def test_sql_is_static_and_in_lower_case(path: Path) -> None:
    code = _without_comments_and_texts(path.read_text())

    assert not KEYWORDS.findall(code)
    assert not re.search(r"\bexecute\s+(?!function\b)", code), "dynamic SQL"
    assert "format(" not in code, "SQL made by format()"
    assert "now()" not in re.sub(r"default now\(\)|quarantined_at = now\(\)", "", code), (
        "one clock: read after the lock"
    )


def test_only_functions_with_a_reason_run_with_the_owners_rights(conn: Connection) -> None:
    query = f"""
        select proname, coalesce(array_to_string(proconfig, ';'), '') from pg_proc
         where {OURS} and prosecdef
    """
    found: dict[Any, Any] = dict(conn.execute(query).fetchall())  # type: ignore[arg-type]

    assert set(found) == set(SECURITY_DEFINERS)
    loose = [name for name, config in found.items() if "search_path=pg_catalog, pg_temp" not in str(config)]
    assert not loose, "SECURITY DEFINER without a fixed search_path"


def test_schema_llmqueue_holds_what_people_and_programs_call(conn: Connection) -> None:
    """One file each in sql/api, a comment that `\\df+` shows, and a role that may call it."""
    query = """
        select proname, obj_description(oid, 'pg_proc') from pg_proc where pronamespace = 'llmqueue'::regnamespace
    """
    found: dict[Any, Any] = dict(conn.execute(query).fetchall())  # type: ignore[arg-type]

    assert set(found) == API == set().union(*FUNCTIONS_OF.values())
    assert [name for name, comment in found.items() if not comment] == []


def test_only_one_function_reads_the_time(conn: Connection) -> None:
    """Whoever owns it owns the clock (I7). What only measures how long something took reads the server's own."""
    measures = {"claim", "claim_model"}
    query = f"""
        select proname from pg_proc
         where {OURS}
           and prosrc ~ '(clock_timestamp|statement_timestamp|transaction_timestamp|now|current_timestamp) *\\('
    """
    found = {str(name) for (name,) in conn.execute(query).fetchall()}

    assert found - measures == {"clock", "quarantine"}


def test_no_function_of_the_api_takes_the_time(conn: Connection) -> None:
    query = "select proname from pg_proc where pronamespace = 'llmqueue'::regnamespace and 'p_now' = any (proargnames)"

    assert conn.execute(query).fetchall() == []


def test_programs_call_the_api_alone() -> None:
    """A role that a program runs with has no right to name the internal schema."""
    source = Path(__file__).parents[2] / "src" / "llmqueue"
    knows = {"install", "forecast"}  # which make the schema, and replace its clock in databases of their own
    naming = re.compile(r"[ (]llmqueue_internal\.\w+\(")
    found = [
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if path.relative_to(source).parts[0] not in knows and naming.search(re.sub(r"#[^\n]*", "", path.read_text()))
    ]

    assert found == ["cli/model_status.py"], "that one is a docstring"


def test_functions_are_not_everybodys(conn: Connection) -> None:
    query = f"""
        select p.proname from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) x
         where p.{OURS} and x.grantee = 0
    """

    assert [name for (name,) in conn.execute(query).fetchall()] == list(FOR_EVERYBODY)


def test_no_function_has_two_signatures(conn: Connection) -> None:
    query = f"""
        select proname from pg_proc where {OURS} group by proname having count(*) > 1
    """

    assert conn.execute(query).fetchall() == []


def test_a_function_that_forbids_plans_forbids_jit(conn: Connection) -> None:
    """A forbidden node costs 1e10 where there is no other way, and that is what JIT goes by before PostgreSQL 18."""
    query = f"""
        select proname from pg_proc
         where {OURS} and array_to_string(proconfig, ' ') like '%enable_%=off%'
           and array_to_string(proconfig, ' ') not like '%jit=off%'
    """

    assert conn.execute(query).fetchall() == []


def test_nobody_else_may_use_the_schema(conn: Connection) -> None:
    query = """
        select has_schema_privilege(r.oid, 'llmqueue', 'usage')
            or has_schema_privilege(r.oid, 'llmqueue_internal', 'usage')
          from pg_roles r where r.rolname = 'pg_monitor'
    """

    assert conn.execute(query).fetchone() == (False,)


@pytest.mark.parametrize("table", TABLES)
def test_every_function_fits_the_table(database: str, table: str) -> None:
    _adopt(database, table)
    query = f"select pg_get_functiondef(oid) from pg_proc where {OURS}"

    with psycopg.connect(database) as conn:
        conn.execute("set check_function_bodies = on")  # off while `init` creates them in the order of their names
        for (definition,) in conn.execute(query).fetchall():
            conn.execute(str(definition).encode())


@pytest.mark.parametrize("table", TABLES)
def test_plpgsql_check_finds_nothing(database: str, table: str) -> None:
    _adopt(database, table)
    with psycopg.connect(database, autocommit=True) as conn:
        try:
            conn.execute("create extension plpgsql_check")
        except psycopg.errors.FeatureNotSupported as error:
            pytest.skip(
                f"no plpgsql_check here (Debian's postgresql-15-plpgsql-check has it): {error.diag.message_primary}"
            )

        found = _findings(conn)

    known = [tuple(line for line in found if line.startswith(f"{name}:") and part in line) for name, part in JUSTIFIED]
    rest = [line for line in found if not any(line in lines for lines in known)]
    assert not rest, "\n".join(rest)


def _adopt(dsn: str, table: str) -> None:
    options = dict(TABLES[table])
    if definition := options.pop("definition", None):
        run(dsn, str(definition))
    adopt(dsn, **options)


def _findings(conn: Connection) -> list[str]:
    # A trigger function is checked with the table of its trigger.
    query = f"""
        select format('%s: line %s: %s %s: %s %s', p.proname, c.lineno, c.level, c.sqlstate, c.message,
                      concat_ws(' ', c.detail, c.hint, c.query))
          from pg_proc p
          join pg_language l on l.oid = p.prolang and l.lanname = 'plpgsql'
          left join lateral (select t.tgrelid, t.tgnewtable from pg_trigger t where t.tgfoid = p.oid limit 1) t on true
         cross join lateral plpgsql_check_function_tb(
                   p.oid, coalesce(t.tgrelid, 0), newtable => t.tgnewtable, fatal_errors => false,
                   other_warnings => true, performance_warnings => true, extra_warnings => true,
                   security_warnings => true) c
         where p.{OURS}
         order by 1
    """
    return [str(line) for (line,) in conn.execute(query)]


def _without_comments_and_texts(text: str) -> str:
    return re.sub(r"'(?:[^']|'')*'", "''", re.sub(r"--[^\n]*", "", text))
