"""The time to drain a backlog, compared with the least time that its quotas allow and with today's process (today.py).

Real prompts (GSM8K, from BENCH_GSM8K), latencies of ten measured models, real windows of 60 s, and a backend that
refuses calls over a quota. Some tasks name a model, some a pool of three, the others may go to any model.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path

import psycopg
from matplotlib.figure import Figure

from bench.limits.judge import judge
from bench.limits.parts import RPM
from bench.parts import PAGE, number, prose, table
from bench.world import embedded_database
from llmqueue.fake_backend.call_log import LoggedCall, read_calls
from tests.support import processes

PROMPTS = "BENCH_GSM8K"
PICTURE = "benchmarks-bound.svg"
POOLS = {"fast": ["groq-llama-2-70b", "anyscale-llama-2-70b", "together-llama-2-13b"]}
SCALE = 0.1
IN_POOL, ANYWHERE = 0.2, 0.4
SEED = 1


def bound(_dsn: str, quick: bool) -> str:
    """Runs both at the same time, each with its own database and backend."""
    limits = {model: int(rpm * SCALE) for model, rpm in RPM.items()}
    tasks = _tasks(limits, 1_200 if quick else 10_000)
    least_s = least_seconds(Counter(model for _, model in tasks), limits)
    folder = Path(tempfile.mkdtemp(prefix="llmqueue-bench-"))
    ours, theirs = folder / "ours", folder / "today"
    ours.mkdir()
    theirs.mkdir()
    with embedded_database() as our_dsn, embedded_database() as their_dsn:
        _fill(our_dsn, tasks, limits)
        _fill(their_dsn, tasks, limits)
        flags = [flag for model, rpm in limits.items() for flag in ("--limit", f"{model}={rpm}")]
        flags += ["--seed", str(SEED)]
        with processes.backend(ours, *flags) as our_url, processes.backend(theirs, *flags) as their_url:
            today = subprocess.Popen([sys.executable, "-m", "bench.today", their_dsn, their_url, *limits])
            env = processes.environment(DATABASE_URL=our_dsn, BACKEND_URL=our_url)
            with processes.workers(ours, 1, "--drain", env=env) as [worker]:
                assert worker.wait(4 * least_s + 600) == 0, worker.output
            try:
                today.wait(2 * least_s)  # for that much longer than ours
            except subprocess.TimeoutExpired:
                today.kill()
                today.wait()
        with psycopg.connect(our_dsn) as conn:
            last_s = number(conn, "select latency_s from llmqueue.attempt order by ended_at desc limit 1")
            unsolved = number(conn, "select count(*) from tasks where status <> 'solved'")
        with psycopg.connect(their_dsn) as conn:
            their_unsolved = number(conn, "select count(*) from tasks where status <> 'solved'")
    our_calls, their_calls = read_calls(ours / "calls.jsonl"), read_calls(theirs / "calls.jsonl")
    _draw(our_calls, their_calls, least_s, len(tasks))
    rows = []
    for name, calls, left in (("llmqueue", our_calls, unsolved), ("today's process", their_calls, their_unsolved)):
        began_at = min(call.arrived_at for call in calls)
        seconds = max(call.finished_at or 0.0 for call in calls) - began_at
        begun_s = max(call.arrived_at for call in calls if call.status == 200) - began_at
        done = left == 0
        rows.append(
            (
                name,
                f"{seconds / 60:.1f} min" if done else f"stopped after {seconds / 60:.1f} min, {left:,} left",
                f"{'' if done else '> '}{begun_s / least_s:.3f}",
                f"{'' if done else '> '}{seconds / (least_s + last_s):.3f}",
                f"{len(calls):,}",
                f"{sum(call.status == 429 for call in calls):,}",
                f"{_over(calls, limits):,}",
            )
        )
    head = (
        "",
        "time",
        "last call begun / least",
        "time / (least + last call)",
        "calls",
        "429s",
        "windows of 60 s over a quota",
    )
    about = f"""{len(tasks):,} prompts of GSM8K; {sum(limits.values())} calls a minute over {len(limits)} models,
        {min(limits.values())} to {max(limits.values())}; {IN_POOL:.0%} of the tasks for a pool of three,
        {ANYWHERE:.0%} for any model, the rest pinned. At an even rate the quotas need {least_s / 60:.2f} minutes with
        the best assignment; the last call took {last_s:.1f} s. A limiter that spends a whole window at its first
        moment could save up to a minute."""
    picture = f"![answers over time]({PICTURE})"
    return f"## Time to drain against the bound\n\n{prose(about)}\n\n{table(head, rows)}\n\n{picture}"


def least_seconds(tasks: Mapping[str | None, int], limits: Mapping[str, int]) -> float:
    """Returns the least time at even rates: the maximum, over all sets of models, of their own tasks by their rate."""
    models = list(limits)
    allowed = {lane: set(POOLS.get(lane or "", [lane] if lane else models)) for lane in tasks}
    sets = chain.from_iterable(combinations(models, size) for size in range(1, len(models) + 1))
    return max(
        60
        * sum(count for lane, count in tasks.items() if allowed[lane] <= set(some))
        / sum(limits[model] for model in some)
        for some in sets
    )


def _tasks(limits: Mapping[str, int], at_most: int) -> list[tuple[str, str | None]]:
    """Returns prompts, each with its lane: a model (drawn by quota), a pool, or None."""
    rng = random.Random(SEED)
    file = Path(os.environ.get(PROMPTS) or Path(__file__).parents[2] / "shared" / "data" / "prompts_gsm8k.jsonl.gz")
    if not file.exists():
        raise SystemExit(f"there are no prompts at {file}: name the file of GSM8K prompts in {PROMPTS}")
    with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines][:at_most]

    def lane() -> str | None:
        drawn = rng.random()
        if drawn < IN_POOL:
            return "fast"
        return None if drawn < IN_POOL + ANYWHERE else rng.choices(list(limits), list(limits.values()))[0]

    return [(prompt, lane()) for prompt in prompts]


def _fill(dsn: str, tasks: Sequence[tuple[str, str | None]], limits: Mapping[str, int]) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn, conn.cursor() as cursor:
        cursor.executemany("insert into llmqueue.model_config (model, rpm) values (%s, %s)", list(limits.items()))
        members = [(pool, model) for pool, models in POOLS.items() for model in models]
        cursor.executemany("insert into llmqueue.pool_member (pool, model) values (%s, %s)", members)
        with cursor.copy("copy tasks (prompt, model) from stdin") as copy:
            for task in tasks:
                copy.write_row(task)
        cursor.execute("vacuum analyze")


def _over(calls: Sequence[LoggedCall], limits: Mapping[str, int]) -> int:
    arrivals: dict[str, list[float]] = defaultdict(list)
    for call in calls:
        arrivals[call.model].append(call.arrived_monotonic)
    return sum(judge(found, limits[model], max(found)).over for model, found in arrivals.items())


def _draw(ours: Sequence[LoggedCall], theirs: Sequence[LoggedCall], least_s: float, tasks: int) -> None:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    for name, calls in (("llmqueue", ours), ("today's process", theirs)):
        began_at = min(call.arrived_at for call in calls)
        ends = sorted((call.finished_at - began_at) / 60 for call in calls if call.status == 200 and call.finished_at)
        axes.plot(ends, range(1, len(ends) + 1), label=name)
    axes.plot([0, least_s / 60], [0, tasks], linestyle=":", color="grey", label="what the quotas allow")
    axes.set_xlabel("minutes")
    axes.set_ylabel("answers")
    axes.legend()
    figure.savefig(PAGE.parent / PICTURE, metadata={"Date": None})
