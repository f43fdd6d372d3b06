"""The main use on real input: 8,792 prompts in an existing table, two workers, ten models."""

from __future__ import annotations

import gzip
import json
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import psycopg
import pytest

from llmqueue.fake_backend import DEFAULT_MODELS, expected_answer
from llmqueue.fake_backend.call_log import LoggedCall, read_calls, worst_window
from tests.support import processes

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "prompts_gsm8k.jsonl.gz"
# 20 to 600 calls a minute, 1,800 together
LIMITS = dict(zip(sorted(str(m) for m in DEFAULT_MODELS), (20, 40, 60, 80, 100, 120, 180, 240, 360, 600), strict=True))

TABLE = """
create schema "Support Desk";
create type "Support Desk".state as enum ('new', 'in work', 'answered', 'broken', 'dropped', 'later');
create table "Support Desk"."Questions" (
    "Key" uuid primary key default gen_random_uuid(),
    source text not null unique,
    "Question" text not null,
    "Reply" varchar,
    state "Support Desk".state not null default 'new',
    updated_at timestamptz
);
create table "Support Desk".note (
    id bigint generated always as identity primary key,
    question uuid not null references "Support Desk"."Questions" ("Key"),
    note text not null
);
create function "Support Desk".touch() returns trigger language plpgsql as
    $$ begin new.updated_at := clock_timestamp(); return new; end $$;
create trigger touch before update on "Support Desk"."Questions" for each row execute function "Support Desk".touch();
"""
INIT = [
    "init", "--table", '"Support Desk"."Questions"', "--id-column", "Key", "--prompt-column", "Question",
    "--answer-column", "Reply", "--status-column", "state", "--queued-value", "new", "--done-value", "answered",
    "--word", "running=in work", "--word", "failed=broken", "--word", "cancelled=dropped", "--word", "delayed=later",
]  # fmt: skip


def _fill(conn: psycopg.Connection) -> None:
    conn.execute(TABLE)
    with gzip.open(DATA, "rt", encoding="utf-8", newline="\n") as lines:
        rows = [json.loads(line) for line in lines]
    with conn.cursor().copy('copy "Support Desk"."Questions" (source, "Question", "Reply", state) from stdin') as copy:
        for number, row in enumerate(rows):
            is_solved = number % 5 == 0
            copy.write_row(
                (row["id"], row["prompt"], "from before" if is_solved else None, "answered" if is_solved else "new")
            )
    conn.execute(
        """insert into "Support Desk".note (question, note)
           select "Key", 'n' from "Support Desk"."Questions" limit 500"""
    )
    conn.execute("analyze")


@pytest.mark.slow
def test_every_gsm8k_prompt_is_solved_once_within_the_limits(database: str, tmp_path: Path) -> None:
    if not DATA.exists():
        pytest.skip("needs shared/data beside the project")
    with psycopg.connect(database, autocommit=True) as conn:
        _fill(conn)
        before = conn.execute("""select "Key", xmin::text, "Reply", updated_at from "Support Desk"."Questions"
                                 where state = 'answered' order by 1""").fetchall()
        env = processes.environment(DATABASE_URL=database)
        initialised = processes.run(*INIT, env=env)
        assert initialised.returncode == 0, initialised.stderr
        for model, rpm in LIMITS.items():
            conn.execute("insert into llmqueue.model_config (model, rpm) values (%s, %s)", (model, rpm))

        limits = [f"--limit={model}={rpm}" for model, rpm in LIMITS.items()]
        with processes.backend(tmp_path, "--speed", "4", "--seed", "1", *limits) as url:
            env = processes.environment(DATABASE_URL=database, BACKEND_URL=url)
            with processes.workers(tmp_path, 2, "--drain", env=env) as started:
                assert [process.wait(900) for process in started] == [0, 0], [p.output[-2000:] for p in started]

        calls = read_calls(tmp_path / "calls.jsonl")
        rows = conn.execute("""select "Key", "Question", "Reply", state::text, attempts from "Support Desk"."Questions"
                               where "Reply" is distinct from 'from before'""").fetchall()
        after = conn.execute("""select "Key", xmin::text, "Reply", updated_at from "Support Desk"."Questions"
                                where "Reply" = 'from before' order by 1""").fetchall()
    _report(calls)
    assert after == before, "a row that was solved before was touched"
    assert len(rows) == 8792 - len(before)
    wrong = [key for key, prompt, reply, state, _ in rows if state != "answered" or reply != expected_answer(prompt)]
    assert wrong == []
    assert {attempts for *_, attempts in rows} == {1}
    assert Counter(call.key for call in calls) == {f"{key}:0": 1 for key, *_ in rows}
    assert {call.status for call in calls} == {200}
    for model, rpm in LIMITS.items():
        assert worst_window([call.arrived_monotonic for call in calls if call.model == model]) <= rpm
    assert use_with_backlog(calls) >= 0.97


def use_with_backlog(calls: list[LoggedCall]) -> float:
    """The mean over all full windows of 60 s, one ending each second, of calls over quota, while there is backlog.

    A count over the whole run would flatter: the first window's quota is spent faster than it comes. The backlog ends
    when the first model gets its last call.
    """
    by_model: dict[str, list[float]] = defaultdict(list)
    for call in calls:
        by_model[call.model].append(call.arrived_monotonic)
    start = min(min(times) for times in by_model.values())
    end = min(max(times) for times in by_model.values())
    ends = [start + 60 + n for n in range(int(end - start) - 59)]
    quota = sum(LIMITS.values())
    return statistics.mean(
        sum(sum(1 for t in times if at - 60 < t <= at) for times in by_model.values()) / quota for at in ends
    )


def _report(calls: list[LoggedCall]) -> None:
    times = [call.arrived_monotonic for call in calls]
    print(f"\n{len(calls)} calls in {max(times) - min(times):.1f} s, use with backlog {use_with_backlog(calls):.1%}")
    for model, rpm in LIMITS.items():
        mine = [call.arrived_monotonic for call in calls if call.model == model]
        latency = statistics.median((c.finished_at or 0) - c.arrived_at for c in calls if c.model == model)
        worst = worst_window(mine)
        print(f"{model:26} rpm {rpm:4}  worst window {worst:4}  calls {len(mine):5}  p50 latency {latency:.2f} s")
