"""The call log: one entry per call that arrived. Tests compare the workers with it.

It never contains prompts or answers. A JSONL file gets one line per call when the call has ended; at the stop it also
gets the calls that never ended. A kill loses at most the last 0.2 s.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from pathlib import Path

_FLUSH_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Arrival:
    """The arrival of a request, by the wall clock and by the monotonic clock."""

    at: float
    monotonic: float

    @classmethod
    def now(cls) -> "Arrival":
        return cls(time.time(), time.monotonic())


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One call. Times are seconds; `arrived_monotonic` is comparable within one machine only."""

    seq: int  # from 1, in the order in which the calls were read
    arrived_at: float
    arrived_monotonic: float
    model: str  # empty if the request was unreadable
    key: str | None  # Idempotency-Key, or the item's id inside a batch
    in_flight: int  # calls to the same model in flight when this one arrived
    status: int | None = None  # of the reply (of the item inside a batch); None: no reply was sent
    finished_at: float | None = None  # None: still in flight
    fault: str | None = None  # as in faults.py; "limit": over the simulated limit; "client left"


_FIELDS = tuple(field.name for field in fields(LoggedCall))
_values = attrgetter(*_FIELDS)


def as_json(call: LoggedCall) -> dict[str, object]:
    """Returns the call as it appears in the file and in GET /calls."""
    return dict(zip(_FIELDS, _values(call), strict=True))


class CallLog:
    """The last `size` calls in memory, and all of them in the file at `path` if one is given.

    It belongs to one event loop. Raises OSError if the file cannot be opened.
    """

    def __init__(self, path: Path | None = None, size: int = 100_000) -> None:
        self._size = size
        self._ring: list[LoggedCall | None] = [None] * size
        self._last_seq = 0
        self._open: dict[int, LoggedCall] = {}
        self._in_flight: Counter[str] = Counter()
        self._file = path.open("a", encoding="utf-8", newline="\n") if path else None
        self._unwritten: list[LoggedCall] = []
        self._flush_timer: asyncio.TimerHandle | None = None
        self._is_stopping = False

    def arrive(self, arrival: Arrival, model: str, key: str | None) -> LoggedCall:
        """Opens an entry."""
        self._last_seq += 1
        call = LoggedCall(self._last_seq, arrival.at, arrival.monotonic, model, key, in_flight=self._in_flight[model])
        self._in_flight[model] += 1
        self._open[call.seq] = call
        self._ring[call.seq % self._size] = call
        return call

    def finish(self, call: LoggedCall, status: int | None, fault: str | None = None) -> None:
        """Closes the entry with the reply's status, or None if the client gets no reply."""
        if status is None and self._is_stopping:
            return  # our own stop interrupted the call: it never finished, and `close` writes it so
        self._in_flight[call.model] -= 1
        del self._open[call.seq]
        finished = replace(call, status=status, finished_at=time.time(), fault=fault)
        if self._last_seq - call.seq < self._size:
            self._ring[call.seq % self._size] = finished
        self._write(finished)

    def mark(self, call: LoggedCall, fault: str) -> None:
        """Records the fault of a call that may never finish."""
        self._open[call.seq] = marked = replace(call, fault=fault)
        self._ring[call.seq % self._size] = marked

    def calls(self, since: int = 0, model: str | None = None, limit: int | None = None) -> list[LoggedCall]:
        """Returns the entries after number `since`, finished or not, oldest first, at most `limit`."""
        found: list[LoggedCall] = []
        for seq in range(max(since, self.dropped) + 1, self._last_seq + 1):
            if limit is not None and len(found) >= limit:
                break
            call = self._ring[seq % self._size]
            if call and (model is None or call.model == model):
                found.append(call)
        return found

    @property
    def dropped(self) -> int:
        """The number of oldest entries that are no longer in memory."""
        return max(0, self._last_seq - self._size)

    def stop(self) -> None:
        """Counts every call that ends without a reply from now on as never finished."""
        self._is_stopping = True

    def close(self) -> None:
        """Writes the remaining calls, also those that never finished, and closes the file."""
        if self._file:
            self._unwritten += self._open.values()
            self._flush()
            self._file.close()
            self._file = None

    def _write(self, call: LoggedCall) -> None:
        if self._file:
            self._unwritten.append(call)
            if self._flush_timer is None:
                self._flush_timer = asyncio.get_running_loop().call_later(_FLUSH_EVERY_S, self._flush)

    def _flush(self) -> None:
        if self._flush_timer:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._file:
            self._file.write("".join(f"{json.dumps(as_json(call))}\n" for call in self._unwritten))
            self._file.flush()
            self._unwritten.clear()


def read_calls(path: Path) -> list[LoggedCall]:
    """Returns the calls in a log file, by number, without a last line that a kill has truncated."""
    lines = path.read_text(encoding="utf-8").split("\n")
    calls = [LoggedCall(**json.loads(line)) for line in lines[:-1]]
    return sorted(calls, key=lambda call: call.seq)


def worst_window(arrivals: Sequence[float], window_s: float = 60.0) -> int:
    """Returns the largest number of arrivals (seconds, in any order) in a half-open window; 0 if there are none."""
    ordered = sorted(arrivals)
    worst = start = 0
    for end, arrived in enumerate(ordered):
        while ordered[start] <= arrived - window_s:
            start += 1
        worst = max(worst, end - start + 1)
    return worst
