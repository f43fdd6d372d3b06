"""Breaks one of the lines that the promises rest on, in a copy of the repository, and sees that a test turns red.

    python -m tools.mutate [--pg 18] [part of a name ...]

Exit code 1 if a mutation survives, or if the named tests are red without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
COPIED: Final = ("pyproject.toml", "sql", "src", "tests", "tools", "docs")
LIMITER: Final = ("tests/sql/test_limiter.py", "tests/properties/test_limiter.py")
FLEET: Final = "tests/concurrency/test_fleet.py"
TWO: Final = "tests/concurrency/test_interleavings.py"


@dataclass(frozen=True, slots=True)
class Edit:
    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutation:
    """`tests` are what must turn red: files, or single tests where a name says more."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def _sql(name: str, function: str, old: str, new: str, *tests: str) -> Mutation:
    return Mutation(name, (Edit(f"sql/functions/{function}.sql", old, new),), tests)


MUTATIONS: Final = (
    _sql(
        "the lock is not taken",
        "lock_model",
        "    if pg_try_advisory_xact_lock(llmqueue.lock_space(), hashtext(p_model)) then\n        return true;",
        "    if true then\n        return true;",
        FLEET,
    ),
    Mutation(
        "lock, read and write see one snapshot",
        (
            Edit("sql/functions/claim.sql", "if current_setting('transaction_isolation') <> 'read committed' then", "if false then"),
            Edit("tests/concurrency/fleet_worker.py", "psycopg.connect(dsn, autocommit=True)", 
                 "psycopg.connect(dsn, autocommit=True, options='-c default_transaction_isolation=repeatable\\\\ read')"),
        ),
        (FLEET,),
    ),
    _sql(
        "the isolation is not asserted",
        "claim",
        "if current_setting('transaction_isolation') <> 'read committed' then",
        "if false then",
        "tests/sql/test_claim.py",
    ),
    _sql("now() for clock_timestamp()", "claim", "v_now := coalesce(p_now, clock_timestamp());", "v_now := coalesce(p_now, now());", TWO),
    _sql("the clock is read before the lock", "claim", "    v_pool_waits := llmqueue.has_ready('');", 
         "    v_pool_waits := llmqueue.has_ready(''); p_now := coalesce(p_now, clock_timestamp());", TWO),
    _sql("several models wait for each other", "claim", "coalesce(cardinality(p_models), 0) = 1", "true", TWO),
    _sql("the oldest cell is off by one", "allowance", "(extract(epoch from granted_at) - v_span_s) / v_cell_s)::bigint;",
         "(extract(epoch from granted_at) - v_span_s) / v_cell_s)::bigint + 1;", *LIMITER),
    _sql("the span has no guard", "allowance", "select (l.window_s\n            + case", "select (l.window_s + 0 * case", *LIMITER),
    _sql("a guard that shrank is forgotten", "allowance", "case when p_now < l.guard_kept_until then greatest(l.guard_s, l.guard_before_s) else l.guard_s end",
         "l.guard_s", "tests/sql/test_register.py", "tests/properties/test_limiter.py"),
    _sql("the open cell is not counted", "allowance", "        v_used := v_used + open_calls;", "        v_used := v_used;", *LIMITER),
    _sql("a closed cell is lost", "charge", "if p_open_cell < p_cell and p_open_calls <> 0 then", "if false then", *LIMITER),
    _sql("a step back is not held", "allowance", "granted_at := greatest(p_now, v_last.granted_at);", "granted_at := p_now;", *LIMITER),
    _sql("a step back keeps the ledger", "hold_clock", "perform llmqueue.fill_ledger(p_model, p_now);", "null;", *LIMITER),
    _sql("a step forward is not answered", "clock_stepped", "perform llmqueue.fill_ledger(v_model, p_now);", "null;", *LIMITER),
    _sql("retry_at is a moment too early", "allowance", "interval '1 microsecond'", "interval '-1 millisecond'", *LIMITER),
    _sql("paused models run", "claim", "not v_config.enabled or v_config.rpm = 0", "false", "tests/sql/test_claim.py"),
    _sql("a refund at every try", "release", "         where a.fence = g.fence and a.outcome is null\n", "         where a.fence = g.fence\n",
         "tests/sql/test_release.py", "tests/sql/test_settle.py"),
    _sql("a refund into another cell", "release", "select e.model, e.cell, -count(*)", "select e.model, e.cell + 1, -count(*)", "tests/sql/test_release.py"),
    _sql("a refund without its charge", "release", "where g.model = e.model and g.cell = e.cell and g.granted_at = e.granted_at for key share",
         "where true", "tests/sql/test_release.py"),
    _sql("the charge of a refund is not locked", "release", " for key share", "", TWO),
    _sql("no refund", "release", "-count(*)", "-0 * count(*)", "tests/sql/test_release.py"),
    _sql("a swept attempt is refunded", "release", "         where a.outcome is null\n", "         where a.outcome is null or a.outcome = 'lost'\n",
         "tests/sql/test_release.py", "tests/properties/test_fence.py"),
    _sql("claim waits for rows", "lease_rank", "for no key update of t skip locked", "for no key update of t", TWO),
    _sql("claim locks no rows", "lease_rank", "\n                                    for no key update of t skip locked", "", TWO),
    _sql("rows set aside fill a lane's share", "lease_rank",
         "t.rank = p_rank and t.due_at <= p_now\n                                            and not exists (select from llmqueue.set_aside s where s.task_id = t.id)",
         "t.rank = p_rank and t.due_at <= p_now", "tests/sql/test_claim.py"),
    _sql("held rows hide the lane", "lease_rank", "exit when v_lanes = array[''] or (cardinality(v_lanes) = 2 and v_seen < v_left);", "exit;", TWO),
    _sql("rows that are not due are taken", "lease_rank", "t.rank = p_rank and t.due_at <= p_now", "t.rank = p_rank", "tests/sql/test_claim.py"),
    _sql("settle waits for rows", "settle", "for no key update of t skip locked", "for no key update of t", TWO),
    _sql("one bad row stops a flush", "settle", "if not llmqueue.is_fault_of_row(sqlstate) then", "if true then", "tests/sql/test_claim_owners_table.py"),
    _sql("the fence is not compared", "complete", "(t.is_running and t.fence = g.fence)", "t.is_running",
         "tests/sql/test_settle.py", "tests/properties/test_fence.py"),
    _sql("the outcome is not looked at", "complete", "where a.outcome is null or a.outcome = 'lost'", "where true",
         "tests/sql/test_settle.py", "tests/properties/test_fence.py"),
    _sql("the worker is not compared", "complete", " and a.worker = p_worker", "", "tests/sql/test_settle.py"),
    _sql("an earlier life's answer counts", "complete", " and t.finished_at is null\n", "\n", "tests/sql/test_settle.py", "tests/properties/test_fence.py"),
    _sql("an earlier life's answer counts between attempts", "complete", "newer.attempt_no <= g.attempt_no", "false",
         "tests/sql/test_settle.py"),
    _sql("a late answer is thrown away", "complete", "answer = case when applied.fence is null then g.answer end", "answer = null", "tests/sql/test_settle.py"),
    _sql("a paid late answer is not accepted", "complete", "where a.outcome is null or a.outcome = 'lost'", "where a.outcome is null", "tests/sql/test_settle.py"),
    _sql("attempts are not counted", "lease_rows", "coalesce(t.attempts, 0) + 1", "coalesce(t.attempts, 0)", "tests/sql/test_settle.py"),
    _sql("a released attempt counts", "release", "attempts = t.attempts - 1", "attempts = t.attempts", "tests/sql/test_release.py"),
    _sql("a refused attempt counts", "retry", "attempts = t.attempts - (not g.counts)::integer", "attempts = t.attempts", "tests/sql/test_settle.py"),
    _sql("refusals never count", "retry", "i.counts or v_refusals <=", "i.counts or 1000 <=", "tests/sql/test_settle.py"),
    _sql("a restart goes on counting", "lease_rows", "case when t.finished_at is null then coalesce(t.attempts, 0) + 1 else 1 end",
         "coalesce(t.attempts, 0) + 1", "tests/sql/test_restart.py"),
    _sql("max_concurrency is not read", "room", "if p_max_concurrency is null then", "if true then", "tests/sql/test_claim.py"),
    _sql("who has just come sweeps", "sweep", "w.beating_since <= v_now - make_interval(secs => w.lease_s)", "true", "tests/sql/test_sweep.py"),
    _sql("who has slept sweeps", "sweep", "                      and abs(extract(epoch from v_now - w.heartbeat_at)) < w.lease_s\n", "", "tests/sql/test_sweep.py"),
    _sql("a server that has just started is swept", "sweep", "and pg_postmaster_start_time() <= v_now - make_interval(secs => w.lease_s)", "", "tests/sql/test_sweep.py"),
    _sql("sweep waits for rows", "sweep", "perform from llmqueue.task t where t.id = v_lost.task_id for no key update of t skip locked;",
         "perform from llmqueue.task t where t.id = v_lost.task_id for no key update of t;", TWO),
    _sql("the wake-up raises", "wake_up", "exception when others then\n    return null;\n", "", "tests/sql/test_wake_up.py"),
    _sql("the wake-up rings always", "wake_up", "if exists (select from llmqueue.idle_worker) then", "if true then", "tests/sql/test_wake_up.py"),
)


def check(mutation: Mutation, pg: str) -> str | None:
    """Returns the first test that turned red, or None if the mutation survived."""
    with tempfile.TemporaryDirectory(prefix="llmqueue-mutate-") as folder:
        copy = Path(folder)
        for name in COPIED:
            _copy(ROOT / name, copy / name)
        for edit in mutation.edits:
            _apply(copy / edit.file, edit)
        return _first_failure(copy, mutation.tests, pg)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.exists():
        shutil.copy2(source, target)


def _apply(path: Path, edit: Edit) -> None:
    text = path.read_text(encoding="utf-8")
    if edit.old not in text:
        msg = f"{edit.file} has no line {edit.old!r}: bring tools/mutate.py up to date"
        raise SystemExit(msg)
    path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def _first_failure(copy: Path, tests: Sequence[str], pg: str) -> str | None:
    # PYTHONPATH stands before the editable install, so the copy's package and its sql/ are what is tested.
    env = {**os.environ, "PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", "--pg", pg, *tests]
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode == 0:
        return None
    red = [line.split(" ", 1)[1].split(" - ")[0] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if not red:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    return red[0].rsplit("/", 1)[-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pg", default="18", choices=["15", "16", "18"])
    parser.add_argument("names", nargs="*", help="parts of names; all without")
    options = parser.parse_args()
    chosen = [m for m in MUTATIONS if not options.names or any(name in m.name for name in options.names)]
    sound = Mutation("nothing", (), tuple(sorted({test for m in chosen for test in m.tests})))
    red = check(sound, options.pg)
    if red is not None:
        print(f"red without a mutation: {red}")  # noqa: T201 - a tool for the terminal
        return 1
    survived = 0
    for mutation in chosen:
        began = time.monotonic()
        red = check(mutation, options.pg)
        survived += red is None
        took_s = time.monotonic() - began
        print(f"{'killed  ' if red else 'SURVIVED'}  {mutation.name:<50} {took_s:4.0f} s  {red or ''}", flush=True)  # noqa: T201
    print(f"{len(chosen) - survived} of {len(chosen)} killed")  # noqa: T201
    return survived > 0


if __name__ == "__main__":
    sys.exit(main())
