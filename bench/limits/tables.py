"""Tables, figures and targets of the page, from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from bench.limits.fleet import FREEZE_S, Freeze, Run
from bench.limits.judge import Verdict
from bench.limits.page import Target
from bench.limits.tokens import Found
from bench.parts import prose, table

MINUTE_KINDS = ("sliding", "bucket", "minute")
SHORT_KINDS = {"10 s": "ten-seconds", "1 s": "second"}
KINDS = {**{kind: kind for kind in MINUTE_KINDS}, **SHORT_KINDS}  # the names here, and those of the fake backend


def verdicts(found: Mapping[str, Verdict]) -> str:
    head = ("model", "R", "calls", "use", "worst 60 s", "windows over", *(f"429s: {name}" for name in KINDS))
    rows = [
        (name, v.rpm, f"{v.calls:,}", f"{v.use:.2%}", f"{v.worst:,}", v.over, *_refused(v)) for name, v in found.items()
    ]
    return table(head, rows)


def compared(found: Sequence[tuple[str, str, Verdict]]) -> str:
    """Returns the table of (algorithm, its users, verdict)."""
    head = ("algorithm", "as in", "use", "worst 60 s", "windows over", *(f"429s: {name}" for name in KINDS))
    rows = [(name, who, f"{v.use:.1%}", f"{v.worst:,}", f"{v.over:,}", *_refused(v)) for name, who, v in found]
    return table(head, rows)


def _refused(verdict: Verdict) -> list[str]:
    return [f"{verdict.refused[kind]:,}" for kind in KINDS.values()]


def token_modes(found: Sequence[Found]) -> str:
    columns = {
        "token_mode": [f.what for f in found],
        "charged before": [f.reserved for f in found],
        "limit": [f"{f.limit:,}" for f in found],
        "calls/min": [f"{f.calls_per_minute:.0f}" for f in found],
        "windows over": [f"{f.over} of {f.windows:,}" for f in found],
        "use": [f"{f.use:.1%}" for f in found],
        "worst 60 s": [f"{f.worst:.1%}" for f in found],
        "overshoot, mean": [f"{f.overshoot_mean:.1%}" for f in found],
        "overshoot, worst": [f"{f.overshoot_worst:.1%}" for f in found],
        "calls above their charge": [f"{f.under_reserved:.0%}" for f in found],
    }
    return table(list(columns), list(zip(*columns.values(), strict=True)))


# --- a run in real time -----------------------------------------------------------------------------------------


def freezes(planned: Sequence[Freeze]) -> str:
    each = [f"after {f.at_s / 60:.1f} min one with a lease of {f.lease_s:g} s" for f in planned]
    return f"A worker that holds grants is stopped (SIGSTOP) for {FREEZE_S:g} s: {', '.join(each)}."


def facts(run: Run) -> str:
    calls = sum(len(times) for times in run.arrivals.values())
    beyond = sum(seconds > run.guard_s for seconds in run.arrived_after_s)
    cpu = ", ".join(f"{kind} {seconds / run.end_s:.2f}" for kind, seconds in sorted(run.cpu_s.items()))
    return prose(
        f"""{calls:,} calls, {run.stalls} stalls of a second, {run.late_grants:,} grants returned unsent because they
        were late, {run.lost} attempts lost with their worker. Grants of a frozen worker: {grants_of_frozen(run)}.
        From the grant to the first byte {_spread(run.sent_after_s)}; from the grant to the arrival at the backend
        {_spread(run.arrived_after_s)}, for {beyond:,} calls more than the guard. CPU in cores: {cpu}."""
    )


def grants_of_frozen(run: Run) -> str:
    return "; ".join(
        f"{f.returned} returned, {f.swept} swept, {f.arrived} sent (lease {f.lease_s:g} s)" for f in run.frozen
    )


def _spread(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    p50, p99 = (1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {1000 * ordered[-1]:.0f} ms"


# --- targets ----------------------------------------------------------------------------------------------------


def minute_targets(what: str, found: Mapping[str, Verdict], least_use: float) -> list[Target]:
    """Returns the targets of each model: no window over, no refusal of a provider by the minute, and the least use."""
    over = sum(v.over for v in found.values())
    refused = sum(v.refused[kind] for v in found.values() for kind in MINUTE_KINDS)
    lowest = min(v.use for v in found.values())
    mean = fmean(v.use for v in found.values())
    return [
        Target(f"{what}: windows over, by arrivals", "0", str(over), over == 0),
        Target(f"{what}: 429s of bucket, sliding and clock minute", "0", str(refused), refused == 0),
        Target(f"{what}: use of each model", f"≥ {least_use:.1%}", f"{lowest:.2%} to {mean:.2%}", lowest >= least_use),
    ]


def short_targets(window: str, found: Mapping[str, Verdict], least_use: float) -> list[Target]:
    refused = sum(v.refused[SHORT_KINDS[window]] for v in found.values())
    lowest = min(v.use for v in found.values())
    return [
        Target(f"burst_windows of {window}: 429s of the {window} emulator", "0", str(refused), refused == 0),
        Target(f"burst_windows of {window}: use", f"≥ {least_use:.0%}", f"{lowest:.2%}", lowest >= least_use),
    ]


def freeze_target(run: Run) -> Target:
    """Returns the target: returned if the lease outlives the freeze, else swept with the worker; never sent."""
    is_met = all(
        frozen.arrived == 0 and (frozen.returned if frozen.lease_s > FREEZE_S else frozen.swept) > 0
        for frozen in run.frozen
    )
    return Target("late grants of a frozen worker", "returned unsent", grants_of_frozen(run), is_met)
