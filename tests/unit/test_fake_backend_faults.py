"""Faults and answers are exact where a marker asks for them."""

from random import Random

import pytest

from llmqueue.fake_backend import FaultRates, SimulatorConfig, expected_answer, expected_usage
from llmqueue.fake_backend.faults import ForcedFaults


def test_the_same_prompt_has_the_same_answer_whatever_the_order_of_its_keys():
    assert expected_answer({"a": 1, "b": "é"}) == expected_answer({"b": "é", "a": 1})
    assert expected_answer("one") != expected_answer("two")


def test_the_answer_is_the_start_of_the_sha_256_of_the_prompt():
    assert expected_answer("abc") == "answer:ba7816bf8f01cfea414140de5dae2223"


def test_a_lone_surrogate_is_answered_too():
    assert expected_answer("\ud800").startswith("answer:")


def test_a_marker_puts_words_into_the_answer_even_a_nul():
    assert expected_answer(r"say [[answer:a\u0000b\n]] now") == "a\0b\n"
    assert expected_answer([{"role": "user", "content": r"[[answer:\u0000]]"}]) == "\0"
    assert expected_answer(r"[[answer:\x]]") == r"\x"


def test_output_tokens_respect_the_asked_limit():
    assert expected_usage("abc", {"max_tokens": 3}).output_tokens == 3
    assert expected_usage("abcde").input_tokens == 2


def test_a_prompt_without_a_marker_has_no_forced_fault():
    assert ForcedFaults().next_fault("[[fault:200]] [[fault:nonsense]] [fault:500]") is None


@pytest.mark.parametrize("fault", ["500", "429", "503", "529", "400", "hang", "reset", "unreadable"])
def test_a_marker_forces_its_fault_on_every_call(fault: str):
    forced = ForcedFaults()

    assert [forced.next_fault(f"x [[fault:{fault}]]") for _ in range(3)] == [fault] * 3


def test_a_counted_marker_ends_and_the_next_one_takes_over():
    forced = ForcedFaults()

    faults = [forced.next_fault("[[fault:500 x2]][[fault:429 x1]]") for _ in range(5)]

    assert faults == ["500", "500", "429", None, None]


def test_each_prompt_counts_for_itself():
    forced = ForcedFaults()

    assert forced.next_fault("one [[fault:500 x1]]") == "500"
    assert forced.next_fault("two [[fault:500 x1]]") == "500"
    assert forced.next_fault({"messages": ["one [[fault:500 x1]]"]}) == "500"


def test_rates_are_kept_over_many_draws():
    rates, rng = FaultRates(error_rate=0.2, reset_rate=0.1), Random(1)

    faults = [rates.draw(rng) for _ in range(20_000)]

    assert faults.count("500") == pytest.approx(4_000, rel=0.1)
    assert faults.count("reset") == pytest.approx(2_000, rel=0.1)
    assert set(faults) == {"500", "reset", None}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"error_rate": 1.5}, "error_rate must be between 0 and 1"),
        ({"hang_rate": float("nan")}, "hang_rate must be between 0 and 1"),
        ({"error_rate": 0.6, "reset_rate": 0.6}, "add up to 1.2"),
    ],
)
def test_impossible_rates_are_refused(rates: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        FaultRates(**rates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"speed": 0.0}, "speed must be above 0"),
        ({"speed": float("inf")}, "speed must be above 0"),
        ({"rpm": {"nobody": 5}}, "nobody"),
        ({"models": ("a", "a")}, "named twice"),
        ({"models": ()}, "at least one model"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        SimulatorConfig(**settings)  # type: ignore[arg-type]
