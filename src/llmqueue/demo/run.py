"""One run of the demo, from an empty folder to the verdict."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from llmqueue.db.connect import connect
from llmqueue.demo import live, processes, scenario, stage, table
from llmqueue.demo.prompts import make_prompts
from llmqueue.demo.verdict import Verdict, judge, read_rows
from llmqueue.demo.windows import Period, change_periods
from llmqueue.fake_backend import read_calls

if TYPE_CHECKING:
    import psycopg
    from psycopg.rows import TupleRow
    from rich.console import Console

    from llmqueue.demo.live import Scene, View
    from llmqueue.demo.processes import Child, Processes
    from llmqueue.demo.stage import Home


@dataclass(frozen=True, slots=True)
class Changed:
    """The begin and the commit of the change of the limit, in monotonic seconds."""

    begun_s: float
    committed_s: float


@dataclass(frozen=True, slots=True)
class Stage:
    """The state when the workers start."""

    dsn: str
    backend_url: str
    solved_before: tuple[object, ...] | None


def run(console: Console, home: Home, program: str) -> tuple[Verdict, str]:
    """Runs the scenario and returns its verdict and the DSN of its database. All its processes end with it."""
    with stage.only_one(home), processes.running(home.logs) as children:
        ready = _set_up(console, home, children, program)
        with connect(ready.dsn, application_name="llmqueue demo") as conn, live.view(console) as view:
            workers = _start_workers(children, ready, home)
            play = Play(conn, view, ready.backend_url)
            play.until_ended(workers)
            problems = [*play.problems, *_ended_badly(workers)]
            children.stop()  # the call log is complete when the backend has ended
            if table.solved_before(conn) != ready.solved_before:
                problems.append("rows that were solved before were changed")
            verdict = judge(read_rows(conn), read_calls(home.calls), play.periods(), problems)
        return verdict, ready.dsn


def _set_up(console: Console, home: Home, children: Processes, program: str) -> Stage:
    """Prepares everything for the first call, in parallel where possible."""

    def say(*lines: str) -> None:
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    began = time.monotonic()
    backend = children.start_backend(_backend_options(home))
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(make_prompts, scenario.SOLVED_BEFORE + scenario.WAITING)
        dsn = stage.fresh_database(home)
        say(f"PostgreSQL   its own, in {home.folder}")
        prompts = reading.result()
    with connect(dsn, application_name="llmqueue demo") as conn:
        table.create(conn, prompts)
        say(*_about_table(len(prompts)))
        solved_before = table.solved_before(conn)
        adopting = time.monotonic()
        steps = stage.adopt(dsn)
        stage.configure_models(conn, scenario.RPM)
    say("adopted by   " + " \\\n               ".join(table.init_command(program)))
    say(f"             {steps} steps, {time.monotonic() - adopting:.1f} s")
    url = processes.backend_url(backend)
    say(*_about_backend(url))
    say(f"workers      {scenario.WORKERS} processes; logs in {home.logs}")
    say(f"             all this took {time.monotonic() - began:.1f} s")
    return Stage(dsn, url, solved_before)


def _about_table(prompts: int) -> tuple[str, str]:
    return (
        f"their table  {table.TABLE}: {prompts:,} prompts made of Python's docstrings;",
        f"             uuid key, own words, a trigger, a foreign key; {scenario.SOLVED_BEFORE} solved already",
    )


def _about_backend(url: str) -> tuple[str, str]:
    low, high = min(scenario.RPM.values()), max(scenario.RPM.values())
    return (
        f"backend      {url}, simulated: {len(scenario.RPM)} models, {scenario.SPEED:g} times faster",
        f"             than real; refuses calls over {low} to {high:,} a minute (429)",
    )


def _backend_options(home: Home) -> list[str]:
    limits = [option for model, rpm in scenario.RPM.items() for option in ("--limit", f"{model}={rpm}")]
    pace = ["--speed", f"{scenario.SPEED:g}", "--seed", str(scenario.SEED)]
    return [*pace, *limits, "--log", str(home.calls)]


def _start_workers(children: Processes, ready: Stage, home: Home) -> list[Child]:
    settings = {"DATABASE_URL": ready.dsn, "BACKEND_URL": ready.backend_url, "LOG_FORMAT": "json"}
    settings["HOME"] = str(home.folder)
    return [children.start_worker(number, settings) for number in range(1, scenario.WORKERS + 1)]


def _ended_badly(workers: Sequence[Child]) -> list[str]:
    return [
        f"{worker.name} ended with exit code {worker.process.returncode}: {worker.last_line()} (log: {worker.log})"
        for worker in workers
        if worker.process.returncode not in {0, None}
    ]


class Play:
    """Shows the workers at work, and changes one limit half-way."""

    def __init__(self, conn: psycopg.Connection[TupleRow], view: View, backend_url: str) -> None:
        self._conn = conn
        self._view = view
        self._backend_url = backend_url
        self._changed: Changed | None = None
        self._is_backend_told = False
        self._is_waiting_for_headroom = False
        self.problems: list[str] = []

    def until_ended(self, workers: Sequence[Child]) -> None:
        """Returns when the workers have ended, or with a problem if they take far too long."""
        began = time.monotonic()
        while any(worker.is_running for worker in workers):
            elapsed_s = time.monotonic() - began
            if elapsed_s > scenario.GIVE_UP_AFTER_S:
                self.problems.append(f"the workers have not ended within {scenario.GIVE_UP_AFTER_S:.0f} s")
                return
            self._show(elapsed_s)
            self._tell_backend(elapsed_s)
            if self._changed is None and elapsed_s >= scenario.CHANGE.after_s:
                self._change(elapsed_s)
            # On a fixed grid, so that the time of the queries does not add up.
            time.sleep(live.REFRESH_S - (time.monotonic() - began) % live.REFRESH_S)
        if self._changed is None:
            self.problems.append("the workers ended before the limit was changed")

    def periods(self) -> Mapping[str, Sequence[Period]]:
        """Returns the periods of each limit of each model, on the monotonic clock."""
        held = {model: [Period(float("-inf"), rpm)] for model, rpm in scenario.RPM.items()}
        change, changed = scenario.CHANGE, self._changed
        if changed:
            held[change.model] = change_periods(
                scenario.RPM[change.model], change.rpm, changed.begun_s, changed.committed_s, scenario.GRACE_S
            )
        return held

    def _show(self, elapsed_s: float) -> None:
        scene = live.read_scene(self._conn, elapsed_s, scenario.RPM, scenario.SOLVED_BEFORE)
        self._view.show(scene)
        if self._is_waiting_for_headroom and _used(scene) < scenario.CHANGE.rpm:
            self._is_waiting_for_headroom = False
            self._say(elapsed_s, f"{scenario.CHANGE.model}: there is headroom again, calls continue")

    def _change(self, elapsed_s: float) -> None:
        change = scenario.CHANGE
        begun_s = time.monotonic()
        stage.set_rpm(self._conn, change.model, change.rpm)
        self._changed = Changed(begun_s, time.monotonic())
        scene = live.read_scene(self._conn, elapsed_s, scenario.RPM, scenario.SOLVED_BEFORE)
        self._say(elapsed_s, change.sql)
        if (used := _used(scene)) >= change.rpm:
            self._is_waiting_for_headroom = True
            self._say(elapsed_s, f"  {used:,} calls in its last 60 s: it waits until there is headroom for a new one")

    def _tell_backend(self, elapsed_s: float) -> None:
        """Lowers the backend's limit too, once no call that was granted before the change can still arrive."""
        change = scenario.CHANGE
        if self._changed is None or self._is_backend_told:
            return
        if time.monotonic() >= self._changed.committed_s + scenario.GRACE_S:
            httpx.put(f"{self._backend_url}/limits", json={change.model: change.rpm}).raise_for_status()
            self._is_backend_told = True
            self._say(elapsed_s, f"  from now on the backend, too, refuses calls over {change.rpm:,}")

    def _say(self, elapsed_s: float, text: str) -> None:
        self._view.say(f"{live.clock(elapsed_s)} {text}")


def _used(scene: Scene) -> int:
    row = scene.models.get(scenario.CHANGE.model)
    return row.calls_60s if row else 0
