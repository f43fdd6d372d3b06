"""Real token counts through each token_mode, with the shipped SQL and a simulated clock.

The counts are those of the Azure LLM inference trace (conversations, CC BY 4.0, Patel et al., Splitwise, ISCA 2024).
The trace is not part of the project; only results computed from it are published. It has no prompts, so each prompt
here gets four bytes per token, ± 15 %, which makes estimates as wrong as real ones.
"""

from __future__ import annotations

import csv
import gzip
import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import accumulate, cycle
from pathlib import Path
from random import Random
from statistics import fmean

from bench.limits import ledger
from bench.limits.discrete import AWAKE_S, BEGIN_S, Process
from bench.limits.ledger import MODEL, Connection
from llmqueue.forecast import simulated_clock
from llmqueue.forecast.scheduler import T0
from llmqueue.forecast.timeline import Timeline
from llmqueue.types import Grant, Usage
from llmqueue.worker.maintenance import CALIBRATE_S

TRACE = "BENCH_AZURE_TRACE"  # the environment variable that names another file
USUAL_PLACE = Path(__file__).parents[2].parent / "shared" / "data" / "azure_conv.csv.gz"
WINDOW_S = 60.0
MAX_OUTPUT = 1000  # the longest answer of the trace, which its callers would have had to allow
BYTES_PER_TOKEN = 4.0
SPREAD = 0.15
# Latency of an answer: the time to the first token, and the time per token.
FIRST_S = 0.5
PER_TOKEN_S = 0.03
WARM_S = 180.0  # the time in which estimates are learned; it is not judged
OUTPUT_SHARE = 0.22  # output_tpm of tpm, about as in the trace's first half hour: both limits bind at times


@dataclass(frozen=True, slots=True)
class Mode:
    """A token_mode. For `actual`, SQL that runs after each calibration decides the tokens reserved for the answer."""

    name: str
    reserved: str
    token_mode: str
    after_learning: str = ""


MODES = (
    Mode("input", "95th percentile of the estimate", "input"),
    Mode("sum", "input + max_output", "sum"),
    Mode("max", "the larger of input and max_output", "max"),
    Mode("split", "input; mean output + margin", "split"),
    Mode("actual", "mean + margin (llmqueue)", "actual"),
    Mode("actual", "max_output", "actual", "update llmqueue.model_state set output_mean = null, output_sd = null"),
    Mode("actual", "plain mean", "actual", "update llmqueue.model_state set output_sd = 0"),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    input_tokens: int
    output_tokens: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Charge:
    """A call: its charge when it was sent, and its corrected charge when the usage was known."""

    at_s: float
    known_s: float
    charged: int
    final: int
    used: int  # the tokens that it really used, of the kind that the limit counts


@dataclass(frozen=True, slots=True)
class Found:
    """One mode at one limit; shares are shares of the limit, over all windows of 60 s.

    `over` counts the windows with more charged than the limit. `worst` is the fullest window by the corrected charges.
    `overshoot_*` is what the calls of a window used beyond their charges.
    """

    what: str
    reserved: str
    limit: int
    calls_per_minute: float
    windows: int
    over: int
    use: float
    worst: float
    overshoot_mean: float
    overshoot_worst: float
    under_reserved: float  # the share of calls that used more than their charge


def read_trace() -> list[Prompt] | None:
    """Returns the calls of the trace in their order, or None if the file is missing."""
    path = Path(os.environ.get(TRACE) or USUAL_PLACE)
    if not path.exists():
        return None
    rng = Random(1)
    prompts = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            tokens = int(row["ContextTokens"])
            size = round(tokens * BYTES_PER_TOKEN * math.exp(rng.gauss(0, SPREAD)))
            prompts.append(Prompt(tokens, int(row["GeneratedTokens"]), max(1, size)))
    return prompts


def measure(server: str, mode: Mode, tpm: int, trace: Sequence[Prompt], seconds: float) -> list[Found]:
    """Lets two workers send for `seconds` after the warm-up and judges the charges; `split` has two limits."""
    columns: dict[str, object] = {"token_mode": mode.token_mode, "tpm": tpm, "max_output": MAX_OUTPUT}
    if mode.token_mode == "split":
        columns["output_tpm"] = round(tpm * OUTPUT_SHARE)
    until_s = BEGIN_S + WARM_S + seconds
    with ledger.queue(server, tpm, 0.5, columns) as (conn, scheduler):
        prompts = _fill(conn, trace, tpm * (WARM_S + seconds) / 60)
        timeline = Timeline()
        timeline.now = BEGIN_S
        for number in range(2):
            process = Process(timeline, Random(number), until_s, is_frozen=False)
            worker = ledger.Worker(process, scheduler, lambda _at_s: None, partial(_answer, prompts))
            process.after(AWAKE_S, worker.ask)
        _plan_learning(conn, timeline, mode)
        while timeline.step(until_s):
            pass
        inputs, outputs = _charges(conn, mode.token_mode)
    judged = partial(_judge, from_s=BEGIN_S + WARM_S, until_s=until_s)
    if mode.token_mode != "split":
        return [judged(mode.token_mode, mode.reserved, tpm, inputs)]
    return [
        judged("split, input", "input, at the 95th percentile", tpm, inputs),
        judged("split, output", "mean + margin", round(tpm * OUTPUT_SHARE), outputs),
    ]


def _fill(conn: Connection, trace: Sequence[Prompt], input_tokens: float) -> list[Prompt]:
    """Inserts and returns prompts with `input_tokens` tokens in all; repeats the trace if it is too short."""
    prompts, left = [], input_tokens
    for prompt in cycle(trace):
        if left <= 0:
            break
        prompts.append(prompt)
        left -= prompt.input_tokens
    conn.execute(
        "insert into tasks (prompt, model, created_at)"
        " select repeat('x', size), %s, %s from unnest(%s::integer[]) with ordinality given(size, no) order by no",
        (MODEL, T0, [prompt.size for prompt in prompts]),
    )
    conn.execute("vacuum analyze")
    return prompts


def _answer(prompts: Sequence[Prompt], grant: Grant) -> tuple[Usage, float]:
    prompt = prompts[int(str(grant.task.id)) - 1]
    return Usage(prompt.input_tokens, prompt.output_tokens), FIRST_S + PER_TOKEN_S * prompt.output_tokens


def _plan_learning(conn: Connection, timeline: Timeline, mode: Mode) -> None:
    def learn() -> None:
        conn.execute(simulated_clock.SET, (T0 + timedelta(seconds=timeline.now),))
        conn.execute("select llmqueue_internal.calibrate()")
        if mode.after_learning:
            conn.execute(mode.after_learning)
        timeline.at(timeline.now + CALIBRATE_S, learn)

    timeline.at(timeline.now + CALIBRATE_S, learn)


def _charges(conn: Connection, token_mode: str) -> tuple[list[Charge], list[Charge]]:
    """Returns the charges against tpm, and those against output_tpm, in the order of sending."""
    rows = conn.execute(
        """
        select extract(epoch from a.sent_at - %s)::float8, extract(epoch from a.ended_at - %s)::float8,
               a.tokens + coalesce(a.top_up_tokens, 0), coalesce(a.tokens_final, a.tokens),
               a.input_tokens, a.output_tokens, a.output_tokens_charged, a.output_tokens_final
          from llmqueue.attempt a where a.outcome = 'completed' order by a.sent_at
        """,
        (T0, T0),
    ).fetchall()
    inputs, outputs = [], []
    for at_s, known_s, charged, final, input_tokens, output_tokens, output_charged, output_final in rows:
        used = input_tokens if token_mode in {"input", "split"} else input_tokens + output_tokens
        inputs.append(Charge(at_s, known_s, charged, final, used))
        if token_mode == "split":
            outputs.append(Charge(at_s, known_s, output_charged, output_final, output_tokens))
    return inputs, outputs


def _judge(what: str, reserved: str, limit: int, charges: Sequence[Charge], *, from_s: float, until_s: float) -> Found:
    times = [charge.at_s for charge in charges]
    final = [0, *accumulate(charge.final for charge in charges)]
    beyond = [0, *accumulate(max(0, charge.final - charge.charged) for charge in charges)]
    over = 0
    finals, beyonds = [], []
    judged = range(bisect_left(times, from_s), bisect_left(times, until_s))
    for last in judged:
        first = bisect_right(times, times[last] - WINDOW_S)
        finals.append(final[last + 1] - final[first])
        beyonds.append(beyond[last + 1] - beyond[first])
        held = sum(_held(charge, times[last]) for charge in charges[first : last + 1])
        over += held > limit
    seconds = range(math.ceil(from_s), math.floor(until_s))
    sums = [final[bisect_right(times, at)] - final[bisect_right(times, at - WINDOW_S)] for at in seconds]
    return Found(
        what=what,
        reserved=reserved,
        limit=limit,
        calls_per_minute=60 * len(judged) / (until_s - from_s),
        windows=len(judged),
        over=over,
        use=fmean(sums) / limit,
        worst=max(finals) / limit,
        overshoot_mean=fmean(beyonds) / limit,
        overshoot_worst=max(beyonds) / limit,
        under_reserved=fmean(charges[no].final > charges[no].charged for no in judged),
    )


def _held(charge: Charge, at_s: float) -> int:
    """Returns the tokens that the call holds at that time: its charge, or less once its lower usage is known."""
    return min(charge.charged, charge.final) if charge.known_s <= at_s else charge.charged
