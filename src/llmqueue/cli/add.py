"""`llmqueue add`: insert tasks from a file or stdin. The work is done in load/."""

from __future__ import annotations

import gzip
import sys
import time
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer

from llmqueue.cli.database import open_database
from llmqueue.cli.output import clean, console, write_json
from llmqueue.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmqueue.load.copy import Added
    from llmqueue.load.reader import BadLine, Cells, Format

BAD_LINES_SHOWN = 20

# What some reader of a report may take for the end of a line or a field, written as in Python's source.
ONE_LINE = str.maketrans({c: c.encode("unicode_escape").decode() for c in "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"})


def add(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="JSON lines or CSV, also .gz; - or nothing: stdin.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of rows that name none [default: any model].")] = None,
    priority: Annotated[
        int | None, typer.Option(help="Priority of rows that name none; higher goes first, from 100 on: hot.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="user_id of rows that name none.")] = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="jsonl|csv", help="Instead of guessing by suffix or content.")
    ] = None,
    errors: Annotated[
        Path | None, typer.Option(dir_okay=False, metavar="FILE", help="Write number and reason of every bad line.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the summary as JSON.")] = False,
) -> None:
    """Insert tasks from a JSONL or CSV file or from stdin.

    A JSON line is a prompt in quotes or an object with the key "prompt" and, as needed, id, model, priority, user_id,
    params, run_at, deadline_at, max_attempts. A CSV file has these names in its first line. Bad lines are named and
    left out, and the exit code is then 1; the good ones are in.
    """
    from llmqueue.db.mapping import read_mapping
    from llmqueue.load.copy import Producer, key_has_default
    from llmqueue.load.reader import Reader

    if format_ not in {None, "jsonl", "csv"}:
        raise UsageError(f"--format must be jsonl or csv (got '{format_}')")
    with ExitStack() as stack:
        source = stack.enter_context(_open(file))
        report = stack.enter_context(_bad_lines(errors))
        conn = stack.enter_context(open_database("add"))
        mapping = read_mapping(conn)
        reader = Reader(_defaults(model, priority, user), mapping.prompt_is_json, not key_has_default(conn, mapping))
        progress = stack.enter_context(_progress(source, file))
        producer = Producer(conn, mapping, report, progress)
        began = time.monotonic()
        try:
            format_used = cast("Format", format_) if format_ else _format_of(source, file)
            producer.add(reader.read(source, format_used))
        except BaseException as error:
            stack.close()  # the progress bar goes before the last word
            done = producer.added
            reached = f"lines up to {done.last_line:,} are dealt with" if done.last_line else "nothing is in"
            how = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
            typer.echo(f"{how}: added {_count(done.rows, 'task')}, {reached}", err=True)
            if isinstance(error, OSError | EOFError | zlib.error) and not isinstance(error, BrokenPipeError):
                raise UsageError(f"cannot read {file}: {error}") from None  # a broken .gz, a file that went away
            raise
    _summary(producer.added, time.monotonic() - began, as_json=as_json)
    raise typer.Exit(1 if producer.added.bad else 0)


def _defaults(model: str | None, priority: int | None, user: str | None) -> Cells:
    given = {"model": model, "priority": priority, "user_id": user}
    if "" in (model, user):
        raise UsageError("--model and --user must not be empty")
    return {name: str(value) for name, value in given.items() if value is not None}


@contextmanager
def _open(file: str | None) -> Iterator[IO[bytes]]:
    if file is None or file == "-":
        if file is None and sys.stdin.isatty():
            raise UsageError("nothing to add: name a FILE, or pipe lines in (- reads from the terminal)")
        yield sys.stdin.buffer
        return
    path = Path(file)
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    with raw:
        if path.suffix == ".gz":
            with gzip.open(raw) as unpacked:
                yield cast("IO[bytes]", unpacked)
        else:
            yield raw


def _format_of(source: IO[bytes], file: str | None) -> Format:
    from llmqueue.load.reader import sniff

    suffixes = Path(file or "-").suffixes
    if ".csv" in suffixes:
        return "csv"
    if {".jsonl", ".ndjson", ".json"}.intersection(suffixes):
        return "jsonl"
    head = source.peek(1 << 16) if hasattr(source, "peek") else b""
    return sniff(head.split(b"\n", 1)[0])


@contextmanager
def _bad_lines(errors: Path | None) -> Iterator[Callable[[BadLine], None]]:
    """Shows the first bad lines on stderr and counts the others; all of them go to the file `errors`."""
    seen = 0
    with ExitStack() as stack:
        try:
            file = None if errors is None else stack.enter_context(errors.open("w", encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"cannot write {errors}: {error.strerror}") from None

        def report(bad: BadLine) -> None:
            nonlocal seen
            seen += 1
            # it may quote a cell, or what an owner's trigger says: one bad line is one line here
            reason = clean(bad.reason.translate(ONE_LINE))
            if seen <= BAD_LINES_SHOWN:
                typer.echo(f"line {bad.line}: {reason}", err=True)
            if file is not None:
                file.write(f"{bad.line}\t{reason}\n")

        yield report
    if seen > BAD_LINES_SHOWN:
        where = f"all are in {errors}" if errors else "--errors FILE keeps them all"
        typer.echo(f"… and {_count(seen - BAD_LINES_SHOWN, 'more bad line')} ({where})", err=True)


@contextmanager
def _progress(source: IO[bytes], file: str | None) -> Iterator[Callable[[Added], None]]:
    """A bar on stderr while that is a terminal; of a pipe only the rows are known."""
    screen = console(stderr=True)
    if not screen.is_terminal:
        yield lambda _added: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    under = getattr(source, "fileobj", None) or source  # of a .gz file: the compressed bytes
    total = None if file is None or file == "-" else Path(file).stat().st_size
    columns = (TextColumn("adding"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=screen, transient=True) as bar:
        task = bar.add_task("", total=total)

        def advance(added: Added) -> None:
            position = under.tell() if total is not None else 0
            bar.update(task, completed=position, description=_count(added.rows, "task"))

        yield advance


def _summary(added: Added, seconds: float, *, as_json: bool) -> None:
    rate = added.rows / max(seconds, 1e-9)
    if as_json:
        write_json({"added": added.rows, "bad": added.bad, "seconds": round(seconds, 3), "rows_per_s": round(rate)})
        return
    bad = f", {_count(added.bad, 'bad line')}" if added.bad else ""
    rounded = round(rate, -3) if rate >= 10_000 else rate
    typer.echo(f"added {_count(added.rows, 'task')} in {seconds:.1f} s ({rounded:,.0f} rows/s){bad}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
