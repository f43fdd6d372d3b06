"""The display while the workers work: a live table on a terminal, otherwise a line every five seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from psycopg.rows import class_row
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow

REFRESH_S = 0.25
LINE_EVERY_S = 5.0
# The width of the terminal from which the bars are long, and the two lengths of the bars.
WIDE, WIDE_BAR, NARROW_BAR = 96, 30, 16

_MODELS = """
    select s.model, s.rpm, s.calls_60s, s.running,
           (select count(*) from llmqueue.attempt a where a.model = s.model and a.outcome = 'completed') as solved
      from llmqueue.model_status s order by s.model
"""
_TASKS = """
    select count(*) filter (where state in ('new', 'delayed')) as waiting,
           count(*) filter (where state = 'in progress') as running,
           count(*) filter (where state = 'answered') as solved,
           count(*) filter (where state in ('failed', 'cancelled')) as failed
      from support.prompts
"""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """The state of a model at one moment."""

    model: str
    rpm: int
    calls_60s: int
    running: int
    solved: int


@dataclass(frozen=True, slots=True)
class Tasks:
    """The numbers of tasks at one moment, including those solved before the demo."""

    waiting: int
    running: int
    solved: int
    failed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """All values shown at one moment. `base_rpm` has the limits at the start."""

    elapsed_s: float
    tasks: Tasks
    solved_before: int
    models: Mapping[str, ModelRow]
    base_rpm: Mapping[str, int]
    notes: list[str] = field(default_factory=list)

    @property
    def solved(self) -> int:
        return self.tasks.solved - self.solved_before

    @property
    def total(self) -> int:
        return self.solved + self.tasks.waiting + self.tasks.running + self.tasks.failed

    @property
    def calls_60s(self) -> int:
        return sum(row.calls_60s for row in self.models.values())


class View(Protocol):
    """Displays scenes, one after the other."""

    def show(self, scene: Scene) -> None: ...

    def say(self, line: str) -> None: ...


def read_scene(
    conn: psycopg.Connection[TupleRow], elapsed_s: float, base_rpm: Mapping[str, int], solved_before: int
) -> Scene:
    """Reads the present state from the owner's table and llmqueue's views."""
    with conn.cursor(row_factory=class_row(Tasks)) as cursor:
        tasks = cursor.execute(_TASKS).fetchone() or Tasks(0, 0, 0, 0)
    with conn.cursor(row_factory=class_row(ModelRow)) as cursor:
        rows = cursor.execute(_MODELS).fetchall()
    return Scene(elapsed_s, tasks, solved_before, {row.model: row for row in rows}, base_rpm)


@contextmanager
def view(console: Console) -> Iterator[View]:
    """Yields a live view on a terminal, else a view of plain lines."""
    if not console.is_terminal:
        yield Lines(console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Moving(live)


class Moving:
    """The view on a terminal. It disappears at the end; lines written by `say` stay."""

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, scene: Scene) -> None:
        bar_width = WIDE_BAR if self._live.console.width >= WIDE else NARROW_BAR
        self._live.update(Group(_models(scene, bar_width), _progress(scene, bar_width)), refresh=True)

    def say(self, line: str) -> None:
        self._live.console.print(Text(line), soft_wrap=True)


class Lines:
    """The view in a pipe or a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next_s = 0.0

    def show(self, scene: Scene) -> None:
        if scene.elapsed_s >= self._next_s:
            self._next_s = (scene.elapsed_s // LINE_EVERY_S + 1) * LINE_EVERY_S
            self.say(line(scene))

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)
        self._console.file.flush()


def line(scene: Scene) -> str:
    """Returns a scene as one line."""
    tasks = scene.tasks
    counts = f"{tasks.waiting:>5,} waiting {tasks.running:>3} in flight {scene.solved:>5,} solved {tasks.failed} failed"
    return f"{clock(scene.elapsed_s)} {counts} {scene.calls_60s:>5,} calls in 60 s  {outlook(scene)}".rstrip()


def clock(seconds: float) -> str:
    """Returns seconds as `1:05`."""
    whole = max(0, int(seconds))
    return f"{whole // 60}:{whole % 60:02d}"


def _models(scene: Scene, bar_width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("model", no_wrap=True)
    table.add_column("limit/min", justify="right")
    table.add_column("calls in 60 s", width=bar_width)
    for heading in ("", "in flight", "solved"):
        table.add_column(heading, justify="right")
    for model, base in scene.base_rpm.items():
        if row := scene.models.get(model):
            # The limit was lowered below the calls of its window: no call is granted until there is headroom.
            waits = row.calls_60s > row.rpm
            table.add_row(
                model,
                Text(f"{row.rpm:,}", style="" if row.rpm == base else "bold yellow"),
                _bar(row.calls_60s, row.rpm, bar_width, "yellow" if waits else "green"),
                Text(f"{row.calls_60s:,}", style="yellow" if waits else ""),
                str(row.running),
                f"{row.solved:,}",
            )
    return table


def _bar(part: int, whole: int, width: int, full_style: str) -> ProgressBar:
    return ProgressBar(
        total=max(1, whole), completed=min(part, whole), width=width, complete_style="cyan", finished_style=full_style
    )


def _progress(scene: Scene, bar_width: int) -> Table:
    grid = Table.grid(padding=(0, 2))
    failed = [Text(f"{scene.tasks.failed} failed", style="red")] if scene.tasks.failed else []
    grid.add_row(
        Text(clock(scene.elapsed_s), style="bold"),
        _bar(scene.solved, scene.total, bar_width, "green"),
        f"{scene.solved:,} of {scene.total:,} solved",
        f"{scene.tasks.running} in flight",
        *failed,
        outlook(scene),
    )
    return grid


def outlook(scene: Scene) -> str:
    """Returns what the run waits for, or the least remaining time at the rate of the limits."""
    rpm = sum(row.rpm for row in scene.models.values())
    if not scene.tasks.waiting or not rpm:
        return "the last answers" if scene.tasks.running else ""
    # The ledger looks back a little further than 60 s, so a used-up quota may show one or two calls less.
    if all(row.calls_60s >= 0.95 * row.rpm for row in scene.models.values()) and not scene.tasks.running:
        return "all quotas spent"
    return f"at least {clock(60 * scene.tasks.waiting / rpm)} left"
