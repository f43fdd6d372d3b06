"""During the adoption of a large table in use, no statement waits for longer than half a second.

LLMQUEUE_TEST_ROWS sets the number of finished rows; 5000000 is the figure in the documentation.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from llmqueue.install.adopt import AdoptionSpec, install
from tests.support.adoption import SIX, rows, run, value
from tests.support.server import Server

ROWS = int(os.environ.get("LLMQUEUE_TEST_ROWS", "200000"))
CLIENTS = 50
LONGEST_MS = 500

INSERT = "insert into tasks (prompt) values ('inserted while the table is adopted');\n"
UPDATE = f"\\set id random(1, {ROWS})\nupdate tasks set answer = 'corrected' where id = :id;\n"
READ = f"\\set id random(1, {ROWS})\nselect status, answer from tasks where id = :id;\n"


@pytest.mark.slow
@pytest.mark.system
def test_no_statement_of_fifty_clients_waits_long_while_the_table_is_adopted(
    server: Server, database: str, tmp_path: Path
) -> None:
    run(
        database,
        "create table tasks (id bigint generated always as identity primary key, prompt text not null, answer text, "
        f"status text not null default 'unsolved' check (status in {SIX}))",
        "insert into tasks (prompt, answer, status) select repeat('What is asked? ', 8) || n, "
        f"repeat('An answer. ', 10), 'solved' from generate_series(1, {ROWS}) n",
        "vacuum analyze tasks",
        "checkpoint",
    )
    file = value(database, "select pg_relation_filenode('tasks')")

    with _clients(server, database, tmp_path) as clients:
        time.sleep(5)
        start_at, start = time.time(), time.monotonic()
        lines: list[str] = []
        install(database, AdoptionSpec(), report=lines.append)
        took_s, end_at = time.monotonic() - start, time.time()
        time.sleep(2)
        assert clients.poll() is None
        clients.terminate()
        clients.wait(timeout=30)

    assert (tmp_path / "complaints").read_text() == ""
    before, during = _latencies_ms(tmp_path, 0, start_at), _latencies_ms(tmp_path, start_at, end_at + 2)
    print(f"\n{ROWS:,} rows, {CLIENTS} clients: init took {took_s:.1f} s", *lines, sep="\n  ")
    print(f"  before: {_figures(before)}\n  during: {_figures(during)}")
    assert len(during) > 100
    assert max(during) < LONGEST_MS
    assert lines[-1] == "done: public.tasks is adopted"
    assert value(database, "select pg_relation_filenode('tasks')") == file
    assert value(database, "select bool_and(indisvalid) from pg_index where indrelid = 'tasks'::regclass") is True
    assert rows(database, "select distinct status from tasks where id <= 1000") == [("solved",)]


def _clients(server: Server, database: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [str(server.bin_path / "pgbench"), "-n", "-c", str(CLIENTS), "-j", "2", "-T", "3600", "-l"]
    for name, script, weight in [("insert", INSERT, 4), ("update", UPDATE, 4), ("read", READ, 2)]:
        path = folder / f"{name}.sql"
        path.write_text(script)
        command += ["-f", f"{path}@{weight}"]
    with (folder / "complaints").open("wb") as complaints:
        return subprocess.Popen([*command, database], cwd=folder, stdout=subprocess.DEVNULL, stderr=complaints)


def _latencies_ms(folder: Path, since: float, until: float) -> list[float]:
    """The latency of each statement that ended within the time, from pgbench's log (its times are in µs)."""
    found = []
    for log in folder.glob("pgbench_log.*"):
        for line in log.read_text().splitlines():
            fields = line.split()
            if len(fields) >= 6 and since <= int(fields[4]) + int(fields[5]) / 1e6 <= until:
                found.append(int(fields[2]) / 1000)
    return sorted(found)


def _figures(latencies: list[float]) -> str:
    def at(share: float) -> float:
        return latencies[min(int(len(latencies) * share), len(latencies) - 1)]

    return (
        f"{len(latencies):,} statements, p50 {at(0.5):.1f} ms, p99 {at(0.99):.1f} ms, "
        f"p99.9 {at(0.999):.1f} ms, max {latencies[-1]:.1f} ms"
    )
