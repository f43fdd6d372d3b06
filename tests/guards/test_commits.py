"""The check of commit subjects, on a history of its own; `make check` runs it on ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tools.commits import LONGEST, too_long, too_long_in

NOBODY = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True, env=NOBODY)
    return done.stdout.strip()


def commit(folder: Path, subject: str) -> str:
    git(folder, "commit", "--quiet", "--allow-empty", "--message", subject)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def history(tmp_path: Path) -> Path:
    try:
        git(tmp_path, "init", "--quiet", "--initial-branch=main")
    except OSError:
        pytest.skip("no git here")
    return tmp_path


def test_only_commits_after_the_base_are_held_to_the_length(history: Path) -> None:
    commit(history, "o" * 100)
    base = commit(history, "the base " + "o" * 100)
    commit(history, "é" * LONGEST)
    late = commit(history, "x" * (LONGEST + 1))

    found = too_long(base, history)

    assert found is not None
    [line] = found
    short, length, subject = line.split(" ")
    assert late.startswith(short)
    assert (length, subject) == ("73", "x" * 73)


def test_a_merge_may_have_the_subject_that_the_forge_gave_it(history: Path) -> None:
    base = commit(history, "the base")
    git(history, "switch", "--quiet", "--create", "side")
    commit(history, "Do it")
    git(history, "switch", "--quiet", "main")
    git(history, "merge", "--quiet", "--no-ff", "--message", "Merge " + "0" * 90, "side")

    assert too_long(base, history) == []


def test_without_the_base_nothing_is_checked(history: Path) -> None:
    base = commit(history, "the base")
    git(history, "switch", "--quiet", "--orphan", "rewritten")
    commit(history, "x" * 100)

    assert too_long(base, history) is None
    assert too_long("0" * 40, history) is None
    assert too_long(base, history / "nowhere") is None


def test_the_message_of_a_commit_to_come_is_held_to_it_too() -> None:
    assert too_long_in("# a comment\n\n" + "x" * LONGEST + "\n\n" + "body " * 30) == []
    assert too_long_in("x" * (LONGEST + 1) + "\n# Please enter\n") == ["73 " + "x" * 73]
    assert too_long_in("# nothing\n") == []
