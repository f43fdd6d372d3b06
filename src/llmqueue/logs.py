"""Logging: the closed list of events, and the format of their lines.

    log = logger()
    log.info(Event.WORKER_STARTED, worker=name, concurrency=1000)

Console lines on a terminal, JSON lines otherwise, always on stderr, times in UTC. Prompts, answers and keys are
never logged: a field with such a name is removed from every line.
"""

from __future__ import annotations

import logging
import sys
from enum import StrEnum, unique
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from typing import TextIO

    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

    from llmqueue.settings import LogFormat, LogLevel

# Fields that could contain a prompt, an answer or a secret.
NEVER_LOGGED = frozenset({"prompt", "answer", "params", "dsn", "authorization", "password", "headers", "body"})


_logger: FilteringBoundLogger | None = None


@unique
class Event(StrEnum):
    """Every event that llmqueue logs; tests compare the code and the docs with this list."""

    WORKER_STARTED = "worker_started"
    """The worker is registered and begins to claim."""
    WORKER_STOPPING = "worker_stopping"
    """The worker was asked to stop: it claims no more tasks and waits for the calls in flight."""
    WORKER_STOPPED = "worker_stopped"
    """The worker's last line; `unsettled` is the number of ends of attempts that could not be written."""
    WORKER_SWEPT = "worker_swept"
    """The fleet counted this worker as dead, because it was suspended or its heartbeats did not reach the database. It
    registers again."""
    SCHEMA_OUTGROWN = "schema_outgrown"
    """A newer llmqueue has upgraded the schema under this worker: it claims no more tasks, finishes its calls and ends
    with 1. Install the new release here too."""
    WORKER_KILLED = "worker_killed"
    """A second Ctrl-C: the worker ends at once; its tasks run again after the lease."""

    ATTEMPT_ENDED = "attempt_ended"
    """An attempt has ended. One line per attempt: task, model, outcome, latency, input and output tokens."""
    ADAPTER_RAISED = "adapter_raised"
    """The adapter raised an exception instead of returning a reply, which is a bug of the adapter or of an HTTP
    library. The attempt is retried."""
    GRANTS_LATE = "grants_late"
    """Every grant of the last ten claims expired before its call was sent; a claim takes `claim_s` seconds. The worker
    claims less and less often, down to once in 10 s, until a grant is in time. Logged once a minute. Check that the
    index llmqueue_ready exists (llmqueue init) and that the database is not slow; otherwise raise LLMQUEUE_GUARD_S."""
    CLAIM_ANSWER_LOST = "claim_answer_lost"
    """The connection broke between a claim and its result; the claimed tasks were returned unsent."""
    SETTLE_FAILED = "settle_failed"
    """The database rejected a whole flush; the worker keeps its ends of attempts and sends them again."""

    MODEL_COOLDOWN = "model_cooldown"
    """A model refused a call (429, 503, 529, or our credentials) or fails too many calls, and goes into cooldown. No
    worker calls it for `pause_s` seconds; if the reply named no time, each refusal in a row makes the cooldown longer.
    Then one call probes. At most one line per model in 10 s."""

    NOT_BATCHED = "not_batched"
    """`dispatch` of the model is `batch`, but its tasks are sent one by one. The `reason`: the adapter or the backend
    has no batch call (404, 405), or the backend rejected two whole batches in a row. Logged once per model and
    reason."""

    BACKEND_UNREACHABLE = "backend_unreachable"
    """There is no connection to the Models Backend. No task is claimed until it answers. Logged once per outage."""
    BACKEND_FAILING = "backend_failing"
    """Half of this worker's last 20 calls, over all models, failed with a 5xx or a lost connection: its circuit breaker
    is open. Single calls probe the backend, up to 30 s apart; until it is back, failures consume no attempts."""
    BACKEND_BACK = "backend_back"
    """The Models Backend answers again."""
    DATABASE_UNREACHABLE = "database_unreachable"
    """There is no connection to the database. Logged once, then at most once a minute."""
    DATABASE_FAILED = "database_failed"
    """The database answers, but a statement failed (no space, read-only, a deadlock). The worker repeats it."""
    DATABASE_BACK = "database_back"
    """The database answers again."""
    LISTENER_LOST = "listener_lost"
    """The LISTEN connection for wake-up signals is lost; the worker keeps polling."""
    LISTENER_BACK = "listener_back"
    """Wake-up signals arrive again."""

    SPILL_WRITTEN = "spill_written"
    """Ends of attempts have waited for the database for two seconds, or the worker ends: they were written to its
    spill file. This process, or the next one with this LLMQUEUE_HOME, settles them when the database is back. Logged
    once per file."""
    SPILL_FAILED = "spill_failed"
    """The spill file cannot be written (no space, no right, its limit of 1 GB), read or removed. Until it can be
    written, ends of attempts wait in memory only and would be lost with the process. Make room, or make LLMQUEUE_HOME
    writable. Logged once."""
    SPILL_FULL = "spill_full"
    """The spill file cannot be written, and the memory for answers (64 MB) is full as well: the worker claims no more
    tasks. Answers of calls in flight are still kept."""
    SPILL_HAS_ROOM = "spill_has_room"
    """The spill file can be written again, or is no longer needed."""
    SPILL_RECOVERED = "spill_recovered"
    """Spill recovery: a dead worker left `ends` ends of attempts in its spill file. This worker settles them now, in
    the name of the dead one."""
    SPILL_SETTLED = "spill_settled"
    """The database has settled everything in the spill file; the file is removed."""
    SPILL_DAMAGED = "spill_damaged"
    """Lines of a spill file are truncated or altered and are ignored. A truncated last line is harmless: its end was
    not yet counted as written."""
    SPILL_LEFT = "spill_left"
    """A spill file is not processed (another database, no right to read it, another release); `remedy` says what to
    do."""

    EPOCH_CHANGED = "epoch_changed"
    """A failover or a restore may have lost state (see `llmqueue.epoch_status`); no call is granted for a minute."""
    POOLER_SEEN = "pooler_seen"
    """The database is behind a pooler such as PgBouncer: the worker uses no prepared statements and no session
    settings. Without LLMQUEUE_LISTEN_URL there are no wake-up signals, and the worker polls every second."""
    CLOCK_STEP = "clock_step"
    """The database's clock jumped ahead of the worker's clock; no model is called for a minute."""
    WARNING = "warning"
    """A warning from Python or from a library."""


def configure(log_format: LogFormat | None, log_level: LogLevel, stream: TextIO | None = None) -> None:
    """Sets up logging for this process, once; `log_format` None: console on a terminal, otherwise json."""
    stream = sys.stderr if stream is None else stream
    is_console = log_format == "console" or (log_format is None and stream.isatty())
    level = logging.getLevelNamesMapping()[log_level.upper()]
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_secrets,
    ]
    # Plain tracebacks: the formatted ones show local variables, which may be prompts.
    renderer: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback)]
        if is_console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str, sort_keys=False)]
    )
    structlog.configure(
        processors=[*shared, *renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
    )
    global _logger  # noqa: PLW0603 - there is one per process
    _logger = structlog.get_logger().bind()
    _route_stdlib(level)


def logger() -> FilteringBoundLogger:
    """Returns the logger of the process. It is bound once: binding it for each line takes as long as writing one."""
    return structlog.get_logger() if _logger is None else _logger


def _without_secrets(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    for name in NEVER_LOGGED.intersection(fields):
        del fields[name]
    return fields


class _IntoStructlog(logging.Handler):
    """Turns warnings of Python and of libraries into log lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        logger().log(record.levelno, Event.WARNING, source=record.name, message=record.getMessage())


def _route_stdlib(level: int) -> None:
    root = logging.getLogger()
    root.handlers = [_IntoStructlog()]
    root.setLevel(max(level, logging.WARNING))  # httpx and aiohttp log an INFO line per call
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # it logs every retry; our event is logged once
    logging.captureWarnings(capture=True)
