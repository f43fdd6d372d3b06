"""Every verb and option with nonsense as values: it ends with exit code 0, 1 or 2, without a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from random import Random
from typing import Any

import typer

from bench.fuzz import nonsense
from bench.fuzz.hunt import Case, Failed
from llmqueue import cli
from tests.support.cli import run_cli

# These verbs would not end by themselves, so they only get arguments that must be refused.
ENDLESS = {"worker", "backend", "demo"}
NOT_PASSED = {"--watch"}
REFUSED = "--no-such-option"
# `init` must not change the database, which the other cases use
ALWAYS = {"init": ["--dry-run"]}
SECRET = "sw0rdf1sh"
WORDS = (
    "1",
    "2",
    "some-model",
    "solved",
    "failed",
    "m=5",
    "m=x",
    "1h",
    "2030-01-01",
    "tasks",
    "public.tasks",
    "id",
    "5",
)


class Commands:
    """The pieces of a case are arguments."""

    name = "cli"

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn = f"{dsn} password={SECRET}"
        self._folder = folder
        self._commands = list(_commands())

    def make(self, rng: Random) -> Case:
        path, options = rng.choice(self._commands)
        words = [*path]
        for _ in range(rng.randrange(5)):
            if options and rng.random() < 0.7:
                name, takes_value = rng.choice(options)
                words.append(name)
                if takes_value != (rng.random() < 0.05):
                    words.append(self._value(rng))
            else:
                words.append(self._value(rng))
        words += ALWAYS.get(path[0], [])
        if path[0] in ENDLESS:
            words.insert(1, REFUSED)
        if rng.random() < 0.05:
            words[0] = self._value(rng)
        return Case([word.encode("utf-8", "surrogateescape") for word in words])

    def _value(self, rng: Random) -> str:
        draw = rng.random()
        if draw < 0.4:
            return rng.choice(WORDS)
        if draw < 0.5:
            return str(self._folder / rng.choice(("there.jsonl", "not-there", "folder", "new.svg", "new.txt")))
        return nonsense.text(rng).replace("\0", "0")[:20_000]

    def note(self) -> str:
        return ""

    def check(self, case: Case) -> None:
        words = [piece.decode("utf-8", "surrogateescape") for piece in case.pieces]
        if not words or (words[0] in ENDLESS and REFUSED not in words):
            return
        (self._folder / "there.jsonl").write_text('"a"\n')
        (self._folder / "folder").mkdir(exist_ok=True)
        with chdir(self._folder):  # some of the words become names of files
            done = run_cli(self._dsn, *words, stdin=b'"why?"\n')
        said = done.out + done.err
        if done.code not in {0, 1, 2}:
            raise Failed(f"exit code {done.code} of {words}: {said[-300:]}")
        if "Traceback" in said:
            raise Failed(f"a traceback of {words}: {said[-500:]}")
        if SECRET in said:
            raise Failed(f"the password is shown by {words}")
        if done.code and not said.strip():
            raise Failed(f"exit code {done.code} of {words} without a message")


def _commands() -> Iterator[tuple[list[str], list[tuple[str, bool]]]]:
    """Yields each verb, or verb and sub-verb, with its options and whether each takes a value."""
    for verb in cli.VERBS:
        command = cli.load_verb(verb)
        if isinstance(command, typer.core.TyperGroup):
            for name, sub in command.commands.items():
                yield [verb, name], _options(sub)
        else:
            yield [verb], _options(command)


def _options(command: Any) -> list[tuple[str, bool]]:
    return [
        (name, not getattr(parameter, "is_flag", False))
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("-") and not NOT_PASSED.intersection(parameter.opts)
    ]
