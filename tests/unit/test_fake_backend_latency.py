"""The simulated latencies: what was measured is what is drawn."""

from pathlib import Path
from random import Random

import pytest

from bench.fit_latency import measured_latencies
from llmqueue.fake_backend.latency import DEFAULT_MODELS, FITS, LatencyFit, fit_for, percentiles

DATA = Path(__file__).parents[3] / "shared" / "data"


def test_ten_models_are_served_by_default():
    assert len(DEFAULT_MODELS) == 10


@pytest.mark.parametrize("model", DEFAULT_MODELS)
def test_the_points_of_a_row_never_fall(model: str):
    fit = FITS[model]

    shares = [step / 1000 for step in range(1001)]
    quantiles = [fit.quantile_s(share) for share in shares]

    assert quantiles == sorted(quantiles)


@pytest.mark.parametrize("model", DEFAULT_MODELS)
def test_draws_keep_p50_p95_and_maximum(model: str):
    fit, rng = FITS[model], Random(7)

    drawn = percentiles([fit.draw_s(rng) for _ in range(50_000)])

    assert drawn.p50_s == pytest.approx(fit.p50_s, rel=0.03)
    assert drawn.p95_s == pytest.approx(fit.p95_s, rel=0.05)
    assert fit.max_s * 0.95 <= drawn.max_s <= fit.max_s * (1 + 1e-9)
    assert drawn.min_s >= fit.min_s * (1 - 1e-9)


def test_the_ends_of_a_fit_are_its_minimum_and_maximum():
    fit = LatencyFit(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)

    assert fit.quantile_s(0.0) == pytest.approx(1.0)
    assert fit.quantile_s(0.5) == pytest.approx(3.0)
    assert fit.quantile_s(1.0) == pytest.approx(7.0)


def test_an_unmeasured_name_borrows_the_row_at_its_position():
    assert fit_for("gpt-9", 11) == FITS[DEFAULT_MODELS[1]]
    assert fit_for("kimi-k2.5", 0) == FITS["kimi-k2.5"]


@pytest.mark.skipif(not DATA.is_dir(), reason="the measured calls (../shared/data) are not on this machine")
def test_the_table_is_what_the_measured_calls_give():
    measured = {name: percentiles(latencies_s) for name, latencies_s in measured_latencies(DATA).items()}

    assert measured == FITS
