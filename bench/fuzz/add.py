"""Files for `llmqueue add`: good lines are in exactly as given, others are named, nothing is lost or counted twice.

Good lines are made together with the row that they stand for. Broken ones are bytes mutated from good ones, of which
Python's json decides whether they hold a prompt after all.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from bench.fuzz import nonsense
from bench.fuzz.hunt import Case, Failed
from tests.support.cli import Result, run_cli

COLUMNS = ("prompt", "model", "priority", "user_id", "params", "max_attempts")
_ROWS = "select prompt, model, priority, user_id, params, max_attempts from tasks order by id"
BAD_LINE = re.compile(r"line ([\d,]+): (?s:.)+")

Row = tuple[Any, ...]


class Files:
    """Pieces are lines of a file; those that begin with the mark are good ones."""

    name = "add"

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def make(self, rng: Random) -> Case:
        is_csv = rng.random() < 0.4
        lines = [self._csv(rng) if is_csv else self._jsonl(rng) for _ in range(rng.randrange(1, 30))]
        about = {"format": "csv" if is_csv else "jsonl", "end": rng.choice(("\n", "\n", "\r\n", ""))}
        about["bom"] = "yes" if rng.random() < 0.2 else ""
        if rng.random() < 0.3:
            about["defaults"] = "yes"
        if is_csv:
            head = (
                ",".join(COLUMNS).encode() if rng.random() < 0.9 else nonsense.mutated(",".join(COLUMNS).encode(), rng)
            )
            lines.insert(0, head)
        return Case(lines, about)

    def _jsonl(self, rng: Random) -> bytes:
        fields = _fields(rng)
        value: object = fields["prompt"] if len(fields) == 1 and rng.random() < 0.5 else fields
        line = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode()
        draw = rng.random()
        if draw < 0.25:
            line = nonsense.mutated(line, rng)
        elif draw < 0.35:
            line = b'{"prompt":' + rng.choice(nonsense.JSON) + b"}"
        elif draw < 0.4:
            name = rng.choice((*COLUMNS, "id", "run_at", "deadline_at", "unknown"))
            line = json.dumps({"prompt": "p", name: "?"}).encode().replace(b'"?"', rng.choice(nonsense.JSON))
        return line.replace(b"\n", b" ")

    def _csv(self, rng: Random) -> bytes:
        fields = _fields(rng)
        cells = ["" if (value := fields.get(name)) is None else _cell(value) for name in COLUMNS]
        draw = rng.random()
        if draw < 0.1:
            cells.append("one too many")
        elif draw < 0.2:
            cells[rng.randrange(len(cells))] = nonsense.text(rng, broken=0.2)
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="").writerow(cells)
        line = out.getvalue().encode("utf-8", "surrogatepass")
        return nonsense.mutated(line, rng, 1) if rng.random() < 0.1 else line

    def note(self) -> str:
        return ""

    def check(self, case: Case) -> None:
        end = (case.about["end"] or "\n").encode()
        body = end.join(case.pieces) + case.about["end"].encode()
        if case.about["bom"]:
            body = b"\xef\xbb\xbf" + body
        options = ["--format", case.about["format"], "--json", "--errors", "/dev/null"]
        if case.about.get("defaults"):
            options += ["--model", "default", "--priority", "7", "--user", "someone"]
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            conn.execute("truncate tasks restart identity")
            done = run_cli(self._dsn, "add", *options, stdin=body)
            self._judge(done, conn, case, body)

    def _judge(self, done: Result, conn: psycopg.Connection[TupleRow], case: Case, body: bytes) -> None:
        rows = conn.execute(_ROWS).fetchall()
        if "Traceback" in done.err or done.code not in {0, 1, 2}:
            raise Failed(f"exit {done.code}: {done.err[-500:]}")
        if done.code == 2:
            if rows or case.about["format"] == "jsonl":
                raise Failed(f"exit 2 with {len(rows)} rows in: {done.err[-300:]}")
            return
        said = json.loads(done.out)
        if said["added"] != len(rows) or (done.code == 1) != (said["bad"] > 0):
            raise Failed(f"{len(rows)} rows are in, exit {done.code}, said {said}")
        if case.about["format"] == "jsonl":
            _judge_lines(body, rows, said, done.err, case.about)
        elif b'"' not in body.replace(b'""', b""):  # without quotes a record is a line
            records = [line for line in re.split(rb"\r\n|\r|\n", body)[1:] if line]
            if said["added"] + said["bad"] != len(records):
                raise Failed(f"{len(records)} records, said {said}")


def _fields(rng: Random) -> dict[str, object]:
    fields: dict[str, object] = {"prompt": f"{nonsense.text(rng)} {rng.randrange(10**6)}"}
    others = {
        "model": "some-model",
        "priority": rng.choice((0, 5, 100, -3, 32767)),
        "user_id": rng.choice(("u", 7, "Ä")),
        "params": {"temperature": 0.5, "stop": ["\n", "🦊"]},
        "max_attempts": rng.choice((1, 5, 1000)),
    }
    return fields | {name: value for name, value in others.items() if rng.random() < 0.3}


def _cell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _judge_lines(body: bytes, rows: Sequence[Row], said: dict[str, Any], err: str, about: dict[str, str]) -> None:
    """Holds each stored row against what Python's own json reads in the line that it must come from."""
    text = body.removeprefix(b"\xef\xbb\xbf")
    lines = [line for line in text.split(b"\n") if line.strip()]
    if said["added"] + said["bad"] != len(lines):
        raise Failed(f"{len(lines)} lines, said {said}")
    named = {int(match[1].replace(",", "")) for match in map(BAD_LINE.fullmatch, err.splitlines()) if match}
    if said["bad"] <= 20 and len(named) != said["bad"]:
        raise Failed(f"{said['bad']} bad lines, named are {sorted(named)}: {err[:300]}")
    if said["bad"] > 20:
        return
    good = [line for number, line in enumerate(text.split(b"\n"), 1) if line.strip() and number not in named]
    # in any order: a batch is written shape by shape
    wanted = Counter(repr(_expected(json.loads(line), about)) for line in good)
    stored = Counter(map(repr, rows))
    if wanted != stored:
        raise Failed(f"in is {str(list(stored - wanted))[:300]}, given was {str(list(wanted - stored))[:300]}")
    for number, line in enumerate(text.split(b"\n"), 1):
        if number in named and _is_plain(line):
            raise Failed(f"line {number} was refused and is a prompt: {line[:200]!r}")


def _expected(value: Any, about: dict[str, str]) -> Row:
    fields = {"prompt": value} if isinstance(value, str) else {k: v for k, v in value.items() if v is not None}
    default = {"model": "default", "priority": 7, "user_id": "someone"} if about.get("defaults") else {}
    user = fields.get("user_id", default.get("user_id"))
    priority, attempts = fields.get("priority", default.get("priority", 0)), fields.get("max_attempts")
    return (
        fields["prompt"],
        fields.get("model", default.get("model")),
        int(priority),
        None if user is None else str(user),
        _sorted(fields.get("params")),
        None if attempts is None else int(attempts),
    )


def _sorted(value: object) -> object:
    """As jsonb keeps it: keys by length, then by bytes, no key twice, numbers as they are."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=lambda key: (len(key.encode()), key.encode()))}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _is_plain(line: bytes) -> bool:
    """Whether a line is a prompt of letters in quotes and nothing else: nobody could mind that."""
    return re.fullmatch(rb'"[a-zA-Z0-9 ]*[a-zA-Z0-9][a-zA-Z0-9 ]*"', line.strip()) is not None
