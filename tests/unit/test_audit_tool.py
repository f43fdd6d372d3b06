"""`make audit` says which of three things it knows."""

from __future__ import annotations

import json

from tools.audit import report


def test_a_known_weakness_is_named_with_its_remedy() -> None:
    flaw = {"id": "CVE-1", "fix_versions": ["2.0"], "aliases": [], "description": ""}
    found = json.dumps({"dependencies": [{"name": "a", "version": "1.0", "vulns": [flaw]}], "fixes": []})

    assert report(found, "") == (["a 1.0: CVE-1, fixed in 2.0", "audit: 1 packages, 1 known weaknesses"], 1)


def test_nothing_known_is_said_with_what_was_asked() -> None:
    found = json.dumps({"dependencies": [{"name": "a", "version": "1.0", "vulns": []}], "fixes": []})

    assert report(found, "") == (["audit: 1 packages, 0 known weaknesses"], 0)


def test_a_database_that_cannot_be_asked_is_not_taken_for_a_clean_bill() -> None:
    lines, code = report("", "Traceback …\nrequests.exceptions.ConnectionError: no route")

    assert code == 2
    assert lines[0] == "audit: the advisory database could not be asked from this machine, so nothing was audited."
    assert "no route" in lines[1]


def test_packages_that_the_database_does_not_know_are_no_clean_bill() -> None:
    found = json.dumps({"dependencies": [{"name": "a", "skip_reason": "not found"}], "fixes": []})

    assert report(found, "")[1] == 2
