"""How listings are written: a table on a terminal, tab-separated lines without a header when piped, JSON on request."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import DataclassInstance
    from rich.console import Console
    from rich.table import Table

# A backend's error text may hold escape sequences, and a terminal would obey them.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a listing: the field it shows, its title, and how a person reads its value.

    An optional one is left out when it is None in every row.
    """

    field: str
    title: str
    text: Callable[[object], str] | None = None
    is_right: bool = False
    is_optional: bool = False


def console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def show(
    rows: Sequence[DataclassInstance],
    columns: Sequence[Column],
    *,
    as_json: bool,
    none: str,
    line: Sequence[str] | None = None,
) -> None:
    """Writes a listing to stdout; `none` is what a person reads when there is nothing to list.

    `line` names the fields of a line for a program; without it they are those of the columns.
    """
    if as_json:
        write_json([asdict(row) for row in rows])
        return
    screen = console()
    if not screen.is_terminal:
        fields = line or [column.field for column in columns]
        for row in rows:
            write_line(*(getattr(row, field) for field in fields))
    elif rows:
        screen.print(table(rows, columns))
    else:
        typer.echo(none)


def table(rows: Sequence[DataclassInstance], columns: Sequence[Column], title: str | None = None) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    used = [c for c in columns if not c.is_optional or any(getattr(row, c.field) is not None for row in rows)]
    grid = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for column in used:
        grid.add_column(column.title, justify="right" if column.is_right else "left", overflow="fold")
    for row in rows:
        cells = ((column.text or readable)(getattr(row, column.field)) for column in used)
        grid.add_row(*(Text(clean(cell)) for cell in cells))
    return grid


def write_json(value: object) -> None:
    """Writes one JSON value as one line of stdout."""
    typer.echo(json.dumps(value, default=_json_value, ensure_ascii=False))


def write_line(*values: object) -> None:
    """Writes values as one tab-separated line; tabs and line ends inside of them are escaped, None is empty."""
    cells = ("" if value is None else str(_json_value(value)) for value in values)
    typer.echo("\t".join(clean(c.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")) for c in cells))


def clean(text: str) -> str:
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def readable(value: object) -> str:
    """A value as a person reads it: `12,345`, `3 min`, `yes`; `-` for None."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case timedelta():
            return duration(value.total_seconds())
        case datetime():
            return age(value)
        case _:
            return str(value)


def duration(seconds: object) -> str:
    """Seconds as `45 s`, `12 min`, `3 h 20 min` or `4 d 2 h`; `-` for None."""
    if not isinstance(seconds, int | float | Decimal):
        return "-"
    total = round(seconds)
    if total < 120:
        return f"{total} s"
    minutes, hours, days = total // 60, total // 3600, total // 86400
    if hours < 2:
        return f"{minutes} min"
    if days < 2:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def age(value: object) -> str:
    """A time as how long ago it was: `3 min ago`, `in 2 h 5 min`; `-` for None."""
    if not isinstance(value, datetime):
        return "-"
    seconds = (datetime.now(UTC) - value).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def moment(value: object) -> str:
    """A time as the reader's clock shows it, and how far off it is: `12:00:03 (in 40 s)`; `-` for None."""
    if not isinstance(value, datetime):
        return "-"
    here = value.astimezone()
    is_today = here.date() == datetime.now(UTC).astimezone().date()
    return f"{here.strftime('%H:%M:%S' if is_today else '%Y-%m-%d %H:%M:%S')} ({age(value)})"


def _json_value(value: object) -> object:
    match value:
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime():
            return value.astimezone(UTC).isoformat()
        case timedelta():
            return value.total_seconds()
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)
