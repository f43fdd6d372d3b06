from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import LiteralString

import psycopg

from llmqueue.install.adopt import AdoptionSpec, install
from tests.support.cli import run_cli


def fetch(dsn: str, query: LiteralString) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(query).fetchall()


def execute(dsn: str, *statements: LiteralString) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement)


def test_good_lines_are_in_and_bad_ones_are_named(installed: str) -> None:
    lines = b'"first"\n""\n{"prompt":"last","priority":100,"params":{"temperature":0}}\n"a\\ud800"\n"\xff"\n'

    done = run_cli(installed, "add", "--model", "m", "--user", "u", stdin=lines)

    assert done.code == 1
    assert re.fullmatch(r"added 2 tasks in \d+\.\d s \([\d,]+ rows/s\), 3 bad lines\n", done.out)
    assert done.err.splitlines() == [
        "line 2: prompt is empty",
        "line 4: prompt holds a lone surrogate or a byte that is not UTF-8",
        "line 5: not UTF-8 text",
    ]
    assert fetch(installed, "select prompt, status, model, priority, user_id, params from tasks order by id") == [
        ("first", "unsolved", "m", 0, "u", None),
        ("last", "unsolved", "m", 100, "u", {"temperature": 0}),
    ]


def test_all_good_is_exit_code_0(installed: str) -> None:
    done = run_cli(installed, "add", "--json", stdin=b'"a"\n"b"\n')

    summary = json.loads(done.out)
    assert (done.code, done.err, summary["added"], summary["bad"]) == (0, "", 2, 0)


def test_only_the_first_bad_lines_are_shown_and_a_file_keeps_all(installed: str, tmp_path: Path) -> None:
    errors = tmp_path / "bad.txt"

    done = run_cli(installed, "add", "--errors", str(errors), stdin=b'""\n' * 30 + b'"x"\n')

    assert done.code == 1
    assert done.err.splitlines()[19:] == ["line 20: prompt is empty", f"… and 10 more bad lines (all are in {errors})"]
    assert errors.read_text().splitlines()[-1] == "30\tprompt is empty"


def test_owners_trigger_that_raises_names_its_line_and_keeps_the_others(installed: str) -> None:
    execute(
        installed,
        "create function refuse() returns trigger language plpgsql as "
        "$$ begin if new.prompt like '%bad%' then raise 'no % here', new.prompt; end if; return new; end $$",
        "create trigger refuse before insert on tasks for each row execute function refuse()",
    )
    lines = [f'"{"bad" if i in {7, 700} else "good"} {i}"' for i in range(1, 1001)]

    done = run_cli(installed, "add", stdin="\n".join(lines).encode())

    assert done.code == 1
    assert set(done.err.splitlines()) == {"line 7: no bad 7 here", "line 700: no bad 700 here"}
    assert fetch(installed, "select count(*) from tasks") == [(998,)]


def test_table_that_takes_no_row_stops_the_run(installed: str) -> None:
    execute(installed, "alter table tasks add column origin text not null")

    done = run_cli(installed, "add", stdin=b'"x"\n' * 1000)

    assert done.code == 1
    assert done.err.splitlines()[-2:] == [
        "stopped: added 0 tasks, nothing is in",
        (
            "llmqueue: stopped at line 100: none of the first 100 rows could be written to public.tasks: "
            'null value in column "origin" of relation "tasks" violates not-null constraint'
        ),
    ]


def test_file_added_twice_adds_nothing_the_second_time(installed: str, tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(f'{{"id":{1000 + i % 50},"prompt":"p"}}\n' for i in range(60)))

    first, second = run_cli(installed, "add", str(file)), run_cli(installed, "add", str(file))

    assert (first.code, second.code) == (1, 1)
    assert first.err.splitlines()[0] == 'line 51: the id "1000" exists already'
    assert json.loads(run_cli(installed, "add", str(file), "--json").out)["bad"] == 60
    assert fetch(installed, "select count(*) from tasks") == [(50,)]


def test_id_of_the_wrong_type_is_a_bad_line(installed: str) -> None:
    done = run_cli(installed, "add", stdin=b'{"id":"abc","prompt":"x"}\n{"id":7,"prompt":"y"}\n')

    assert done.err == 'line 1: invalid input syntax for type bigint: "abc"\n'
    assert fetch(installed, "select id from tasks") == [(7,)]


def test_long_and_unusual_prompts_arrive_unchanged(installed: str) -> None:
    prompts = ["x" * 150_000, "🦊" * 500, "\u202e\u05e9\u05dc\u05d5\u05dd", "a\u2028b\tc\\N\nd\\."]

    run_cli(installed, "add", stdin="\n".join(json.dumps(p, ensure_ascii=False) for p in prompts).encode())

    assert [prompt for (prompt,) in fetch(installed, "select prompt from tasks order by id")] == prompts


def test_csv_and_gzip_files(installed: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,model,priority\n"two\nlines",m,5\n')
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'"packed"\n'))

    assert run_cli(installed, "add", str(tmp_path / "a.csv")).code == 0
    assert run_cli(installed, "add", str(tmp_path / "b.jsonl.gz")).code == 0

    assert fetch(installed, "select prompt, model, priority from tasks order by id") == [
        ("two\nlines", "m", 5),
        ("packed", None, 0),
    ]


def test_adopted_table_with_other_names_words_and_a_text_key(database: str) -> None:
    execute(
        database,
        'create schema "My"',
        'create table "My"."Jobs" ("Key" text primary key, "Text" jsonb not null, "Out" text, "State" text)',
    )
    install(database, AdoptionSpec(
        table='"My"."Jobs"', id_column='"Key"', prompt_column='"Text"', answer_column='"Out"', status_column='"State"',
        queued_value="todo",
    ))  # fmt: skip

    done = run_cli(database, "add", stdin=b'{"id":"a","prompt":[{"role":"user","content":"hi"}]}\n"no id"\n')

    assert done.err == 'line 2: has no "id", and the key of the table has no default\n'
    assert fetch(database, 'select "Key", "Text", "State" from "My"."Jobs"') == [
        ("a", [{"role": "user", "content": "hi"}], "todo")
    ]


def test_own_status_writes_the_owners_queued_value(database: str) -> None:
    execute(
        database,
        "create table tasks (id uuid primary key default gen_random_uuid(), prompt text, answer text, done boolean)",
    )
    install(database, AdoptionSpec(status_column="done", queued_value="false", done_value="true", own_status=True))

    assert run_cli(database, "add", stdin=b'"x"\n').code == 0

    assert fetch(database, "select prompt, done, llmqueue_status from tasks") == [("x", False, None)]
    assert fetch(database, "select is_ready from llmqueue.task") == [(True,)]


def test_wrong_usage_is_exit_code_2(installed: str, tmp_path: Path) -> None:
    missing = tmp_path / "nope.jsonl"
    (tmp_path / "head.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.gz").write_bytes(b"no gzip")

    assert (
        run_cli(installed, "add", str(missing)).err == f"llmqueue: cannot read {missing}: No such file or directory\n"
    )
    assert run_cli(installed, "add", str(missing)).code == 2
    assert run_cli(installed, "add", str(tmp_path / "head.csv")).code == 2
    assert run_cli(installed, "add", str(tmp_path / "broken.gz")).code == 2
    assert run_cli(installed, "add", "--format", "xml").err == "llmqueue: --format must be jsonl or csv (got 'xml')\n"
