"""`llmqueue backend`: options, exit codes, and the line that scripts wait for."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from llmqueue.cli.backend import backend

app = typer.Typer()
app.command()(backend)
PROGRAM = "import typer; from llmqueue.cli.backend import backend; typer.run(backend)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "kimi-k2.5"], "is not MODEL=RPM"),
        (["--limit", "kimi-k2.5=-1"], "is not MODEL=RPM"),
        (["--limit", "nobody=5"], "not among the models"),
        (["--provider", "leaky"], "provider must be one of sliding"),
        (["--speed", "0"], "speed must be above 0"),
        (["--error-rate", "2"], "--error-rate"),
        (["--error-rate", "0.7", "--hang-rate", "0.7"], "add up to"),
        (["--model", "a", "--model", "a"], "named twice"),
        (["--port", "70000"], "--port"),
    ],
)
def test_a_bad_option_exits_2_and_says_why(options: list[str], message: str):
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, options)

    assert result.exit_code == 2
    assert message in result.output


def test_a_port_in_use_exits_1_with_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(app, ["--port", str(taken.getsockname()[1])])

    assert result.exit_code == 1
    assert result.output.count("\n") == 1
    assert "--port" in result.output


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_from_its_first_line_and_a_signal_stops_it_with_exit_0(stop: signal.Signals, tmp_path: Path):
    log = tmp_path / "calls.jsonl"
    options = ["--port", "0", "--instant", "--model", "a", "--limit", "a=5", "--log", str(log)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *options], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"simulated Models Backend on (http://127\.0\.0\.1:\d+) \(1 model, instant\)\n", line)
        assert found
        with urllib.request.urlopen(f"{found[1]}/limits") as reply:
            assert reply.read() == b'{"a": 5}'

        process.send_signal(stop)

        assert process.wait() == 0
        assert process.stdout.read() == ""
    assert log.exists()
