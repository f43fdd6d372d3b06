"""Each provider emulator against the plainest account of the same rule."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmqueue.fake_backend.providers import KINDS, Provider, rejections

# Eighths of a second: exact in binary, so that a brute force in fractions sees the same edges.
TIMES = st.lists(st.integers(0, 8 * 200), max_size=60).map(lambda eighths: [at / 8 for at in sorted(eighths)])
BURSTS = st.lists(st.tuples(st.integers(0, 8 * 200), st.integers(1, 12)), max_size=12).map(
    lambda bursts: [at / 8 for at, calls in sorted(bursts) for _ in range(calls)]
)
ARRIVALS = st.one_of(TIMES, BURSTS)
LIMITS = st.integers(0, 30)


def windows_of(kind: str, limit: int) -> list[tuple[int, int]]:
    """Seconds and the most calls within them, of the kinds that slide."""
    at_least_one = min(1, limit)
    return {
        "sliding": [(60, limit)],
        "ten-seconds": [(10, max(at_least_one, limit // 6)), (60, limit)],
        "second": [(1, max(at_least_one, limit // 60)), (60, limit)],
    }[kind]


def sliding(kind: str, limit: int, admitted: list[float], at: float) -> bool:
    return all(sum(at - s < earlier for earlier in admitted) < most for s, most in windows_of(kind, limit))


def minute(limit: int, admitted: list[float], at: float, phase_s: float) -> bool:
    return sum((earlier - phase_s) // 60 == (at - phase_s) // 60 for earlier in admitted) < limit


def bucket(limit: int, admitted: list[float], at: float) -> bool:
    level, last = Fraction(limit), Fraction(0)
    for call in [*map(Fraction, admitted), Fraction(at)]:
        level = min(Fraction(limit), level + (call - last) * limit / 60) - 1
        last = call
    return level >= 0


def brute_force(kind: str, arrivals: list[float], limit: int, phase_s: float) -> list[bool]:
    admitted: list[float] = []
    verdicts = []
    for at in arrivals:
        match kind:
            case "bucket":
                fits = bucket(limit, admitted, at)
            case "minute":
                fits = minute(limit, admitted, at, phase_s)
            case _:
                fits = sliding(kind, limit, admitted, at)
        verdicts.append(fits)
        if fits:
            admitted.append(at)
    return verdicts


@pytest.mark.parametrize("kind", KINDS)
@given(arrivals=ARRIVALS, limit=st.one_of(LIMITS, st.just(130)), phase=st.integers(0, 8 * 60))
def test_every_verdict_is_the_brute_force_s(kind: str, arrivals: list[float], limit: int, phase: int):
    provider = Provider(kind, limit, phase_s=phase / 8)

    verdicts = [provider.admit(at) is None for at in arrivals]

    assert verdicts == brute_force(kind, arrivals, limit, phase / 8)


@pytest.mark.parametrize("kind", KINDS)
@given(arrivals=ARRIVALS, limit=LIMITS, phase=st.integers(0, 8 * 60))
def test_rejections_counts_them_in_any_order_and_from_any_zero(
    kind: str, arrivals: list[float], limit: int, phase: int
):
    zero = 60.0 * 2**22  # about 2^28: eighths stay exact
    shuffled = [zero + at for at in reversed(arrivals)]

    refused = rejections(kind, shuffled, limit, phase_s=phase / 8)

    assert refused == brute_force(kind, arrivals, limit, phase / 8).count(False)


@pytest.mark.parametrize("kind", KINDS)
@given(arrivals=ARRIVALS, limit=st.integers(1, 30))
def test_the_wait_that_is_told_is_enough_and_not_too_long(kind: str, arrivals: list[float], limit: int):
    for at in arrivals:
        judge, sooner = Provider(kind, limit), Provider(kind, limit)
        told_s = None
        for earlier in (earlier for earlier in arrivals if earlier <= at):
            told_s = judge.admit(earlier)
            sooner.admit(earlier)
        if told_s is not None:
            assert sooner.admit(at + told_s - 0.01) is not None
            assert judge.admit(at + told_s + 0.00001) is None


@pytest.mark.parametrize("kind", ["sliding", "bucket", "minute"])
@given(calls=st.lists(st.tuples(st.integers(0, 8 * 100), st.integers(0, 400)), max_size=40))
def test_tokens_are_judged_like_as_many_calls(kind: str, calls: list[tuple[int, int]]):
    by_tokens, by_calls = Provider(kind, None, token_limit=1000), Provider(kind, 1000)

    for eighths, tokens in sorted(calls):
        at = eighths / 8
        if by_tokens.admit(at, tokens) is None:
            assert [by_calls.admit(at) for _ in range(tokens)] == [None] * tokens
        else:
            fitted = [by_calls.admit(at) for _ in range(tokens)].count(None)
            assert fitted < tokens
            for _ in range(fitted):
                by_calls.withdraw(at)


@pytest.mark.parametrize("kind", KINDS)
def test_a_withdrawn_call_gives_its_place_back(kind: str):
    provider = Provider(kind, 1)
    provider.admit(0.0)

    provider.withdraw(0.0)

    assert provider.admit(0.0) is None
    assert provider.admit(0.0) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_may_be_raised_lowered_and_lifted_live(kind: str):
    provider = Provider(kind, 0)

    assert provider.admit(0.0) is not None
    provider.limit = 60
    assert provider.admit(0.0) is None
    provider.limit = 0
    assert provider.admit(0.0) is not None
    provider.limit = None
    assert [provider.admit(0.0) for _ in range(100)] == [None] * 100


def test_more_tokens_than_the_limit_never_fit():
    assert Provider("bucket", None, token_limit=100).admit(0.0, 101) == 60.0


def test_a_bucket_takes_twice_the_limit_in_one_window_and_the_strict_log_does_not():
    arrivals = [0.0] * 60 + [float(second) for second in range(1, 60)]  # full at once, then at the rate: 2 R - 1

    assert rejections("bucket", arrivals, 60) == 0
    assert rejections("sliding", arrivals, 60) == 59


def test_the_short_windows_shrink_with_the_minute():
    arrivals = [call / 8 for call in range(60)]

    assert rejections("ten-seconds", arrivals, 60, window_s=7.5) == 0
    assert rejections("ten-seconds", arrivals, 60) == 50
    assert rejections("second", arrivals, 60, window_s=7.5) == 0


def test_nothing_is_refused_when_nothing_arrives():
    assert rejections("sliding", [], 1) == 0


def test_an_unknown_kind_is_named_beside_the_known_ones():
    with pytest.raises(ValueError, match=r"no provider 'leaky'; known are sliding, bucket"):
        Provider("leaky", 1)
