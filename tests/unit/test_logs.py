from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog

from llmqueue import logs
from llmqueue.logs import Event, configure, logger


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    monkeypatch.setattr(logs, "_logger", None)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield io.StringIO()
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def test_json_lines_have_event_level_and_utc_time(stream: io.StringIO) -> None:
    configure("json", "info", stream)

    logger().info(Event.WORKER_STARTED, worker="w")

    line = json.loads(stream.getvalue())
    assert (line["event"], line["level"], line["worker"]) == ("worker_started", "info", "w")
    assert line["timestamp"].endswith("Z")


def test_format_is_json_unless_the_stream_is_a_terminal(stream: io.StringIO) -> None:
    configure(None, "info", stream)

    logger().info(Event.WORKER_STARTED)

    assert stream.getvalue().startswith("{")


def test_level_holds_back_what_is_below(stream: io.StringIO) -> None:
    configure("console", "warning", stream)

    logger().info(Event.ATTEMPT_ENDED)

    assert stream.getvalue() == ""


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_prompts_answers_and_keys_are_never_logged(stream: io.StringIO, log_format: str) -> None:
    configure(log_format, "info", stream)  # type: ignore[arg-type]
    prompt = "my secret"

    try:
        raise ValueError("boom")
    except ValueError:
        logger().exception(Event.WORKER_STOPPED, prompt=prompt, answer=prompt, params=prompt, dsn=prompt)

    assert "boom" in stream.getvalue()
    assert "my secret" not in stream.getvalue().replace('prompt = "my secret"', "")


def test_warnings_of_libraries_come_in_our_form(stream: io.StringIO) -> None:
    configure("json", "info", stream)

    logging.getLogger("some.library").warning("careful")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["source"], first["message"]) == ("warning", "some.library", "careful")
    assert "old" in second["message"]
