"""What each role may do with every object of the schema and with the tasks table; everything else is denied.

Whoever adds an object lists it here: a table, view or sequence in RELATIONS (and FOR_NOBODY, unless a role needs
it), a column of llmqueue.attempt as known or hidden, a column of the tasks table by who writes it, a function under the
roles that call it or in FUNCTIONS_FOR_NOBODY. What a role needs is granted in src/llmqueue/adoption/rights.py.
"""

from __future__ import annotations

from llmqueue.install.rights import OPERATOR, PRODUCER, READER, WORKER


def _names(words: str) -> set[str]:
    return set(words.split())


VIEWS = {"backlog", "dead_letters", "epoch_status", "eta", "model_status", "throughput", "worker_status"}
# Tables, the view over the tasks, and sequences that at least one role may do something with; the others nobody may.
LIMITS = {"model_config", "pool_member"}
FOR_NOBODY = {"applied", "epoch", "idle_worker", "ledger_cell", "ledger_grant", "ledger_minute", "worker", "fence_seq"}
RELATIONS = (
    VIEWS
    | LIMITS
    | FOR_NOBODY
    | {"mapping", "schema_version", "limiter", "set_aside", "attempt", "model_state", "task", "tasks"}
)
READ = {(name, "SELECT") for name in VIEWS | LIMITS | {"mapping", "schema_version", "limiter", "set_aside"}}
WHOLE: dict[str, set[tuple[str, str]]] = {
    WORKER: {("mapping", "SELECT"), ("schema_version", "SELECT")},
    PRODUCER: {("mapping", "SELECT"), ("schema_version", "SELECT")},
    READER: READ,
    OPERATOR: READ
    | {(name, privilege) for name in LIMITS for privilege in ("INSERT", "UPDATE")}
    | {("pool_member", "DELETE"), ("model_state", "SELECT"), ("model_state", "UPDATE")}
    | {("set_aside", "DELETE"), ("task", "DELETE")},
}
# Columns of relations that a role has no right on as a whole.
KNOWN_OF_ATTEMPT = _names(
    """
        fence task_id model worker attempt_no granted_at cell rpm sent_at ended_at outcome error_class
        latency_s input_tokens output_tokens lane is_hot is_probe ceiling_rpm tpm output_tpm
        token_mode bytes_estimate char_class_estimate input_charge output_charge tokens
        output_tokens_charged top_up_cell top_up_tokens tokens_final output_tokens_final
        """
)
HIDDEN_OF_ATTEMPT = {"answer", "error"}  # an answer that came late, and what a backend said: it may quote a prompt
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
        ("task", "UPDATE"): {"status", "run_at", "finished_at"},
    },
}
VIEW_FUNCTIONS = _names(
    """
        count_backlog count_60s count_today count_ready effective_rpm effective_concurrency is_able
        day_start desired_inflight reader_why
        """
)
START_FUNCTIONS = {"oldest_program"}
EVERYBODYS = {"user_key"}  # in an index expression: checked against whoever inserts
FUNCTIONS: dict[str, set[str]] = {
    WORKER: START_FUNCTIONS
    | _names(
        """
        worker_claim worker_clock_stepped worker_disown worker_do_chores worker_drain_state worker_forgive
        worker_heartbeat worker_leave worker_note_backend worker_prune_attempts worker_register worker_settle
        worker_top_up
        """
    ),
    PRODUCER: START_FUNCTIONS,
    READER: START_FUNCTIONS | VIEW_FUNCTIONS,
    OPERATOR: START_FUNCTIONS
    | VIEW_FUNCTIONS
    | _names("cancel restart open_model free_refused is_fault_of_row mark_queued status_word"),
}
FUNCTIONS_FOR_NOBODY = _names(
    """
        allowance answer_value begin_epoch burst_allowance bury calibrate calls_left charge charge_of
        charge_of_task check_epoch claim claim_model clock_stepped close_model close_refusing closing complete
        config_changed count_before count_calls count_refusals count_turns cut_concurrency cut_rpm day_allowance
        disown do_chores drain_state end_of_epoch entries_read estimate_ready first_waiting look_behind marks_after
        next_rank next_user queue_indexes expected_tokens expire fail_unsent fill_ledger
        fit fits_elsewhere forgive has_open_member has_ready
        heartbeat lane_width
        hold_clock is_in_order is_oversize is_suspect
        keep_lost lane_models lanes_of lease lease_each lease_rows lease_some leave ledger_frees_at lock_model
        lock_space mark_done max_output_of model_lanes models_with_tasks next_grant_at note_backend note_probe
        note_taken oversize_error owners_path pick_by_age pick_by_rank pick_of_user probe_answered promote
        prune_attempts prune_ledger put_aside read_turns reconcile refund register release retry room
        set_attempt_aside settle settle_verb share_out sweep top_up troubled_workers turns_after
        update_triggers users_after verdict wake_up when_free
        why why_delayed why_ended why_model why_nothing why_ready why_running workers_of
    """
)
PRIVILEGES = {
    "r": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"),
    "v": ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER"),
    "S": ("SELECT", "UPDATE", "USAGE"),
}
