from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from llmqueue.errors import UsageError
from llmqueue.settings import Settings, load_settings, parse_duration

NOT_A_URL = "must be an http:// or https:// URL with a host; credentials go into LLMQUEUE_BACKEND_TOKEN"


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("LLMQUEUE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def refusal(monkeypatch: pytest.MonkeyPatch, **settings: str) -> str:
    for name, value in settings.items():
        monkeypatch.setenv(f"LLMQUEUE_{name}", value)
    with pytest.raises(UsageError) as refused:
        load_settings()
    assert refused.value.exit_code == 2
    return str(refused.value)


def test_defaults_are_those_of_the_design() -> None:
    settings = load_settings()

    assert settings.database_url is None
    assert settings.backend_url == "http://127.0.0.1:8080"
    assert (settings.backend, settings.concurrency) == ("models", 1000)
    assert (settings.lease_s, settings.drain_s, settings.guard_s) == (20, 30, 0.5)
    assert settings.keep_attempts == timedelta(days=30)
    assert (settings.log_format, settings.log_level) == (None, "info")


def test_every_setting_says_what_it_is_for_and_what_it_takes() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if name != "log_level":
            assert isinstance(field.json_schema_extra, dict), name
            assert field.json_schema_extra["must"], name


def test_unknown_name_suggests_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, DATABSE_URL="x")

    assert message == "unknown setting LLMQUEUE_DATABSE_URL; did you mean LLMQUEUE_DATABASE_URL?"


def test_unknown_name_in_dotenv_is_refused_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTHER=1\nLLMQUEUE_CONCURENCY=3\n")

    assert refusal(monkeypatch) == "unknown setting LLMQUEUE_CONCURENCY; did you mean LLMQUEUE_CONCURRENCY?"


def test_environment_goes_before_dotenv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LLMQUEUE_CONCURRENCY=3\nLLMQUEUE_LEASE_S=7\n")
    monkeypatch.setenv("LLMQUEUE_CONCURRENCY", "4")

    assert (load_settings().concurrency, load_settings().lease_s) == (4, 7)


def test_names_that_kubernetes_injects_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PORT", "PORT_80_TCP_ADDR", "SERVICE_HOST", "SERVICE_PORT_HTTP"):
        monkeypatch.setenv(f"LLMQUEUE_{name}", "x")

    load_settings()


def test_metrics_port_is_not_available_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, METRICS_PORT="9090") == "LLMQUEUE_METRICS_PORT is not available in this version"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CONCURRENCY", "x", "must be a whole number of at least 1 (got 'x')"),
        ("CONCURRENCY", "0", "must be a whole number of at least 1 (got '0')"),
        ("LEASE_S", "0", "must be a number of seconds from 1 to 3600 (got '0')"),
        ("LEASE_S", "nan", "must be a number of seconds from 1 to 3600 (got 'nan')"),
        ("DRAIN_S", "-1", "must be a number of seconds of at least 0 (got '-1')"),
        ("DRAIN_S", "inf", "must be a number of seconds of at least 0 (got 'inf')"),
        ("GUARD_S", "11", "must be a number of seconds from 0 to 10 (got '11')"),
        ("KEEP_ATTEMPTS", "30", "must be a duration such as 90m, 12h or 30d (got '30')"),
        ("KEEP_ATTEMPTS", "0d", "must be a duration such as 90m, 12h or 30d (got '0d')"),
        ("KEEP_ATTEMPTS", "9999999999d", "must be a duration such as 90m, 12h or 30d (got '9999999999d')"),
        (
            "BACKEND_URL",
            "127.0.0.1:8080",
            NOT_A_URL + " (got '127.0.0.1:8080')",
        ),
        (
            "BACKEND_URL",
            "http://h:99999999",
            NOT_A_URL + " (got 'http://h:99999999')",
        ),
        ("BACKEND", "gemini", "must be `models`, `openai` or `package.module:factory` (got 'gemini')"),
        ("BACKEND_SINGLE_PATH", "single", "must be a path that begins with / (got 'single')"),
        ("LOG_FORMAT", "xml", "must be console or json (got 'xml')"),
        ("LOG_LEVEL", "loud", "must be debug, info, warning or error (got 'loud')"),
    ],
)
def test_bad_value_is_named_with_what_it_must_be(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    assert refusal(monkeypatch, **{name: value}) == f"LLMQUEUE_{name}: {message}"


def test_message_never_holds_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, DATABASE_URL="host=x password='hunter2", CONCURRENCY="x")

    assert message.splitlines() == [
        "LLMQUEUE_DATABASE_URL: must be a connection string that libpq takes, such as postgresql://user@host/database",
        "LLMQUEUE_CONCURRENCY: must be a whole number of at least 1 (got 'x')",
    ]


@pytest.mark.parametrize(
    "dsn",
    ["postgresql:///db?host=/run/postgresql", "host=a,b port=1,2 dbname=x", "service=prod", "postgres://u:p%40@h/db"],
)
def test_whatever_libpq_takes_is_a_database_url(monkeypatch: pytest.MonkeyPatch, dsn: str) -> None:
    monkeypatch.setenv("LLMQUEUE_DATABASE_URL", dsn)

    url = load_settings().database_url

    assert url is not None
    assert url.get_secret_value() == dsn
    assert dsn not in repr(load_settings())


def test_empty_value_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMQUEUE_DATABASE_URL", "")
    monkeypatch.setenv("LLMQUEUE_LOG_FORMAT", "")

    assert load_settings().database_url is None


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("5s", timedelta(seconds=5)),
    ],
)
def test_durations_have_a_unit(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration
