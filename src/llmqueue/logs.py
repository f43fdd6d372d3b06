"""Logging: the list of all events, and how they are written.

    log = logger()
    log.info(Event.WORKER_STARTED, worker=name, concurrency=1000)

Console lines on a terminal, JSON lines otherwise, always on stderr, times in UTC. Prompts, answers and keys are
never logged: a field with such a name is taken out, whoever put it there.
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

# Fields that could hold what must not be logged.
NEVER_LOGGED = frozenset({"prompt", "answer", "params", "dsn", "authorization", "password", "headers", "body"})


_logger: FilteringBoundLogger | None = None


@unique
class Event(StrEnum):
    """Every event that llmqueue logs; docs and tests are held to this list."""

    WORKER_STARTED = "worker_started"
    """The worker is registered and begins to claim."""
    WORKER_STOPPING = "worker_stopping"
    """It was asked to stop: it claims no more and waits for the calls in flight."""
    WORKER_STOPPED = "worker_stopped"
    """Its last line; `unsettled` ends of attempts could not be written."""
    WORKER_SWEPT = "worker_swept"
    """The fleet took this worker for dead (it slept, or its heartbeats did not get through); it registers again."""
    SCHEMA_OUTGROWN = "schema_outgrown"
    """A newer llmqueue has upgraded the schema under this worker: it claims no more, finishes what runs, ends with 1.
    Install the new release here too."""
    WORKER_KILLED = "worker_killed"
    """A second Ctrl-C: it ends at once; its tasks run again after the lease."""

    ATTEMPT_ENDED = "attempt_ended"
    """The one line per attempt: task, model, outcome, latency, input and output tokens."""
    ADAPTER_RAISED = "adapter_raised"
    """The adapter raised something it should have returned: its bug, or an HTTP library's. The attempt is retried."""
    GRANTS_LATE = "grants_late"
    """Every grant of the last ten claims ran out before it could be sent: a claim takes `claim_s` seconds. The worker
    claims ever more rarely, down to once in 10 s, until one is in time; said once a minute. Is the index llmqueue_ready
    there (llmqueue init), is the database slow? Else raise LLMQUEUE_GUARD_S."""
    CLAIM_ANSWER_LOST = "claim_answer_lost"
    """The connection broke between a claim and its answer; the tasks, which nobody ran, were given back."""
    SETTLE_FAILED = "settle_failed"
    """The database refused a whole flush of ends; they are kept and sent again."""

    MODEL_COOLDOWN = "model_cooldown"
    """A model refused a call (429, 503, 529, or our credentials). No worker calls it for `pause_s` seconds, or, when it
    did not say, for longer with each refusal in a row; then one call probes. At most one line per model in 10 s."""

    NOT_BATCHED = "not_batched"
    """`dispatch` of the model is batch, but its tasks go out one by one, for `reason`: the adapter has no such call, or
    the backend has not (404, 405), or rejects two batches in a row as a whole. Said once per model and reason."""

    BACKEND_UNREACHABLE = "backend_unreachable"
    """No connection to the Models Backend; logged once per outage. Nothing is claimed until it answers."""
    BACKEND_FAILING = "backend_failing"
    """Half of the last 20 calls of this worker, over all models, failed with a 5xx or a lost connection: its circuit
    breaker is open. One call at a time probes the backend, up to 30 s apart; failures cost no attempt meanwhile."""
    BACKEND_BACK = "backend_back"
    """The Models Backend answers again."""
    DATABASE_UNREACHABLE = "database_unreachable"
    """No connection to the database; logged once, then at most once a minute."""
    DATABASE_FAILED = "database_failed"
    """The database answers, but a statement failed (no space, read-only, a deadlock); tried again."""
    DATABASE_BACK = "database_back"
    """The database answers again."""
    LISTENER_LOST = "listener_lost"
    """The connection for wake-ups is gone; polling goes on."""
    LISTENER_BACK = "listener_back"
    """Wake-ups come again."""

    SPILL_WRITTEN = "spill_written"
    """Finished ends have waited for the database for two seconds, or the worker ends, and were written to its spill
    file; said once per file. They are settled when it is back, by this process or the next one with this
    LLMQUEUE_HOME."""
    SPILL_FAILED = "spill_failed"
    """The spill file cannot be written (no space, no right, its bound of 1 GB): ends wait in memory alone meanwhile and
    would be lost with the process; make room, or let LLMQUEUE_HOME be writable. Or it cannot be read, or not removed.
    Said once."""
    SPILL_FULL = "spill_full"
    """Nor is there room in memory (64 MB of answers): the worker claims no more; calls in flight are still kept."""
    SPILL_HAS_ROOM = "spill_has_room"
    """The spill file can be written again, or is no longer needed."""
    SPILL_INHERITED = "spill_inherited"
    """A worker that is gone left `ends` in its spill file; they are settled now, in its name."""
    SPILL_SETTLED = "spill_settled"
    """The database has dealt with everything in the spill file; it is removed."""
    SPILL_DAMAGED = "spill_damaged"
    """Lines of a spill file were cut off or have changed and are left out; a last one was never relied on."""
    SPILL_LEFT = "spill_left"
    """A spill file is left alone (another database, no right to read it, another release); `remedy` says what to do."""

    EPOCH_CHANGED = "epoch_changed"
    """A failover or a restore may have lost state (see `llmqueue.epoch_status`): nothing is granted for a minute."""
    POOLER_SEEN = "pooler_seen"
    """The database is reached through a pooler such as PgBouncer: no prepared statements, no settings per session, and
    without LLMQUEUE_LISTEN_URL no wake-ups: the worker polls every second."""
    CLOCK_STEP = "clock_step"
    """The clock of the database stepped against our own; nothing is granted for a minute."""
    WARNING = "warning"
    """A warning of Python or of a library."""


def configure(log_format: LogFormat | None, log_level: LogLevel, stream: TextIO | None = None) -> None:
    """Sets up logging for this process, once, at the edge; `log_format` None: console on a terminal, else json."""
    stream = sys.stderr if stream is None else stream
    is_console = log_format == "console" or (log_format is None and stream.isatty())
    level = logging.getLevelNamesMapping()[log_level.upper()]
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _without_secrets,
    ]
    # Plain tracebacks: the pretty ones show local variables, prompts among them.
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
    """The logger of the process. Bound once: to bind it for each line takes as long as to write one."""
    return structlog.get_logger() if _logger is None else _logger


def _without_secrets(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    for name in NEVER_LOGGED.intersection(fields):
        del fields[name]
    return fields


class _IntoStructlog(logging.Handler):
    """Passes warnings of Python and of libraries on, in our form."""

    def emit(self, record: logging.LogRecord) -> None:
        logger().log(record.levelno, Event.WARNING, source=record.name, message=record.getMessage())


def _route_stdlib(level: int) -> None:
    root = logging.getLogger()
    root.handlers = [_IntoStructlog()]
    root.setLevel(max(level, logging.WARNING))  # the INFO lines of httpx and aiohttp are one per call
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # one line per try; our own say it once
    logging.captureWarnings(capture=True)
