"""The layout of the SQL files. Keywords in lower case: test_functions.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.sql_style import WIDTH, sql_files, violations


def test_sql_is_laid_out_like_the_rest() -> None:
    files = sql_files()

    found = [line for path in files for line in violations(path)]

    assert files, "no SQL files found"
    assert not found, f"{len(found)} lines, see `python -m tools.sql_style`:\n" + "\n".join(found[:20])


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("-" * WIDTH + "\n", []),
        ("-" * (WIDTH + 1) + "\n", ["1: 121 characters, more than 120"]),
        ("é" * WIDTH + "\n", []),
        ("select 1;\n\tselect 2;\n", ["2: a tab"]),
        ("select 1; \n", ["1: blanks at the end"]),
        ("select 1;\r\n", ["1: blanks at the end"]),
        ("select 1;", ["1: does not end with exactly one newline"]),
        ("select 1;\n\n", ["3: does not end with exactly one newline"]),
    ],
)
def test_the_check_finds_what_is_not_so(tmp_path: Path, text: str, wrong: list[str]) -> None:
    path = tmp_path / "one.sql"
    path.write_bytes(text.encode())

    assert [line.removeprefix(f"{path}:") for line in violations(path)] == wrong
