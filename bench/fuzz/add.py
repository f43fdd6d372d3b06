"""Files for `llmqueue add`: valid lines are inserted exactly, others are reported, none is lost or counted twice.

Valid lines are generated together with their expected rows. Broken lines are mutated valid ones; Python's json decides
whether a mutated line still contains a prompt.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from bench.fuzz import nonsense
from bench.fuzz.hunt import Case, Failed
from llmqueue.errors import UsageError
from llmqueue.load.reader import BadLine, Reader
from tests.support.cli import run_cli

COLUMNS = ("prompt", "model", "priority", "user_id", "params", "max_attempts")
_ROWS = "select prompt, model, priority, user_id, params, max_attempts from tasks order by id"
PRIORITIES, ATTEMPTS = (0, 5, 100, -3, 32767), (1, 5, 1000)
PARAMS = {"temperature": 0.5, "stop": ["\n", "🦊"]}
THROUGH_DATABASE = 0.15

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """The inserted rows, and the numbers of the rejected lines."""

    rows: Sequence[Row]
    bad: Sequence[int]


class Files:
    """The pieces of a case are the lines of a file."""

    name = "add"

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = dsn
        self._folder = folder

    def make(self, rng: Random) -> Case:
        is_csv = rng.random() < 0.4
        about = {"format": "csv" if is_csv else "jsonl", "end": rng.choice(("\n", "\n", "\r\n", ""))}
        about["way"] = "database" if rng.random() < THROUGH_DATABASE else "reader"
        about["bom"] = "yes" if rng.random() < 0.2 else ""
        about["defaults"] = "yes" if rng.random() < 0.3 else ""
        if not is_csv:
            return Case([self._jsonl(rng) for _ in range(rng.randrange(1, 30))], about)
        about["is_mutated"] = "yes" if rng.random() < 0.5 else ""
        head = ",".join(COLUMNS).encode()
        if about["is_mutated"] and rng.random() < 0.2:
            head = nonsense.mutated(head, rng)
        records = [self._csv(rng, 0.2 if about["is_mutated"] else 0.0) for _ in range(rng.randrange(1, 30))]
        return Case([head, *records], about)

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

    def _csv(self, rng: Random, mutations: float) -> bytes:
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
        return nonsense.mutated(line, rng, 1) if rng.random() < mutations else line

    def note(self) -> str:
        return ""

    def check(self, case: Case) -> None:
        end = (case.about["end"] or "\n").encode()
        body = end.join(case.pieces) + case.about["end"].encode()
        if case.about["bom"]:
            body = b"\xef\xbb\xbf" + body
        seen = self._through_database(case, body) if case.about["way"] == "database" else _through_reader(case, body)
        if seen is None:
            return
        if case.about["format"] == "jsonl":
            _judge_lines(body, seen, case.about)
        else:
            _judge_records(body, seen, case)

    def _through_database(self, case: Case, body: bytes) -> Seen | None:
        """Runs the command and reads the table; None: the command has refused the whole file."""
        options = ["--format", case.about["format"], "--json", "--errors", str(self._folder / "bad.txt")]
        if case.about.get("defaults"):
            options += ["--model", "default", "--priority", "7", "--user", "someone"]
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            conn.execute("truncate tasks restart identity")
            done = run_cli(self._dsn, "add", *options, stdin=body)
            rows = [(*row[:4], _sorted(row[4]), row[5]) for row in conn.execute(_ROWS)]
        if "Traceback" in done.err or done.code not in {0, 1, 2}:
            raise Failed(f"exit {done.code}: {done.err[-500:]}")
        if done.code == 2:
            if rows or case.about["format"] == "jsonl":
                raise Failed(f"exit 2 with {len(rows)} rows in: {done.err[-300:]}")
            return None
        said = json.loads(done.out)
        if said["added"] != len(rows) or (done.code == 1) != (said["bad"] > 0):
            raise Failed(f"{len(rows)} rows are in, exit {done.code}, said {said}")
        named = [int(line.split("\t")[0]) for line in (self._folder / "bad.txt").read_text().splitlines()]
        if len(named) != said["bad"]:
            raise Failed(f"{said['bad']} bad lines, {len(named)} in the file of them")
        return Seen(rows, named)


def _through_reader(case: Case, body: bytes) -> Seen | None:
    """Runs only the reader, which is many times as fast, on the same lines."""
    defaults = {"model": "default", "priority": "7", "user_id": "someone"} if case.about.get("defaults") else {}
    reader = Reader(defaults, prompt_is_json=False)
    try:
        found = list(reader.read(io.BytesIO(body), "csv" if case.about["format"] == "csv" else "jsonl"))
    except UsageError:
        return None
    rows = [_row(item.cells) for item in found if not isinstance(item, BadLine)]
    return Seen(rows, [item.line for item in found if isinstance(item, BadLine)])


def _row(cells: dict[str, str]) -> Row:
    """Returns the row that Postgres stores for the cells."""
    attempts, params = cells.get("max_attempts"), cells.get("params")
    return (
        cells["prompt"],
        cells.get("model"),
        int(cells.get("priority", "0")),
        cells.get("user_id"),
        None if params is None else _sorted(json.loads(params)),
        None if attempts is None else int(attempts),
    )


def _fields(rng: Random) -> dict[str, object]:
    fields: dict[str, object] = {"prompt": f"{nonsense.text(rng)} {rng.randrange(10**6)}"}
    others = {
        "model": "some-model",
        "priority": rng.choice(PRIORITIES),
        "user_id": rng.choice(("u", 7, "Ä")),
        "params": PARAMS,
        "max_attempts": rng.choice(ATTEMPTS),
    }
    share = rng.choice((0.3, 1.0))
    return fields | {name: value for name, value in others.items() if rng.random() < share}


def _cell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _judge_lines(body: bytes, seen: Seen, about: dict[str, str]) -> None:
    """Compares the stored rows with the values that Python's json reads from the valid lines."""
    text = body.removeprefix(b"\xef\xbb\xbf")
    lines = [line for line in text.split(b"\n") if line.strip()]
    if len(seen.rows) + len(seen.bad) != len(lines):
        raise Failed(f"{len(lines)} lines, {len(seen.rows)} rows, bad are {seen.bad}")
    named, rows = set(seen.bad), seen.rows
    good = [line for number, line in enumerate(text.split(b"\n"), 1) if line.strip() and number not in named]
    # in any order, because a batch is written per set of columns
    wanted = Counter(repr(_expected(json.loads(line), about)) for line in good)
    stored = Counter(map(repr, rows))
    if wanted != stored:
        raise Failed(f"stored: {str(list(stored - wanted))[:300]}, given: {str(list(wanted - stored))[:300]}")
    for number, line in enumerate(text.split(b"\n"), 1):
        if number in named and _is_plain(line):
            raise Failed(f"line {number} was refused and is a prompt: {line[:200]!r}")


def _judge_records(body: bytes, seen: Seen, case: Case) -> None:
    if b'"' not in body.replace(b'""', b""):  # without quotes a record is a line
        records = [line for line in re.split(rb"\r\n|\r|\n", body)[1:] if line]
        if len(seen.rows) + len(seen.bad) != len(records):
            raise Failed(f"{len(records)} records, {len(seen.rows)} rows, bad are {seen.bad}")
    if case.about.get("is_mutated"):
        return
    wanted = Counter(repr(row) for row in map(_good_record, case.pieces[1:]) if row is not None)
    if missing := wanted - Counter(map(repr, seen.rows)):
        raise Failed(f"not stored as given: {str(list(missing))[:300]}")


def _good_record(piece: bytes) -> Row | None:
    """Returns the row of a record with all fields and no error; None for any other record."""
    cells = next(csv.reader(io.StringIO(piece.decode("utf-8", "replace"), newline="")), [])
    if len(cells) != len(COLUMNS) or not all(cells) or "\0" in cells[0] or "\ufffd" in cells[0]:
        return None
    prompt, model, priority, user, params, attempts = cells
    if model != "some-model" or params != json.dumps(PARAMS) or user not in {"u", "7", "Ä"}:
        return None
    if priority not in map(str, PRIORITIES) or attempts not in map(str, ATTEMPTS):
        return None
    return prompt, model, int(priority), user, _sorted(PARAMS), int(attempts)


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
    """Returns the value as jsonb stores it: keys by length, then by bytes, no duplicate keys, 1e3 as 1000."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value, key=lambda key: (len(key.encode()), key.encode()))}
    if isinstance(value, float) and value.is_integer():
        return int(Decimal(repr(value)))
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _is_plain(line: bytes) -> bool:
    """Returns whether a line is just a quoted prompt of letters and digits, which must be accepted."""
    said = line.strip()
    return re.fullmatch(rb'"[a-zA-Z0-9 ]+"', said) is not None and not said[1:-1].isspace()
