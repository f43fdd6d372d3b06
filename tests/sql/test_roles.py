"""What each role may do with every object, and that the rights stand after everything that could lose them."""

from __future__ import annotations

import subprocess

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from llmqueue.errors import AdoptionRefused
from llmqueue.install.adopt import AdoptionSpec, plan
from llmqueue.install.rights import READER, ROLES, WORKER
from tests.support.adoption import adopt, rows, run, value
from tests.support.rights import (
    COLUMNS,
    EVERYBODYS,
    FUNCTIONS,
    HIDDEN_OF_ATTEMPT,
    INTERNAL_FUNCTIONS,
    KNOWN_OF_ATTEMPT,
    MAY_INSERT,
    ONLY_MACHINE_WRITES,
    PRIVILEGES,
    RELATIONS,
    WHOLE,
)
from tests.support.roles import member, stranger, with_roles
from tests.support.server import Server

OBJECTS = """
    select c.oid, c.relname::text, c.relkind::text from pg_class c
     where c.relkind in ('r', 'v', 'S')
       and (c.relnamespace = 'llmqueue'::regnamespace or c.oid = 'public.tasks'::regclass)
       and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i'
                          and d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass)
"""


@pytest.fixture
def granted(installed: str) -> str:
    return with_roles(installed)


def test_every_object_is_classified(granted: str) -> None:
    functions = {
        name for (name,) in rows(granted, "select proname from pg_proc where pronamespace = 'llmqueue'::regnamespace")
    }
    attempt = {name for (name,) in rows(granted, _columns_of("llmqueue.attempt"))}
    tasks = {name for (name,) in rows(granted, _columns_of("public.tasks"))}

    assert {name for _, name, _ in rows(granted, OBJECTS)} == RELATIONS
    assert functions == set().union(*FUNCTIONS.values())
    assert attempt == KNOWN_OF_ATTEMPT | HIDDEN_OF_ATTEMPT
    assert tasks == MAY_INSERT | ONLY_MACHINE_WRITES


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_what_is_listed_and_nothing_else_with_tables_and_views(granted: str, role: str) -> None:
    whole: set[tuple[str, str]] = set()
    partly: dict[tuple[str, str], set[str]] = {}
    with psycopg.connect(granted) as conn:
        for oid, name, kind in conn.execute(OBJECTS.encode()).fetchall():
            for privilege in PRIVILEGES[kind]:
                asked = "has_sequence_privilege" if kind == "S" else "has_table_privilege"
                if conn.execute(f"select {asked}(%s, %s::oid, %s)".encode(), (role, oid, privilege)).fetchone() == (
                    True,
                ):
                    whole.add((name, privilege))
                elif kind != "S" and privilege in {"SELECT", "INSERT", "UPDATE", "REFERENCES"}:
                    query = (
                        b"select attname::text from pg_attribute where attrelid = %s and attnum > 0"
                        b" and not attisdropped and has_column_privilege(%s, attrelid, attnum, %s)"
                    )
                    columns = {name for (name,) in conn.execute(query, (oid, role, privilege)).fetchall()}
                    if columns:
                        partly[name, privilege] = columns

    assert whole == WHOLE[role]
    assert partly == COLUMNS[role]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_execute_what_is_listed_and_nothing_else(granted: str, role: str) -> None:
    query = """
        select proname from pg_proc where pronamespace = %s::regnamespace and has_function_privilege(%s, oid, 'execute')
    """
    usage = "select has_schema_privilege(%s, %s, %s)"

    assert {name for (name,) in rows(granted, query, ("llmqueue", role))} == FUNCTIONS[role]
    internal = {name for (name,) in rows(granted, query, ("llmqueue_internal", role))}
    assert internal == INTERNAL_FUNCTIONS[role] | EVERYBODYS
    for schema, privilege in (("llmqueue", "create"), ("llmqueue_internal", "usage"), ("llmqueue_internal", "create")):
        assert value(granted, usage, (role, schema, privilege)) is False


def test_the_roles_are_no_logins_and_may_nothing_else(granted: str) -> None:
    found = rows(
        granted,
        "select rolname, rolcanlogin or rolsuper or rolcreaterole or rolcreatedb or rolbypassrls or rolreplication,"
        " exists (select from pg_auth_members m where m.member = r.oid) from pg_roles r where rolname = any (%s)",
        (list(ROLES),),
    )

    assert sorted(found) == sorted((name, False, False) for name in ROLES)


# --- granting -----------------------------------------------------------------------------------


def test_roles_are_granted_once_and_then_nothing_is_left_to_change(granted: str) -> None:
    assert adopt(granted, with_roles=True)[0].startswith("nothing to change")
    assert adopt(granted)[0].startswith("nothing to change")


def test_the_script_with_roles_leaves_init_nothing_to_change(server: Server, database: str) -> None:
    script = plan(database, AdoptionSpec(with_roles=True)).script()

    done = subprocess.run(
        [str(server.bin_path / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database],
        input=script,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert 'grant execute on function "llmqueue"."claim" to "llmqueue_worker"' in script
    assert plan(database, AdoptionSpec(with_roles=True)).steps == ()


def test_rights_that_an_upgrade_lost_come_back_with_a_plain_init(granted: str) -> None:
    run(
        granted,
        "drop view llmqueue.backlog cascade",
        "drop function llmqueue.heartbeat",
        "grant usage on schema llmqueue_internal to llmqueue_worker",
        "revoke select on llmqueue.model_config from llmqueue_reader",
        "grant select on llmqueue.attempt to llmqueue_worker",
        "grant execute on function llmqueue.claim to public",
    )

    adopt(granted)

    test_a_role_may_do_what_is_listed_and_nothing_else_with_tables_and_views(granted, READER)
    test_a_role_may_do_what_is_listed_and_nothing_else_with_tables_and_views(granted, WORKER)
    test_a_role_may_execute_what_is_listed_and_nothing_else(granted, WORKER)


def test_another_database_of_the_cluster_grants_nothing_unasked(granted: str, database: str) -> None:
    adopt(database)

    assert value(database, "select has_schema_privilege('llmqueue_worker', 'llmqueue', 'usage')") is False

    adopt(database, with_roles=True)

    assert value(database, "select has_schema_privilege('llmqueue_worker', 'llmqueue', 'usage')") is True
    assert value(granted, "select has_schema_privilege('llmqueue_worker', 'llmqueue', 'usage')") is True


def test_a_role_without_the_right_to_create_roles_is_told_what_an_administrator_runs(database: str) -> None:
    with stranger(database) as owner:
        run(database, f"alter database {value(database, 'select current_database()')} owner to {owner}")
        dsn = make_conninfo(database, user=owner)
        try:
            run(database, *(f"alter role {role} rename to {role}_away" for role in _there(database)))
            with pytest.raises(AdoptionRefused) as refusal:
                adopt(dsn, with_roles=True)
        finally:
            run(database, *(f"alter role {name}_away rename to {name}" for name in _away(database)))
        run(database, *(f"create role {role} nologin" for role in set(ROLES) - _there(database)))

        adopt(dsn, with_roles=True)

        assert str(refusal.value) == (
            f"cannot adopt public.tasks: the role {owner} may not create roles. Let an administrator run: "
            "create role llmqueue_worker nologin; create role llmqueue_producer nologin; "
            "create role llmqueue_operator nologin; create role llmqueue_reader nologin; Then run init --roles again."
        )
        assert value(database, "select has_function_privilege('llmqueue_worker', 'llmqueue.leave(uuid)', 'execute')")
        run(database, f"alter database {value(database, 'select current_database()')} owner to postgres")


def test_a_role_that_rights_cannot_hold_is_refused(granted: str, database: str) -> None:
    run(granted, "alter role llmqueue_reader createdb")
    try:
        with pytest.raises(AdoptionRefused, match=r"alter role llmqueue_reader nosuperuser"):
            adopt(database, with_roles=True)
    finally:
        run(granted, "alter role llmqueue_reader nocreatedb")


def test_a_schema_where_everybody_may_plant_functions_is_refused(database: str) -> None:
    run(database, "grant create on schema public to public")

    with pytest.raises(AdoptionRefused, match="revoke create on schema public from public"):
        adopt(database, with_roles=True)


def test_triggers_by_everybody_are_refused(installed: str) -> None:
    run(installed, "grant trigger on tasks to public")

    with pytest.raises(AdoptionRefused, match=r"revoke trigger on public\.tasks from public"):
        adopt(installed, with_roles=True)


def test_a_schema_of_the_table_in_which_everybody_may_create_is_refused(database: str) -> None:
    columns = "id bigint primary key, prompt text, answer text, status text"
    run(database, "create schema app", f"create table app.jobs ({columns})")
    adopt(database, table="app.jobs")
    run(database, "grant create on schema app to public")

    with pytest.raises(AdoptionRefused, match="revoke create on schema app from public"):
        adopt(database, with_roles=True)


def test_the_owners_path_is_that_of_the_first_init_whoever_runs_the_next(database: str) -> None:
    run(database, "create schema ext")
    adopt(make_conninfo(database, options="-c search_path=ext,public"))
    path = "select llmqueue_internal.owners_path()"
    assert value(database, path) == "pg_catalog, ext, public, pg_temp"

    run(database, "drop view llmqueue.backlog cascade")  # so that there is something to do, rights too
    adopt(database)

    assert value(database, path) == "pg_catalog, ext, public, pg_temp"


# --- the owner's triggers --------------------------------------------------------------------------------------


def test_an_owners_trigger_finds_the_owners_objects_whatever_path_the_worker_sets(granted: str) -> None:
    run(
        granted,
        "create table public.notes (task bigint, by text)",
        "create function public.note() returns trigger language plpgsql as"
        " $$ begin insert into notes values (new.id, current_user); return new; end $$",
        "create trigger note before update on tasks for each row execute function public.note()",
        "create schema evil",
        "create table evil.notes (task bigint, by text)",
        "grant usage on schema evil to public",
        "grant all on evil.notes to public",
        "insert into llmqueue.model_config (model, rpm) values ('m', 600)",
        "insert into tasks (prompt) values ('why?')",
    )
    with member(granted, WORKER) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("create temp table notes (task bigint, by text)")
        conn.execute("set search_path = evil, pg_temp, public")
        conn.execute("select llmqueue.register(%s, 'w', '1', null, 20, 0.5)", (WORKER_ID,))

        claimed = conn.execute(
            "select (task).task_id from llmqueue.claim(%s, array['m'], 1) where (task).task_id is not null",
            (WORKER_ID,),
        ).fetchall()

        assert conn.execute("show search_path").fetchone() == ("evil, pg_temp, public",)
        assert conn.execute("select count(*) from pg_temp.notes").fetchone() == (0,)
    assert rows(granted, "select task, by from public.notes") == [(claimed[0][0], "postgres")]
    assert value(granted, "select count(*) from evil.notes") == 0
    assert value(granted, "select count(*) from llmqueue.quarantine") == 0


CLOCK_ATTACKS = (
    "select llmqueue_internal.clock()",
    "create or replace function llmqueue_internal.clock() returns timestamptz language sql as 'select now()'",
    "alter function llmqueue_internal.clock() rename to clock_of_theirs",
    "alter function llmqueue_internal.clock() set timezone = 'UTC'",
    "drop function llmqueue_internal.clock()",
    "create function llmqueue.clock() returns timestamptz language sql as 'select now()'",
    "create function pg_catalog.clock_timestamp(int default 1) returns timestamptz language sql as 'select now()'",
    "alter schema llmqueue_internal rename to theirs",
    "update pg_catalog.pg_proc set prosrc = 'select now()' where proname = 'clock'",
)


@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_name_or_replace_the_clock(granted: str, role: str) -> None:
    query = """
        select pg_get_functiondef(oid) from pg_proc
         where pronamespace = 'llmqueue_internal'::regnamespace order by oid
    """
    before = rows(granted, query)

    with member(granted, role) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        for statement in CLOCK_ATTACKS:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                conn.execute(statement.encode())

    assert rows(granted, query) == before


def test_the_setting_of_a_simulated_clock_changes_nothing_in_production(granted: str) -> None:
    run(granted, "insert into llmqueue.model_config (model, rpm) values ('m', 600)")
    with member(granted, WORKER) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("select set_config('llmqueue.simulated_now', '2040-01-01 12:00:00+00', false)")
        conn.execute("select llmqueue.register(%s, 'w', '1', null, 20, 0.5)", (WORKER_ID,))

    beat_at = value(granted, "select heartbeat_at <= clock_timestamp() from llmqueue.worker")
    assert beat_at is True


def test_a_worker_cannot_touch_the_ledger(granted: str) -> None:
    refused = (
        "select llmqueue_internal.fill_ledger('m')",
        "delete from llmqueue.ledger_cell",
        "insert into llmqueue.ledger_grant (model, cell, calls, level, granted_at) values ('m', 1, -1, 0, now())",
        "update llmqueue.limiter set guard_s = 0",
        "update llmqueue.model_config set rpm = 1000000",
        "select prompt from tasks",
        "select prompt_text from llmqueue.task",
        "select nextval('llmqueue.fence_seq')",
        "create function llmqueue.mine() returns int language sql as 'select 1'",
    )
    with member(granted, WORKER) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        for statement in refused:
            with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.UndefinedFunction)):
                conn.execute(statement.encode())


WORKER_ID = "00000000-0000-4000-8000-000000000001"


def _columns_of(table: str) -> str:
    return (
        f"select attname::text from pg_attribute where attrelid = '{table}'::regclass"
        " and attnum > 0 and not attisdropped"
    )


def _there(dsn: str) -> set[str]:
    return {
        name for (name,) in rows(dsn, "select rolname::text from pg_roles where rolname = any (%s)", (list(ROLES),))
    }


def _away(dsn: str) -> set[str]:
    query = "select replace(rolname, '_away', '') from pg_roles where rolname like 'llmqueue%%_away'"
    return {name for (name,) in rows(dsn, query.replace("%%", "%"))}
