"""Runs `llmqueue …` in the test's process: the same output and exit code, without half a second per call."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from llmqueue.cli import main


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The tab-separated cells of a list."""
        return [line.split("\t") for line in self.out.splitlines()]


def run_cli(dsn: str, *arguments: str, stdin: bytes = b"", **settings: str) -> Result:
    """Runs a command on a database, with piped output."""
    ours = {f"LLMQUEUE_{name.upper()}": value for name, value in {"database_url": dsn, **settings}.items()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLMQUEUE_")}
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, kept | ours, clear=True),
        patch.object(sys, "argv", ["llmqueue", *arguments]),
        patch.object(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)))),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        else:
            code = 0
    return Result(code, out.getvalue(), err.getvalue())
