"""The parts of the report: the runs, and the section of the page that each one gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.limits import discrete, fleet, ledger, tables, tokens
from bench.limits.algorithms import OTHERS
from bench.limits.fleet import Freeze, Model, Plan, Run
from bench.limits.judge import Verdict, judge
from bench.limits.page import PICTURE, Section, Target
from bench.limits.picture import Curve
from bench.parts import prose

# The ten measured models; fast ones have limits of thousands of calls a minute.
RPM = {
    "groq-llama-2-70b": 3000,
    "anyscale-llama-2-70b": 3000,
    "together-llama-2-13b": 600,
    "fireworks-llama-2-70b": 600,
    "lepton-llama-2-70b": 600,
    "kimi-k2.5": 600,
    "perplexity-llama-2-70b": 60,
    "bedrock-llama-2-70b": 60,
    "replicate-llama-2-70b": 60,
    "deepseek-v3.2": 60,
}
FASTEST = next(iter(RPM))
BURST_WINDOWS: Mapping[str, Mapping[str, float]] = {"10 s": {"10": 0.16667}, "1 s": {"1": 0.016667}}
LEAST_USE = {"10 s": 0.90, "1 s": 0.54}
RATES = (60, 600, 3000)
DRAWN_RPM = 600
SEED = 1


@dataclass(frozen=True, slots=True)
class Size:
    """The size of the measurement. `--quick` means two minutes of real time, and less of everything."""

    minutes: float
    is_quick: bool
    scale: float

    @property
    def seconds(self) -> float:
        return self.minutes * 60

    @property
    def command(self) -> str:
        given = [f"--minutes {self.minutes:g}"] if self.minutes != 10 else []
        given += [f"--scale {self.scale:g}"] if self.scale != 1 else []
        return f'make bench-limits ARGS="{" ".join(given)}"' if given else "make bench-limits"

    def models(self) -> list[Model]:
        return [Model(name, self.rpm(rpm)) for name, rpm in RPM.items()]

    def rpm(self, rpm: int) -> int:
        return max(1, round(rpm * self.scale))


def real(size: Size) -> Section:
    """Measures llmqueue with its default guard: the ten models, and some models with shorter windows."""
    ten = size.models()
    short = {
        window: [Model(f"judged by {window}, {size.rpm(rpm)}", size.rpm(rpm), shares) for rpm in RATES[:2]]
        for window, shares in BURST_WINDOWS.items()
    }
    freezes = [Freeze(0, FASTEST, 0.3 * size.seconds, 60.0)]
    if size.minutes >= 5:
        freezes.append(Freeze(1, FASTEST, 0.6 * size.seconds, 20.0))
    run = fleet.run(Plan([*ten, *short["10 s"], *short["1 s"]], size.seconds, freezes=freezes))
    found = _judged(run, ten)
    found_short = {window: _judged(run, models) for window, models in short.items()}
    targets = tables.minute_targets("ten models", found, 0.985)
    targets += [
        tables.freeze_target(run),
        Target("`llmqueue audit` of the same run", "no violation", run.audit, run.audit == "no violation"),
    ]
    for window, verdicts in found_short.items():
        targets += tables.short_targets(window, verdicts, LEAST_USE[window])
    what = f"""{fleet.WORKERS} worker processes and {len(ten)} models for {size.minutes:g} minutes, with more backlog
        than they can take and latencies of measured models. A proxy delays each request by 0 to 250 ms after the worker
        has sent it. The event loop of each worker stalls for a second every 20 to 40 s. {tables.freezes(freezes)}"""
    what_short = """In the same run, models of providers that also judge by less than a minute, with `burst_windows` set
        to `{"10": 0.16667}` and `{"1": 0.016667}`. At most w / (w + guard + 0.25 s) of a window of w seconds can be
        used: 93 % and 57 %."""
    text = "\n\n".join(
        [
            "## In real time",
            prose(what),
            tables.verdicts(found),
            tables.facts(run),
            prose(what_short),
            tables.verdicts({name: v for verdicts in found_short.values() for name, v in verdicts.items()}),
        ]
    )
    drawn = next(model for model in ten if RPM[model.name] == DRAWN_RPM)
    curve = Curve(f"llmqueue, real processes ({drawn.name})", run.arrivals[drawn.name], found[drawn.name])
    return Section(text, targets, [curve])


def tuned(size: Size) -> Section:
    """Measures a guard for a short network delay, for half the time."""
    minutes = 1.5 if size.is_quick else size.minutes / 2
    freezes = [Freeze(0, FASTEST, 0.4 * minutes * 60, 60.0)]
    run = fleet.run(Plan(size.models(), minutes * 60, guard_s=0.25, way_s=0.1, freezes=freezes))
    found = _judged(run, size.models())
    what = f"""The same with `LLMQUEUE_GUARD_S=0.25` and delays of 0 to 100 ms, for {minutes:g} minutes. The worker has
        two fifths of the guard: it sends a call within 100 ms or returns it. The rest covers differences in network
        delay. A smaller guard uses more of the quota and suits a backend that is near."""
    text = "\n\n".join(["## With a guard of 0.25 s", prose(what), tables.verdicts(found), tables.facts(run)])
    return Section(text, tables.minute_targets("ten models, guard 0.25 s", found, 0.99))


def _judged(run: Run, models: list[Model]) -> dict[str, Verdict]:
    return {model.name: judge(run.arrivals[model.name], model.rpm, run.end_s) for model in models}


def others(size: Size) -> Section:
    """Compares other algorithms and llmqueue's SQL functions in simulated time."""
    seconds = 150.0 if size.is_quick else size.seconds
    rows: dict[int, list[tuple[str, str, Verdict]]] = defaultdict(list)
    curves = []
    with ledger.accelerated_server() as server:
        for rate in RATES:
            for name, guard_s, burst_windows in _ours(is_all=rate == DRAWN_RPM or not size.is_quick):
                rpm = size.rpm(rate)
                arrivals, late = ledger.run(server, rpm, seconds, SEED, guard_s=guard_s, burst_windows=burst_windows)
                verdict = judge(arrivals, rpm, seconds)
                rows[rate].append((f"**{name}**", f"its SQL; {late} grants returned late", verdict))
                if rate == DRAWN_RPM and name == "llmqueue":
                    curves.append(Curve("llmqueue, its SQL functions", arrivals, verdict))
    for rate in RATES:
        for algorithm in OTHERS:
            arrivals = discrete.run(algorithm, size.rpm(rate), seconds, SEED)
            verdict = judge(arrivals, size.rpm(rate), seconds)
            rows[rate].append((algorithm.name, algorithm.known_from, verdict))
            if rate == DRAWN_RPM:
                curves.append(Curve(algorithm.name, arrivals, verdict))
    what = f"""Here time is simulated, alike for all: {seconds / 60:g} minutes, {discrete.PROCESSES} processes with
        endless work, the same faults at the same moments (`bench/limits/discrete.py`). Each algorithm is implemented as
        documented (`bench/limits/algorithms.py`); llmqueue runs its shipped SQL functions. The processes begin 47 s
        after a full minute, ask for one call at a time and wait exactly as long as the limiter says. Products do more
        than their algorithm; this compares the algorithms."""
    drawn = f"![Calls of the last 60 s by algorithm, limit {size.rpm(DRAWN_RPM)}]({PICTURE.name})"
    caption = "In the picture the 429s are those of a sliding minute / a bucket / a minute of the clock."
    texts = ["## Other algorithms, the same load", prose(what), drawn, caption]
    for rate, found in rows.items():
        texts += [f"### R = {size.rpm(rate)}", tables.compared(found)]
    return Section("\n\n".join(texts), [], curves)


def _ours(*, is_all: bool) -> list[tuple[str, float, Mapping[str, float] | None]]:
    """Returns the variants of llmqueue: name, guard, burst_windows."""
    default: list[tuple[str, float, Mapping[str, float] | None]] = [("llmqueue", 0.5, None)]
    more = [
        ("llmqueue, guard 0.25 s", 0.25, None),
        *((f"llmqueue, burst_windows {window}", 0.5, shares) for window, shares in BURST_WINDOWS.items()),
    ]
    return [*default, *more] if is_all else default


def token_modes(size: Size) -> Section:
    """Measures each token_mode with the Azure trace."""
    trace = tokens.read_trace()
    if trace is None:
        missing = f"Omitted: azure_conv.csv.gz is missing; {tokens.TRACE} can name another file."
        return Section(f"## Tokens\n\n{missing}")
    found = []
    with ledger.accelerated_server() as server:
        for tpm, seconds in ((60_000, 240.0),) if size.is_quick else ((60_000, 900.0), (600_000, 300.0)):
            for mode in tokens.MODES:
                found += tokens.measure(server, mode, size.rpm(tpm), trace, seconds)
    over, windows = sum(each.over for each in found), sum(each.windows for each in found)
    what = f"""The token counts of the Azure LLM inference trace (conversations; {len(trace):,} calls, CC BY 4.0,
        Patel et al., Splitwise, ISCA 2024) through each `token_mode`, in simulated time. Only the counts come from the
        trace: a prompt has {tokens.BYTES_PER_TOKEN:g} bytes per token, ± {tokens.SPREAD:.0%}, an answer takes
        {tokens.FIRST_S:g} s plus {1000 * tokens.PER_TOKEN_S:g} ms per token, and max_output is {tokens.MAX_OUTPUT:,}.
        The first {tokens.WARM_S / 60:g} minutes, in which estimates are learned, are left out. *Windows over* had more
        charged than the limit when their calls were sent. *Use* and *worst 60 s* refer to what the mode counts, once
        the usage is known. *Overshoot* is what the calls of a window used beyond their charges; it bounds how far a
        window can exceed the limit."""
    target = Target("tokens charged, every mode", "0 windows over", f"{over} of {windows:,}", over == 0)
    return Section("\n\n".join(["## Tokens", prose(what), tables.token_modes(found)]), [target])


ALL: dict[str, Callable[[Size], Section]] = {"real": real, "tuned": tuned, "others": others, "tokens": token_modes}
