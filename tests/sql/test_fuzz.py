"""A little of `make fuzz` at each test run, always the same cases."""

from __future__ import annotations

from pathlib import Path

from bench.fuzz.add import Files
from bench.fuzz.cli import Commands
from bench.fuzz.hunt import hunt

SEED = 1


def test_every_line_of_a_file_is_in_as_given_or_named(installed: str) -> None:
    found = hunt(Files(installed), SEED, lambda cases, _: cases >= 30)

    assert [str(failure) for failure in found.failures] == []


def test_no_argument_brings_a_traceback_or_another_exit_code(installed: str, tmp_path: Path) -> None:
    found = hunt(Commands(installed, tmp_path), SEED, lambda cases, _: cases >= 30)

    assert [str(failure) for failure in found.failures] == []
