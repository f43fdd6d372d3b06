"""A few cases of `make fuzz` in each test run, always the same ones."""

from __future__ import annotations

from pathlib import Path

from bench.fuzz.add import Files
from bench.fuzz.cli import Commands
from bench.fuzz.hunt import hunt
from tests.support.cli import run_cli

SEED = 1


def test_every_line_of_a_file_is_in_as_given_or_named(installed: str, tmp_path: Path) -> None:
    found = hunt(Files(installed, tmp_path), SEED, lambda cases, _: cases >= 120)

    assert [str(failure) for failure in found.failures] == []


def test_no_argument_brings_a_traceback_or_another_exit_code(installed: str, tmp_path: Path) -> None:
    found = hunt(Commands(installed, tmp_path), SEED, lambda cases, _: cases >= 30)

    assert [str(failure) for failure in found.failures] == []


def test_a_bad_line_is_one_line_of_the_report_whatever_it_quotes(installed: str, tmp_path: Path) -> None:
    errors = tmp_path / "bad.txt"
    lines = b'{"prompt":"p","priority":"one\\ntwo\\tthree"}\n""\n'

    done = run_cli(installed, "add", "--errors", str(errors), stdin=lines)

    assert done.code == 1
    assert [line.split("\t") for line in errors.read_text().splitlines()] == [
        ["1", "priority must be a whole number (got one\\ntwo\\tthree)"],
        ["2", "prompt is empty"],
    ]
    assert len(done.err.splitlines()) == 2
