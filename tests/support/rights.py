"""The rights of each role on every object of the schema and on the tasks table; everything else is denied.

List each new object here: a table, view or sequence in RELATIONS (and FOR_NOBODY, unless a role needs it), a column of
llmqueue.attempt as known or hidden, a column of the tasks table by its writer, a function of schema llmqueue under the
roles that call it. src/llmqueue/install/rights.py grants the rights.
"""

from __future__ import annotations

from llmqueue.install.rights import OPERATOR, PRODUCER, READER, WORKER


def _names(words: str) -> set[str]:
    return set(words.split())


VIEWS = {"backlog", "dead_letters", "epoch_status", "eta", "model_status", "throughput", "worker_status"}
# Tables, the view over the tasks, and sequences; no role has a right on those FOR_NOBODY.
LIMITS = {"model_config", "pool_member"}
FOR_NOBODY = {"applied", "epoch", "idle_worker", "ledger_cell", "ledger_grant", "ledger_minute", "worker", "fence_seq"}
RELATIONS = (
    VIEWS
    | LIMITS
    | FOR_NOBODY
    | {"mapping", "schema_version", "limiter", "quarantine", "attempt", "model_state", "task", "tasks"}
)
READ = {(name, "SELECT") for name in VIEWS | LIMITS | {"mapping", "schema_version", "limiter", "quarantine"}}
WHOLE: dict[str, set[tuple[str, str]]] = {
    WORKER: {("mapping", "SELECT"), ("schema_version", "SELECT")},
    PRODUCER: {("mapping", "SELECT"), ("schema_version", "SELECT")},
    READER: READ,
    OPERATOR: READ
    | {(name, privilege) for name in LIMITS for privilege in ("INSERT", "UPDATE")}
    | {("pool_member", "DELETE"), ("model_state", "SELECT")}
    | {("quarantine", "DELETE"), ("task", "DELETE")},
}
# Columns of relations on which a role has no right as a whole.
KNOWN_OF_ATTEMPT = _names(
    """
        fence task_id model worker attempt_no granted_at cell rpm sent_at ended_at outcome error_class
        latency_s input_tokens output_tokens lane is_hot is_probe ceiling_rpm tpm output_tpm
        token_mode bytes_estimate char_class_estimate input_charge output_charge tokens
        output_tokens_charged top_up_cell top_up_tokens tokens_final output_tokens_final
        """
)
HIDDEN_OF_ATTEMPT = {"answer", "error"}  # late answers, and messages of a backend, which may quote a prompt
MAY_INSERT = _names("id prompt status model priority params run_at deadline_at max_attempts user_id created_at")
ONLY_MACHINE_WRITES = _names("answer attempts error input_tokens output_tokens started_at finished_at fence restarts")
COLUMNS: dict[str, dict[tuple[str, str], set[str]]] = {
    WORKER: {},
    PRODUCER: {("tasks", "INSERT"): MAY_INSERT, ("tasks", "SELECT"): {"id"}, ("task", "SELECT"): {"id"}},
    READER: {("attempt", "SELECT"): KNOWN_OF_ATTEMPT},
    OPERATOR: {
        ("attempt", "SELECT"): KNOWN_OF_ATTEMPT,
        ("task", "SELECT"): _names(
            """
        id status run_at finished_at fence lane due_at is_ready is_delayed is_running is_failed is_ended
        """
        ),
    },
}
START_FUNCTIONS = {"oldest_program"}
READ_FUNCTIONS = START_FUNCTIONS | {"desired_inflight", "why"}
# Functions of schema llmqueue: each is for at least one role.
FUNCTIONS: dict[str, set[str]] = {
    WORKER: START_FUNCTIONS
    | _names(
        """
        claim clock_stepped drain_state heartbeat leave maintain prune_attempts register release_unknown_claims
        report_backend restore_attempts settle top_up
        """
    ),
    PRODUCER: START_FUNCTIONS,
    READER: READ_FUNCTIONS,
    OPERATOR: READ_FUNCTIONS | _names("cancel restart end_cooldown"),
}
# Functions of schema llmqueue_internal, which no role can name: the views call them with the rights of their reader.
VIEW_FUNCTIONS = _names(
    """
        clock count_backlog count_60s count_today count_ready day_start effective_rpm effective_concurrency is_enabled
        """
)
INTERNAL_FUNCTIONS: dict[str, set[str]] = {
    WORKER: set(), PRODUCER: set(), READER: VIEW_FUNCTIONS, OPERATOR: VIEW_FUNCTIONS,
}  # fmt: skip
EVERYBODYS = {"user_key"}  # in an index expression: PostgreSQL checks it for the role that inserts
PRIVILEGES = {
    "r": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"),
    "v": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"),
    "S": ("SELECT", "UPDATE", "USAGE"),
}
