"""What the audit draws: the fullest window of each column, the limit, and when it changed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llmqueue.audit import Auditor, Call, Change, Chart, Scope

S = 1_000_000
START = 1_800_000_000 * S


def draw(calls: list[Call], until_s: int, columns: int) -> Chart:
    chart = Chart(START, START + until_s * S, columns)
    auditor = Auditor(Scope(), lambda _model: chart)
    for call in calls:
        auditor.push(call)
    auditor.finish()
    return chart


def sent(at_s: float, rpm: int = 60, tpm: int | None = None, tokens: int | None = None) -> Call:
    at_us = START + round(at_s * S)
    return Call("m", at_us, rpm, at_us, tpm=tpm, tokens=tokens)


def test_a_column_holds_the_fullest_window_that_ends_in_it() -> None:
    chart = draw([sent(0), sent(1), sent(2), sent(70)], until_s=300, columns=10)

    # each is 30 s: the window holds 3 calls until just before 60 s, 1 from 70 s to 130 s, and none after that
    assert chart.used[0] == [3, 3, 2, 1, 1, 0, 0, 0, 0, 0]


def test_a_column_without_a_call_is_drawn_too() -> None:
    chart = draw([sent(0), sent(299)], until_s=300, columns=10)

    assert chart.used[0] == [1, 1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert chart.limits[0] == [60] * 10


def test_changes_of_limits_are_marked_where_they_are_first_used() -> None:
    chart = draw([sent(0, 60), sent(10, 60, 100, 1), sent(20, 30, 100, 1), sent(90, 30, 100, 1)], 100, 10)

    assert chart.changes == [Change(START + 10 * S, 1, None, 100), Change(START + 20 * S, 0, 60, 30)]
    assert chart.limits[0] == [60, 60, 30, 30, 30, 30, 30, 30, 30, 30]
    assert chart.limits[1][:3] == [None, 100, 100]
    assert chart.used[1][1:3] == [1, 2]


def test_a_chart_of_a_moment_can_be_drawn() -> None:
    chart = draw([sent(0)], until_s=0, columns=10)

    assert 1 in chart.used[0]


@given(st.integers(1, 1000), st.integers(1, 50))
def test_every_edge_lies_in_its_column(span_us: int, columns: int) -> None:
    chart = Chart(START, START + span_us, columns)

    edges = list(chart.edges(START - 1, START + span_us))

    assert edges == sorted(edges)
    for column in range(columns):
        at_us = chart.start_of(column)
        chart.note(at_us, (column + 1, 0, 0), None)
        assert START <= at_us <= START + span_us
        if span_us >= columns:
            assert chart.used[0][column] == column + 1
