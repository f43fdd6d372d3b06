"""Reads tasks from JSON lines or CSV: one `Row` or `BadLine` per line, with one line in memory at a time.

A JSON line is a prompt ("…") or an object with the key "prompt" and any of the other FIELDS; the head of a CSV file
names them. Only \\n ends a line: U+2028 and similar characters are text.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TYPE_CHECKING, Literal

from llmqueue.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The columns that a line may fill, by our names.
FIELDS = ("id", "prompt", "model", "priority", "user_id", "params", "run_at", "deadline_at", "max_attempts")

Format = Literal["jsonl", "csv"]
Cells = dict[str, str]

csv.field_size_limit(2**31 - 1)  # prompts are longer than the 131,072 characters that csv expects


@dataclass(frozen=True, slots=True)
class Row:
    """A task to insert: the given fields and their values, as text that Postgres can read."""

    line: int
    cells: Cells


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no valid task, and the reason."""

    line: int
    reason: str


class _Bad(ValueError):
    """The reason why a value or a line is rejected."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads lines, given defaults for missing fields and the type of the prompt column."""

    defaults: Cells
    prompt_is_json: bool
    needs_id: bool = False

    def read(self, file: IO[bytes], format_: Format) -> Iterator[Row | BadLine]:
        """Yields the row or the error of each line, in order; raises UsageError for an invalid CSV head."""
        return self._read_csv(file) if format_ == "csv" else self._read_jsonl(file)

    def _read_jsonl(self, file: IO[bytes]) -> Iterator[Row | BadLine]:
        for number, line in enumerate(file, 1):
            try:
                text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if text.strip():
                    yield Row(number, self._cells(_parse_json(text)))
            except _Bad as bad:
                yield BadLine(number, str(bad))

    def _read_csv(self, file: IO[bytes]) -> Iterator[Row | BadLine]:
        records = csv.reader(_decoded(file), strict=True)
        try:
            head = next(records, [])
        except csv.Error as error:
            raise UsageError(f"the first line is no CSV head: {error}") from None
        _check_head(head)
        while True:
            number = records.line_num + 1
            try:
                record = next(records)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadLine(number, f"not CSV: {error}")
                continue
            if not record:
                continue
            try:
                if len(record) != len(head):
                    raise _Bad(f"has {len(record)} fields, and the first line has {len(head)}")
                filled = {name: cell for name, cell in zip(head, record, strict=True) if cell or name == "prompt"}
                yield Row(number, self._cells(self._from_csv(filled)))
            except _Bad as bad:
                yield BadLine(number, str(bad))

    def _from_csv(self, cells: Cells) -> dict[str, object]:
        """Returns the values that the same line would have in JSON."""
        values: dict[str, object] = dict(cells)
        for name in ("priority", "max_attempts"):
            if name in cells:
                values[name] = _integer(name, cells[name])
        if "params" in cells:
            values["params"] = _parse_json(cells["params"].encode(errors="surrogateescape"), "params is")
        if self.prompt_is_json and cells["prompt"].lstrip().startswith(("[", "{")):
            values["prompt"] = _parse_json(cells["prompt"].encode(errors="surrogateescape"), "prompt is")
        return values

    def _cells(self, value: object) -> Cells:
        if isinstance(value, str):
            value = {"prompt": value}
        if not isinstance(value, dict):
            raise _Bad('is neither a prompt ("…") nor an object with the key "prompt"')
        if unknown := [key for key in value if key not in FIELDS]:
            raise _Bad(f'has the unknown key "{_printable(unknown[0])}"; known are {", ".join(FIELDS)}')
        if "prompt" not in value:
            raise _Bad('has no "prompt"')
        cells = self.defaults | {
            name: _cell(name, item, self.prompt_is_json)
            for name, item in value.items()
            if item is not None or name == "prompt"
        }
        if self.needs_id and "id" not in cells:
            raise _Bad('has no "id", and the key of the table has no default')
        return cells


def sniff(first_line: bytes) -> Format:
    """Guesses the format from the first line: valid JSON is JSON, but `"prompt"` alone is a CSV head."""
    text = first_line.removeprefix(b"\xef\xbb\xbf").strip()
    if text.startswith((b"{", b"[")):
        return "jsonl"
    try:
        return "csv" if json.loads(text) == "prompt" else "jsonl"
    except ValueError:
        names = text.decode(errors="replace").replace('"', "").split(",")
        return "csv" if "prompt" in (name.strip() for name in names) else "jsonl"


def _decoded(file: IO[bytes]) -> Iterator[str]:
    # A byte that is not UTF-8 becomes a lone surrogate, which is reported later for its own record.
    for number, line in enumerate(file):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        yield text.decode(errors="surrogateescape")


def _check_head(head: list[str]) -> None:
    known = ", ".join(FIELDS)
    if "prompt" not in head:
        raise UsageError(
            f"the first line of a CSV file names its columns, and one of them is prompt; known are {known}"
        )
    for name in head:
        if name not in FIELDS:
            raise UsageError(f'unknown column "{_printable(name)}" in the first line; known are {known}')
        if head.count(name) > 1:
            raise UsageError(f'column "{name}" comes twice in the first line')


def _parse_json(text: bytes, what: str = "") -> object:
    try:
        return json.loads(text.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _Bad(f"{what} not UTF-8 text".strip()) from None
    except json.JSONDecodeError as error:
        raise _Bad(f"{what} not JSON: {error.msg} at character {error.pos + 1}".strip()) from None
    except (ValueError, RecursionError) as error:
        raise _Bad(f"{what} not JSON: {error}".strip()) from None


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _cell(name: str, value: object, prompt_is_json: bool) -> str:
    match name:
        case "prompt":
            return _prompt(value, prompt_is_json)
        case "priority" | "max_attempts":
            number = _integer(name, value)
            if name == "max_attempts" and number < 1:
                raise _Bad(f"max_attempts must be at least 1 (got {number})")
            return str(number)
        case "params":
            if not isinstance(value, dict):
                raise _Bad("params must be an object")
            return _json_text(name, value)
        case "run_at" | "deadline_at":
            return _time(name, value)
        case _:
            if isinstance(value, int) and not isinstance(value, bool) and name != "model":
                return str(value)
            if not isinstance(value, str) or not value:
                raise _Bad(f"{name} must be text that is not empty")
            return _text(name, value)


def _prompt(value: object, prompt_is_json: bool) -> str:
    if value is None or value in ("", [], {}):
        raise _Bad("prompt is empty")
    if prompt_is_json:
        return _json_text("prompt", value)
    if not isinstance(value, str):
        raise _Bad("prompt must be text, since the column is")
    return _text("prompt", value)


def _text(name: str, value: str) -> str:
    if "\0" in value:
        raise _Bad(f"{name} holds a NUL character, which Postgres cannot store")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Bad(f"{name} holds a lone surrogate or a byte that is not UTF-8") from None
    return value


def _json_text(name: str, value: object) -> str:
    for text in _strings(value):
        _text(name, text)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _strings(value: object) -> Iterator[str]:
    """Yields every text in a JSON value, including keys."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return int(value)
    except ValueError:
        pass
    raise _Bad(f"{name} must be a whole number (got {_printable(str(value))})")


def _time(name: str, value: object) -> str:
    try:
        time = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise _Bad(f"{name} must be a time with a zone, such as 2030-01-31T12:00:00Z (got {_printable(str(value))})")
    return time.isoformat()


def _printable(text: str) -> str:
    shown = text.encode(errors="backslashreplace").decode()
    return shown if len(shown) <= 40 else f"{shown[:40]}…"
