"""Generates docs/cli.md, docs/configuration.md and docs/events.md from the commands, settings and log events."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from llmqueue import cli, logs
from llmqueue.settings import PREFIX, Settings

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

HIDDEN: Final = frozenset({"--help", "--install-completion", "--show-completion"})
GENERATED: Final = "This page is generated (`make docs`) from {source}; do not edit it."

CLI: Final = """# Commands

Exit codes: 0 done, 1 the thing asked for failed or a check found a problem, 2 wrong usage or configuration. Errors go
to stderr as `llmqueue: what, where, what to do`. Settings come from the environment:
[configuration.md](configuration.md).

"""
CONFIGURATION: Final = """# Configuration

Environment variables, or the same names as lines of a file `.env` in the current folder (the environment wins). An
empty value counts as unset. An unknown `LLMQUEUE_` name is an error that suggests the right one; what Kubernetes
injects for a Service named llmqueue (`LLMQUEUE_PORT…`, `LLMQUEUE_SERVICE…`) is ignored. Limits of models are not
settings: they are rows of `llmqueue.model_config` ([sql-api.md](sql-api.md)).

"""
EVENTS: Final = """# Log events

Every line that llmqueue logs is one of these events; the list is closed, and a test holds the code to it. Lines go to
stderr: readable on a terminal, JSON otherwise (`LLMQUEUE_LOG_FORMAT`), times in UTC. There is one `attempt_ended` per
attempt. Prompts, answers, parameters and keys are never logged.

"""


def cli_page() -> str:
    """Returns the page of the commands whose modules exist."""
    lines = [CLI + GENERATED.format(source="the commands themselves"), "", "| command | |", "|---|---|"]
    lines += [f"| `llmqueue {verb}` | {said} |" for verb, said in cli.VERBS.items()]
    for verb in verbs():
        lines += _command(f"llmqueue {verb}", cli.load_verb(verb), level=2)
    return "\n".join(lines) + "\n"


def verbs() -> list[str]:
    """Returns the verbs that have a module."""
    return [verb for verb in cli.VERBS if importlib.util.find_spec(f"llmqueue.cli.{verb}")]


def commands() -> Iterator[str]:
    """Yields every command that can be typed, such as `llmqueue models set`."""
    for verb in verbs():
        command = cli.load_verb(verb)
        yield f"llmqueue {verb}"
        yield from (f"llmqueue {verb} {name}" for name in getattr(command, "commands", {}))


def _command(name: str, command: Any, level: int) -> list[str]:
    said = inspect.cleandoc(command.help or "")
    lines = ["", f"{'#' * level} {name}", "", said]
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and HIDDEN.isdisjoint(param.opts)]
    if not hasattr(command, "commands"):
        usage = [name, *(_argument(param) for param in arguments), *(["[OPTIONS]"] if options else [])]
        lines += ["", "```", " ".join(usage), "```"]
    if options or any(getattr(param, "help", None) for param in arguments):
        lines += ["", "| option | |", "|---|---|"]
        lines += [
            f"| `{_argument(param)}` | {_cell(param.help)} |" for param in arguments if getattr(param, "help", None)
        ]
        lines += [f"| {_option(param)} | {_cell(param.help)}{_default(param)} |" for param in options]
    for sub in getattr(command, "commands", {}).values():
        lines += _command(f"{name} {sub.name}", sub, level + 1)
    return lines


def _argument(param: Any) -> str:
    shown = (param.metavar or param.name).upper().strip("[]")
    shown += "..." if param.nargs == -1 and not shown.endswith("...") else ""
    return shown if param.required else f"[{shown}]"


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    if param.is_flag:
        return names
    return f"{names} `{_cell(param.metavar or _type(param))}`"


def _type(param: Any) -> str:
    names = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER", "list[str]": "TEXT"}
    return names.get(param.bare_type(), "VALUE")


def _default(param: Any) -> str:
    value = param.default
    if param.is_flag or value is None or callable(value) or value in ((), [], ""):
        return ""
    return f" Default: `{value:g}`." if isinstance(value, float) else f" Default: `{value}`."


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def configuration_page() -> str:
    """Returns the page of the settings."""
    lines = [CONFIGURATION + GENERATED.format(source="`Settings` in src/llmqueue/settings.py"), ""]
    lines += ["| variable | default | what it is | must |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra
        must = extra["must"] if isinstance(extra, dict) else ""
        lines.append(f"| `{PREFIX}{name.upper()}` | {_setting(field)} | {field.description} | {must} |")
    return "\n".join(lines) + "\n"


def _setting(field: FieldInfo) -> str:
    value = field.default
    if field.default_factory is not None:
        return (inspect.getdoc(field.default_factory) or "").splitlines()[0].rstrip(".")
    if value is None:
        return "unset"
    if isinstance(value, timedelta):
        value = f"{value.days}d"
    return f"`{value}`"


def events_page() -> str:
    """Returns the page of the log events."""
    lines = [EVENTS + GENERATED.format(source="`Event` in src/llmqueue/logs.py"), "", "| event | |", "|---|---|"]
    lines += [f"| `{name}` | {said} |" for name, said in event_docstrings().items()]
    return "\n".join(lines) + "\n"


def event_docstrings() -> dict[str, str]:
    """Returns the docstring below each member of Event, by event; omits members without one."""
    body = next(node for node in ast.parse(inspect.getsource(logs.Event)).body if isinstance(node, ast.ClassDef)).body
    return {
        str(ast.literal_eval(member.value)): " ".join(ast.literal_eval(said.value).split())
        for member, said in pairwise(body)
        if isinstance(member, ast.Assign) and isinstance(said, ast.Expr)
    }
