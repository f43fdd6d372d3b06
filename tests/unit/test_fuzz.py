"""A little of `make fuzz` at each test run, always the same cases; and what it has found, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.fuzz.hunt import Case, Failed, hunt
from bench.fuzz.replies import GOOD, Replies
from bench.fuzz.settings import SECRET, Environment
from llmqueue.types import Complete

SEED = 1


def test_no_settings_are_read_with_a_traceback_or_refused_with_a_secret(tmp_path: Path) -> None:
    found = hunt(Environment(tmp_path), SEED, lambda cases, _: cases >= 100)

    assert [str(failure) for failure in found.failures] == []


def test_no_reply_of_a_backend_makes_an_attempt_raise_or_hang() -> None:
    found = hunt(Replies(), SEED, lambda cases, _: cases >= 60)

    assert [str(failure) for failure in found.failures] == []


def test_a_home_of_a_user_who_is_not_there_is_refused_in_words(tmp_path: Path) -> None:
    Environment(tmp_path).check(Case([], {"LLMQUEUE_HOME": "~nobody-of-that-name/x"}))


@pytest.mark.parametrize(
    ("pieces", "environment"),
    [
        ([], {"LLMQUEUE_BACKEND_URL": f"http://user:{SECRET}host/path"}),  # the @ is missing
        ([b"LLMQUEUE_DRAIN_S=x", b"LLMQUEUE_DATABASE_URL=host=h password=" + SECRET.encode()], {}),  # the line end is
    ],
)
def test_a_secret_beside_a_slip_of_the_pen_is_not_shown(
    tmp_path: Path, pieces: list[bytes], environment: dict[str, str]
) -> None:
    Environment(tmp_path).check(Case(pieces, environment))


@pytest.mark.parametrize("words", [b"R\xe9ussi", b"\xff\xfe", b""])
def test_words_behind_the_status_in_another_encoding_do_not_cost_the_answer(words: bytes) -> None:
    body = GOOD["models"]
    pieces = [b"HTTP/1.1 200 " + words + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body]

    decision = Replies().decision(Case(pieces, {"adapter": "models", "end": "close"}))

    assert isinstance(decision, Complete)
    assert decision.answer == "because"


def test_a_case_depends_on_seed_and_number_alone_and_a_failure_is_made_smaller() -> None:
    class Picky(Replies):
        name = "picky"

        def check(self, case: Case) -> None:
            if any(piece.startswith(b"Retry-After") for piece in case.pieces):
                raise Failed("no such header, please")

    found = hunt(Picky(), SEED, lambda cases, _: cases >= 200)
    again = hunt(Picky(), SEED, lambda cases, _: cases >= 1, first=found.failures[0].number)

    assert again.failures == found.failures[:1]
    assert [piece[:11] for piece in found.failures[0].case.pieces] == [b"Retry-After"]
