"""Wrong options of `init`, told without a database: exit code 2."""

from __future__ import annotations

import pytest

from llmqueue.errors import UsageError
from llmqueue.install.adopt import AdoptionSpec
from llmqueue.install.spec import parse_pairs

USAGE: dict[str, tuple[dict[str, object], str]] = {
    "unknown column of ours": (
        {"columns": {"create_at": "x"}},
        "--column create_at=x: llmqueue has no column create_at. Did you mean created_at?",
    ),
    "one of the four": (
        {"columns": {"prompt": "question"}},
        "--column prompt=question: this one is named by --prompt-column question.",
    ),
    "one column for two": (
        {"columns": {"created_at": "at", "run_at": "at"}},
        "--column run_at=at: at is created_at already. Give each its own column.",
    ),
    "unknown status": (
        {"words": {"runing": "x"}},
        "--word runing=x: llmqueue has no status runing. Did you mean running?",
    ),
    "one word for two": (
        {"words": {"failed": "solved"}},
        (
            "'solved' stands for both solved and failed. Each status needs a word of its own: --word failed=VALUE, "
            "or use --own-status."
        ),
    ),
    "contradiction": (
        {"words": {"solved": "done"}, "done_value": "ready"},
        "--word solved=done and --done-value ready contradict each other. Leave one out.",
    ),
    "words of a status of our own": (
        {"words": {"running": "doing"}, "own_status": True},
        (
            "--word running=doing: with --own-status llmqueue writes its own words into its own column. Leave it out; "
            "--queued-value and --done-value are the values of your column."
        ),
    ),
    "no table name": (
        {"table": "a.b.c"},
        (
            "--table a.b.c: this is no table name. Write table or schema.table; a name with a dot or a quote in it "
            'goes in double quotes: \'"my.schema"."my.table"\'.'
        ),
    ),
    "no time to wait": (
        {"lock_wait_s": 0},
        "--lock-wait 0: the time to wait for a lock is a number of seconds above 0.",
    ),
}


@pytest.mark.parametrize("about", USAGE)
def test_wrong_options_are_told_without_a_database(about: str) -> None:
    options, message = USAGE[about]

    with pytest.raises(UsageError) as error:
        AdoptionSpec(**options)  # type: ignore[arg-type]

    assert (str(error.value), error.value.exit_code) == (message, 2)


def test_malformed_pairs_are_told_with_the_form() -> None:
    with pytest.raises(UsageError, match=r"^--word running: write it as --word STATUS=VALUE\.$"):
        parse_pairs("--word", ["running"], "STATUS=VALUE")
    with pytest.raises(UsageError, match=r"^--word running is given twice: a and b\. Leave one of them out\.$"):
        parse_pairs("--word", ["running=a", "running=b"], "STATUS=VALUE")
