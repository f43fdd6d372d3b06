"""Settings: environment variables that begin with LLMQUEUE_, and the same names in a file `.env`.

`load_settings()` is the only entry: it checks every value, and its errors name the setting and the remedy. The fields
of `Settings` are the complete list. docs/configuration.md is generated from them, so each field has its purpose
(`description`) and its allowed values (`must`: the end of the sentence "LLMQUEUE_CONCURRENCY must …").
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

import platformdirs
import psycopg
from dotenv import dotenv_values
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from llmqueue.errors import UsageError

if TYPE_CHECKING:
    from pydantic.config import JsonDict
    from pydantic_core import ErrorDetails

PREFIX = "LLMQUEUE_"
DOTENV = ".env"

# Planned settings; each is refused with a message of its own until it exists.
NOT_YET = frozenset({"METRICS_PORT"})

# Kubernetes injects the first two for a Service named llmqueue; our test suite uses the third.
NOT_OURS = re.compile(r"LLMQUEUE_(PORT|SERVICE|TEST)(_.*)?")

DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
# Credentials in a URL, also where the @ is missing, and the next line of a .env file without a line end.
SECRET_INSIDE = re.compile(rf"@|//[^/?#]*:(?!\d*(?:[/?#]|$))|{PREFIX}", re.IGNORECASE)
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(value: object) -> object:
    """Turns `90m`, `12h` or `30d` into a timedelta; other text is a ValueError, other types pass."""
    if not isinstance(value, str):
        return value
    match = DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("not a duration")
    try:
        return timedelta(**{UNITS[match[2]]: float(match[1])})
    except OverflowError:
        raise ValueError("too long a duration") from None


def default_home() -> Path:
    """The user's data folder; for root /var/lib/llmqueue.

    PostgreSQL refuses to run as root, so the embedded server of root runs as another user. That user cannot enter
    root's home folder, and llmqueue must not open that folder to everybody.
    """
    return Path("/var/lib/llmqueue") if os.geteuid() == 0 else platformdirs.user_data_path("llmqueue")


def _dsn(value: SecretStr) -> SecretStr:
    try:
        conninfo_to_dict(value.get_secret_value())
    except psycopg.Error:
        # Not chained: the message of libpq may quote a part of the password.
        raise ValueError("not a connection string") from None
    return value


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("not an http URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("credentials belong into LLMQUEUE_BACKEND_TOKEN")
    _ = parts.port  # raises a ValueError if it is not a number
    return value.rstrip("/")


def _bearer(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()  # files of secrets end with a newline
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("cannot be sent in a header")
    return SecretStr(text)


def _adapter(value: str) -> str:
    if value not in {"models", "openai"} and not re.fullmatch(r"[\w.]+:\w+", value):
        raise ValueError("no such adapter")
    return value


def _http_path(value: str) -> str:
    if not value.startswith("/"):
        raise ValueError("not a path")
    return value


def _time_to_keep(value: object) -> object:
    duration = parse_duration(value)
    if duration == timedelta(0):
        raise ValueError("no time at all")
    return duration


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _folder(value: Path) -> Path:
    try:
        return value.expanduser().absolute()
    except RuntimeError:  # the ~ of a user who does not exist
        raise ValueError("no such user") from None


Dsn = Annotated[SecretStr, AfterValidator(_dsn)]
LogFormat = Annotated[Literal["console", "json"], BeforeValidator(_lower)]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]

_DSN: JsonDict = {"must": "be a connection string that libpq takes, such as postgresql://user@host/database"}
_NAME: JsonDict = {"must": "be the name of a field"}


class Settings(BaseSettings):
    """Every setting of llmqueue, checked."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=DOTENV,
        env_file_encoding="utf-8",
        env_ignore_empty=True,  # compose files pass `LLMQUEUE_X: ${X:-}`
        extra="ignore",  # _unknown_names() finds unknown names and suggests the right ones
        frozen=True,
    )

    database_url: Dsn | None = Field(
        default=None,
        description="the database, as libpq takes it (URI, key=value or service); unset: the embedded PostgreSQL",
        json_schema_extra=_DSN,
    )
    listen_url: Dsn | None = Field(
        default=None,
        description="a direct connection for LISTEN, if DATABASE_URL goes through a pooler",
        json_schema_extra=_DSN,
    )
    backend_url: Annotated[str, AfterValidator(_http_url)] = Field(
        default="http://127.0.0.1:8080",
        description="where the Models Backend answers",
        json_schema_extra={
            "must": "be an http:// or https:// URL with a host; credentials go into LLMQUEUE_BACKEND_TOKEN"
        },
    )
    backend: Annotated[str, AfterValidator(_adapter)] = Field(
        default="models",
        description="how to talk to it: `models`, `openai`, or an adapter of your own",
        json_schema_extra={"must": "be `models`, `openai` or `package.module:factory`"},
    )
    backend_token: Annotated[SecretStr, AfterValidator(_bearer)] | None = Field(
        default=None,
        description="sent as a bearer token with every call",
        json_schema_extra={"must": "be printable ASCII without spaces"},
    )
    backend_single_path: Annotated[str, AfterValidator(_http_path)] = Field(
        default="/single",
        description="path of the call for one prompt",
        json_schema_extra={"must": "be a path that begins with /"},
    )
    backend_batch_path: Annotated[str, AfterValidator(_http_path)] = Field(
        default="/batch",
        description="path of the call for several prompts",
        json_schema_extra={"must": "be a path that begins with /"},
    )
    backend_prompt_field: str = Field(
        default="prompt", min_length=1, description="request field of the prompt", json_schema_extra=_NAME
    )
    backend_model_field: str = Field(
        default="model", min_length=1, description="request field of the model", json_schema_extra=_NAME
    )
    backend_params_field: str = Field(
        default="params", min_length=1, description="request field of the task's params", json_schema_extra=_NAME
    )
    backend_answer_field: str = Field(
        default="answer", min_length=1, description="reply field of the answer", json_schema_extra=_NAME
    )
    backend_usage_field: str = Field(
        default="usage", min_length=1, description="reply field of the usage", json_schema_extra=_NAME
    )
    backend_input_tokens_field: str = Field(
        default="prompt_tokens",
        min_length=1,
        description="field of the usage: input tokens",
        json_schema_extra=_NAME,
    )
    backend_output_tokens_field: str = Field(
        default="completion_tokens",
        min_length=1,
        description="field of the usage: output tokens",
        json_schema_extra=_NAME,
    )
    concurrency: int = Field(
        default=1000,
        ge=1,
        description="most calls that one worker holds in flight; a tenth of them (at least one, if there are two or "
        "more) is reserved for hot tasks (priority 100 and more)",
        json_schema_extra={"must": "be a whole number of at least 1"},
    )
    lease_s: float = Field(
        default=20,
        ge=1,
        le=3600,
        allow_inf_nan=False,
        description="a worker silent for this long counts as dead, and its tasks run again",
        json_schema_extra={"must": "be a number of seconds from 1 to 3600"},
    )
    drain_s: float = Field(
        default=30,
        ge=0,
        allow_inf_nan=False,
        description="how long a stopping worker waits for the calls in flight",
        json_schema_extra={"must": "be a number of seconds of at least 0"},
    )
    guard_s: float = Field(
        default=0.5,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="time that the ledger allows between the grant of a call and its arrival at the backend; the "
        "worker sends a call within two fifths of it or returns the grant",
        json_schema_extra={"must": "be a number of seconds from 0 to 10"},
    )
    keep_attempts: Annotated[timedelta, BeforeValidator(_time_to_keep)] = Field(
        default=timedelta(days=30),
        description="how long the attempt log is kept",
        json_schema_extra={"must": "be a duration such as 90m, 12h or 30d"},
    )
    log_format: LogFormat | None = Field(
        default=None,
        description="`console` or `json`; unset: console on a terminal, json otherwise",
        json_schema_extra={"must": "be console or json"},
    )
    log_level: LogLevel = Field(
        default="info",
        description="the lowest level that is logged",
        json_schema_extra={"must": "be debug, info, warning or error"},
    )
    home: Annotated[Path, AfterValidator(_folder)] = Field(
        default_factory=default_home,
        description="folder of the spill files (answers of a worker that its database cannot take now) and of the "
        "embedded PostgreSQL",
        json_schema_extra={"must": "be the path of a folder"},
    )


def load_settings() -> Settings:
    """Reads and checks the settings. Raises UsageError that names each wrong setting, but never a secret value."""
    if wrong := _unknown_names():
        raise UsageError("\n".join(wrong))
    try:
        return Settings()
    except ValidationError as error:
        raise UsageError("\n".join(_explain(e) for e in error.errors())) from None
    except UnicodeDecodeError:
        raise UsageError(f"{DOTENV} is not UTF-8 text") from None


def _unknown_names() -> list[str]:
    given = {name.upper() for name in os.environ}
    try:
        given |= {name.upper() for name in dotenv_values(DOTENV, interpolate=False)}
    except UnicodeDecodeError:
        return [f"{DOTENV} is not UTF-8 text"]
    ours = {PREFIX + name.upper() for name in Settings.model_fields}
    candidates = {n for n in given - ours if n.startswith(PREFIX) and not NOT_OURS.fullmatch(n)}
    return [_unknown(name, ours) for name in sorted(candidates)]


def _unknown(name: str, ours: set[str]) -> str:
    if name.removeprefix(PREFIX) in NOT_YET:
        return f"{name} is not available in this version"
    # without the prefix, which would make all names similar
    near = get_close_matches(name.removeprefix(PREFIX), [own.removeprefix(PREFIX) for own in ours], n=1, cutoff=0.7)
    return f"unknown setting {name}" + (f"; did you mean {PREFIX}{near[0]}?" if near else "")


def _explain(error: ErrorDetails) -> str:
    """Returns `LLMQUEUE_CONCURRENCY: must be a whole number of at least 1 (got 'x')`, without the value of a secret."""
    name = str(error["loc"][0]).lower().removeprefix(PREFIX.lower())
    field = Settings.model_fields[name]
    extra = field.json_schema_extra
    must = extra["must"] if isinstance(extra, dict) else "be something else"
    is_secret = "SecretStr" in str(field.annotation) or SECRET_INSIDE.search(str(error["input"]))
    got = "" if is_secret else f" (got {error['input']!r})"
    return f"{PREFIX}{name.upper()}: must {must}{got}"
