"""What `llmqueue why` says of a ready task: of each model that could take it, and of the tasks that go first."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from llmqueue.cli.output import duration
from llmqueue.cli.reasons import NO_WORKER, OF_TASK, Why, deadline, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Reasons that end by themselves; the others wait for a person, and no time can be named.
PASSING: Final = frozenset(
    {None, "behind", "backend", "cooldown", "probe", "concurrency", "rpm", "tpm", "burst", "day", "pace", "clock"}
)
# Of these it is not known how fast they go on.
SHUT: Final = frozenset({"backend", "cooldown", "probe", "day"})
# More models than this that wait for the same are one line, which names the first few.
MOST_LINES: Final = 5
NAMED: Final = 3
# What is said of many models, and what to do.
OF_MANY: Final[dict[str | None, tuple[str, str]]] = {
    "unknown": ("are not configured by anybody", ". Run: llmqueue models set NAME --rpm N"),
    "paused": ("are paused", ". Run: llmqueue models resume NAME"),
    "never_fits": ("can never take it, its charge is above their limits", ""),
    "no_worker": ("have no live worker", f". {NO_WORKER}"),
    "backend": ("wait for the backend, with which the workers have trouble", ""),
    "cooldown": ("are in cooldown", ""),
    "probe": ("are in cooldown, each with a probe under way", ""),
    "concurrency": ("have their concurrency full", ""),
    "behind": ("have room, but better tasks go first", ""),
    None: ("have room", ""),
}
LIMITS: Final = ("rpm", "tpm", "output_tpm", "rpd", "tpd", "max_concurrency")


def sentences(rows: Sequence[Why]) -> list[str]:
    """What the rows of one task say: the first sentence names the task, what is more comes below."""
    first = rows[0]
    if first.reason in OF_TASK:
        said, *more = OF_TASK[first.reason](first)
        return [f"task {first.key} {said}", *more]
    said = "could be claimed now" if any(row.reason is None for row in rows) else "waits"
    if len(rows) == 1:
        return [f"task {first.key} {said}: {_of_model(first)}", *_place(rows)]
    pool = f'pool "{first.detail["lane"]}"' if first.has("lane") else "default pool"
    models = [f"  {line}" for line in _of_models(rows)]
    return [f"task {first.key} {said} ({pool}, {plural(len(rows), 'model')}):", *models, *_place(rows)]


def _of_models(rows: Sequence[Why]) -> Iterator[str]:
    """A line per model; one for many that wait for the same."""
    alike: dict[tuple[str | None, object], list[Why]] = {}
    for row in rows:
        alike.setdefault((row.reason, row.detail.get("enabled")), []).append(row)
    for group in alike.values():
        if len(group) > MOST_LINES:
            yield _of_many(group)
        else:
            yield from map(_of_model, group)


def _of_many(rows: Sequence[Why]) -> str:
    first = min(rows, key=lambda row: row.until_at or "")
    said, remedy = OF_MANY.get(first.reason, (f"have no quota ({first.reason}), the first until {first.until}", ""))
    if first.reason == "cooldown":
        said = f"are in cooldown, the first until {first.until}"
    elif first.reason == "paused" and first.detail["enabled"]:
        said, remedy = "are paused, since a limit of theirs is 0", ""
    return f"{len(rows):,} models {said}: {_named(rows)}{remedy}"


def _named(rows: Sequence[Why]) -> str:
    return f"{', '.join(str(row.model) for row in rows[:NAMED])} and {len(rows) - NAMED:,} more"


def _of_model(row: Why) -> str:
    detail = row.detail
    match row.reason:
        case "unknown":
            set_it = f"llmqueue models set {shlex.quote(row.model or '')} --rpm N"
            said = f"is not configured by anybody. Run: {set_it}"
        case "paused":
            said = _paused(row)
        case "never_fits":
            end = "" if detail["fits_elsewhere"] else "; when its turn comes it ends as a dead letter"
            said = f"can never take it: it is charged {_charge(row)} ({_limits(row, 'tpm', 'output_tpm', 'tpd')}){end}"
        case "no_worker":
            said = _no_worker(row)
        case "backend" | "cooldown" | "probe":
            said = _shut(row)
        case "concurrency":
            kept = f", {detail['kept_for_hot']:,} kept for hot tasks" if row.has("kept_for_hot") else ""
            said = f"has its concurrency full ({plural(detail['most_in_flight'], 'slot')}{kept})"
        case "behind":
            said = f"has room{_workers(row)}, but better tasks go first"
        case None:
            said = f"has room{_workers(row)}"
        case reason:
            said = f"has no quota until {row.until}: {_quota(reason, row)}"
    return f"model {row.model} {said}"


def _paused(row: Why) -> str:
    if not row.detail["enabled"]:
        return f"is paused. Run: llmqueue models resume {shlex.quote(row.model or '')}"
    return f"is paused: {' and '.join(f'its {name} is 0' for name in LIMITS if row.detail.get(name) == 0)}"


def _no_worker(row: Why) -> str:
    live, draining = row.detail["workers"]["live"], row.detail["workers"]["draining"]
    others = [f"{live:,} for other models"] if live else []
    others += [f"{draining:,} draining"] if draining else []
    return f"has no live worker{' (' + ', '.join(others) + ')' if others else ''}. {NO_WORKER}"


def _shut(row: Why) -> str:
    because = row.detail.get("cooldown_reason", "refusals")
    match row.reason:
        case "cooldown":
            return f"is in cooldown until {row.until} because of {because}"
        case "probe":
            return f"is in cooldown because of {because}; a probe is under way, and ends it if it succeeds"
    found = row.detail["backend"]
    count, names = found["troubled"], found["names"] or []
    more = f" and {count - len(names):,} more" if count > len(names) else ""
    who = f"{'worker' if count == 1 else 'workers'} {', '.join(names)}{more}"
    since = row.at(found["since"])
    return (
        f"waits for the backend, which {found['trouble']} (since {since}, {who}). llmqueue keeps probing it; "
        "LLMQUEUE_BACKEND_URL names it"
    )


def _workers(row: Why) -> str:
    found = row.detail["workers"]
    if found["idle"] or not found["running"]:
        return f" and {plural(found['serving'], 'live worker')}"
    slots = f"{plural(found['running'], 'call')} in flight, their slots may be taken"
    return f" and {plural(found['serving'], 'live worker')}, none of them idle ({slots})"


def _quota(reason: str, row: Why) -> str:
    detail = row.detail
    match reason:
        case "rpm":
            lowered = f", {detail['effective_rpm']:,} after refusals" if detail["effective_rpm"] < detail["rpm"] else ""
            return f"{_limits(row, 'rpm')}{lowered}, used up by {plural(detail['calls_60s'], 'call')} in the last 60 s"
        case "tpm":
            return f"{_limits(row, 'tpm', 'output_tpm')}, and it is charged {_charge(row)}"
        case "burst":
            windows = (f"{share:.4g} of rpm in {seconds} s" for seconds, share in detail["burst_windows"].items())
            return f"its short windows are full ({', '.join(windows)})"
        case "day":
            return f"{_limits(row, 'rpd', 'tpd')}, used up for today in {detail['quota_timezone']}"
        case "pace":
            return f"its calls are spread over the minute ({detail['effective_rpm']:,} a minute)"
        case _:
            return "the database's clock has stepped, and a quiet minute keeps the limit"


def _charge(row: Why) -> str:
    charged = plural(row.detail.get("tokens", 0), "token")
    return f"{charged} and {row.detail['output_tokens']:,} of output" if row.has("output_tokens") else charged


def _limits(row: Why, *names: str) -> str:
    return ", ".join(f"{name} {row.detail[name]:,}" for name in names if name in row.detail)


def _place(rows: Sequence[Why]) -> Iterator[str]:
    """Whom the task waits for, and for how long: the figures of the lane are the same in all rows."""
    first = rows[0]
    if first.has("ahead"):
        up_to = "up to " if first.has("users") and first.detail["ahead_is_exact"] else ""
        go = "goes" if first.detail["ahead"] == 1 else "go"
        yield f"{up_to}{_bounded(first, 'ahead')} of its lane {go} first: {', '.join(_kinds(first.detail))}"
    others = [row for row in rows if row.has("other_lanes")]
    if len(others) > MOST_LINES:
        most = max(others, key=lambda row: row.detail["other_lanes"])
        yield f"up to {_bounded(most, 'other_lanes')} of higher priority in other lanes of models {_named(others)}"
    else:
        for row in others:
            yield f"{_bounded(row, 'other_lanes')} of higher priority in other lanes of model {row.model}"
    able = [row for row in rows if row.reason in PASSING]
    if able and any(row.has("ahead") or row.has("other_lanes") for row in able):
        yield from _wait(able)
    yield from deadline(first)


def _kinds(detail: dict[str, Any]) -> Iterator[str]:
    if detail["higher"]:
        yield f"{_number(detail, 'higher')} of higher priority"
    if detail["own"]:
        yield f"{_number(detail, 'own')} {'of its own user' if detail['users'] else 'due before it'}"
    if detail["users"] and detail["turns_is_exact"]:
        yield f"up to {detail['turns']:,} of {plural(detail['users'], 'other user')}, who take turns with its own"
    elif detail["users"]:
        yield f"more than {detail['turns']:,} of {detail['users']:,} or more other users, who take turns with its own"


def _wait(rows: Sequence[Why]) -> Iterator[str]:
    """The least time from the tasks ahead, and the most from the older ones: one grant in ten goes to the oldest.

    Where tokens pace, the other tasks are taken to be charged as this one.
    """
    paces = [(row, *_pace(row)) for row in rows if row.reason not in SHUT]
    if not paces:
        return
    rate = sum(pace for _, pace, _ in paces)
    by_tokens = sorted({what for _, _, what in paces} - {"rpm"})
    least_s = 60 * (rows[0].detail["ahead"] - rows[0].detail["users"]) / rate  # whose turn is next is not known
    bounds = [
        (600 * (row.detail["older"] + 1) / pace, what) for row, pace, what in paces if row.detail["older_is_exact"]
    ]
    if least_s > 0 and (not bounds or least_s < min(bounds)[0]):
        time = f"about {duration(least_s)}" if by_tokens else f"{duration(least_s)} at least"
        why = f": {' and '.join(by_tokens)} paces, if each is charged as it is" if by_tokens else ""
        opens = ", unless the cooldown of another model ends first" if len(paces) < len(rows) else ""
        yield f"they take {time}, at {_calls(rate)} a minute{why}{opens}"
    if bounds:
        most_s, what = min(bounds)
        most = duration(most_s) if what == "rpm" else f"about {duration(most_s)}"
        yield (
            f"its turn comes within {most} while {what} is used in full, since one grant in ten goes to the oldest task"
        )


def _pace(row: Why) -> tuple[float, str]:
    """Calls a minute, and the limit that they come from."""
    detail, rates = row.detail, [(float(row.detail["effective_rpm"]), "rpm")]
    for limit, charge in (("tpm", "tokens"), ("output_tpm", "output_tokens")):
        if row.has(limit) and row.has(charge):
            rates.append((detail[limit] / detail[charge], limit))
    return min(rates, key=lambda rate: rate[0])


def _calls(rate: float) -> str:
    said = f"{rate:,.0f}" if rate >= 10 or rate == int(rate) else f"{rate:.2g}"
    return f"{said} call{'' if said == '1' else 's'}"


def _bounded(row: Why, name: str) -> str:
    return f"{_number(row.detail, name)} task{'' if row.detail[name] == 1 else 's'}"


def _number(detail: dict[str, Any], name: str) -> str:
    return f"{'' if detail[f'{name}_is_exact'] else 'more than '}{detail[name]:,}"
