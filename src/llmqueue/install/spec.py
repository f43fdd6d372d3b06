"""The options of `llmqueue init`, checked as far as possible without a database."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from llmqueue.errors import UsageError
from llmqueue.install.columns import DONE, MAPPED_FOUR, OUR_NAMES, QUEUED, STATUSES

DEFAULT_SCHEMA: Final = "public"
DEFAULT_TABLE: Final = "tasks"
DEFAULT_LOCK_WAIT_S: Final = 600.0

_IDENTIFIER: Final = re.compile(r'"(?P<quoted>(?:[^"]|"")+)"|(?P<plain>[^".]+)')


@dataclass(frozen=True, slots=True)
class Name:
    """An identifier as typed: exact in double quotes, else folded to lower case if no name has its exact spelling."""

    text: str
    is_exact: bool

    def find(self, available: Iterable[str]) -> str | None:
        """Return the matching name of `available`, or None."""
        names = set(available)
        if self.text in names:
            return self.text
        folded = self.text.lower()
        return folded if not self.is_exact and folded in names else None


def parse_name(text: str) -> Name:
    """Read a column name: exact in double quotes, otherwise as typed, also with spaces."""
    match = re.fullmatch(r'"((?:[^"]|"")+)"', text)
    return Name(match[1].replace('""', '"'), True) if match else Name(text, False)


def parse_table(text: str) -> tuple[Name | None, Name]:
    """Read `table`, `schema.table` or the same in double quotes; the schema is None if it is omitted."""
    parts: list[Name] = []
    position = 0
    while match := _IDENTIFIER.match(text, position):
        quoted = match["quoted"]
        parts.append(Name(quoted.replace('""', '"'), True) if quoted else Name(match["plain"], False))
        position = match.end()
        if position == len(text) or text[position] != ".":
            break
        position += 1
    if position != len(text) or len(parts) not in {1, 2}:
        msg = (
            f"--table {text}: this is no table name. Write table or schema.table; "
            'a name with a dot or a quote in it goes in double quotes: \'"my.schema"."my.table"\'.'
        )
        raise UsageError(msg)
    return (parts[0], parts[1]) if len(parts) == 2 else (None, parts[0])


@dataclass(frozen=True, slots=True)
class AdoptionSpec:
    """The options of `llmqueue init`; None or empty if an option is not given.

    Raises:
        UsageError: an unknown name in `columns` or `words`, or options that contradict each other.
    """

    table: str | None = None
    id_column: str | None = None
    prompt_column: str | None = None
    answer_column: str | None = None
    status_column: str | None = None
    queued_value: str | None = None
    done_value: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    own_status: bool = False
    with_roles: bool = False
    lock_wait_s: float = DEFAULT_LOCK_WAIT_S

    def __post_init__(self) -> None:
        _check_columns(self)
        _check_words(self)
        if self.table is not None:
            parse_table(self.table)
        if not self.lock_wait_s > 0:
            msg = f"--lock-wait {self.lock_wait_s}: the time to wait for a lock is a number of seconds above 0."
            raise UsageError(msg)

    @property
    def names_a_table(self) -> bool:
        """Whether an option refers to an existing table, so that none is created."""
        four = (self.id_column, self.prompt_column, self.answer_column, self.status_column)
        given = (self.table, *four, self.queued_value, self.done_value)
        return any(value is not None for value in given) or bool(self.columns or self.words or self.own_status)

    def word(self, status: str) -> str:
        """Return the value of one of our status words in the owner's status column."""
        option = {QUEUED: self.queued_value, DONE: self.done_value}.get(status)
        return option if option is not None else self.words.get(status, status)


def parse_pairs(option: str, pairs: Iterable[str], meaning: str) -> dict[str, str]:
    """Read repeated `NAME=VALUE` options.

    Raises:
        UsageError: one is malformed, or a name is given twice with different values.
    """
    result: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.strip() or not value:
            msg = f"{option} {pair}: write it as {option} {meaning}."
            raise UsageError(msg)
        name = name.strip()
        if result.setdefault(name, value) != value:
            msg = f"{option} {name} is given twice: {result[name]} and {value}. Leave one of them out."
            raise UsageError(msg)
    return result


def near(name: str, available: Iterable[str]) -> str:
    """Return ` Did you mean …?` with the nearest name, or nothing."""
    by_lower = {known.lower(): known for known in available}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean {by_lower[close[0]]}?" if close else ""


def _check_columns(spec: AdoptionSpec) -> None:
    for name in spec.columns:
        if name == "status" and spec.own_status:
            continue
        if name in MAPPED_FOUR:
            msg = f"--column {name}={spec.columns[name]}: this one is named by --{name}-column {spec.columns[name]}."
            raise UsageError(msg)
        if name not in OUR_NAMES:
            hint = near(name, OUR_NAMES) or f" They are: {', '.join(OUR_NAMES)}."
            msg = f"--column {name}={spec.columns[name]}: llmqueue has no column {name}.{hint}"
            raise UsageError(msg)
    taken: dict[str, str] = {}
    for name, column in spec.columns.items():
        if taken.setdefault(column, name) != name:
            msg = f"--column {name}={column}: {column} is {taken[column]} already. Give each its own column."
            raise UsageError(msg)


def _check_words(spec: AdoptionSpec) -> None:
    for status, value in spec.words.items():
        if status not in STATUSES:
            hint = near(status, STATUSES) or f" They are: {', '.join(STATUSES)}."
            msg = f"--word {status}={value}: llmqueue has no status {status}.{hint}"
            raise UsageError(msg)
        if value != spec.word(status):
            option = "--queued-value" if status == QUEUED else "--done-value"
            msg = f"--word {status}={value} and {option} {spec.word(status)} contradict each other. Leave one out."
            raise UsageError(msg)
        if spec.own_status and status not in {QUEUED, DONE}:
            msg = (
                f"--word {status}={value}: with --own-status llmqueue writes its own words into its own column. "
                "Leave it out; --queued-value and --done-value are the values of your column."
            )
            raise UsageError(msg)
    if spec.own_status:
        return
    taken: dict[str, str] = {}
    for status in STATUSES:
        value = spec.word(status)
        if taken.setdefault(value, status) != status:
            msg = (
                f"'{value}' stands for both {taken[value]} and {status}. Each status needs a word of its own: "
                f"--word {status}=VALUE, or use --own-status."
            )
            raise UsageError(msg)
