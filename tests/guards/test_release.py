"""One version everywhere, release notes for it, and workflows that run what was reviewed."""

from __future__ import annotations

import re

from llmqueue import __version__
from tools.docs import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_is_said_once_in_the_package() -> None:
    assert not re.search(r"^version\s*=", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_newest_release_notes_are_of_this_version() -> None:
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    (unreleased, _), (newest, date), *_ = headings

    assert (unreleased, newest) == ("Unreleased", __version__)
    assert date


def test_the_compose_file_names_this_version() -> None:
    assert f"image: llmqueue:{__version__}\n" in (ROOT / "compose.yaml").read_text()


def test_workflows_pin_every_action_to_a_commit() -> None:
    used = [line for path in WORKFLOWS for line in path.read_text().splitlines() if "uses:" in line]

    assert used
    assert [line for line in used if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+(\.\d+)*$", line)] == []
