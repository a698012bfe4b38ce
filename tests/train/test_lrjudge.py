"""What a learning-rate test says of its losses: made curves with a known steepest fall, flat ones, ones that blow up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetfast.train.lrjudge import RateTest, Smoother, judge, scatter_of, span_of, steepest_place, to_json


def make_test(
    losses: np.ndarray, *, first: float = 1e-7, last: float = 1.0, diverged: bool = False, planned: int = 0
) -> RateTest:
    num_steps = planned or len(losses)
    rates = [first * (last / first) ** (step / (num_steps - 1)) for step in range(len(losses))]
    smoother = Smoother(span_of(num_steps))
    return RateTest(num_steps, rates, losses.tolist(), [smoother.add(loss) for loss in losses.tolist()], diverged)


def falling_curve(num_steps: int, *, middle: float, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """A loss from 1 to 0.2, steepest where log10 of the rate is `middle`, that rises again from 10^-1 on."""
    exponent = np.linspace(-7, 0, num_steps)
    loss = 0.2 + 0.8 / (1 + np.exp(3 * (exponent - middle))) + np.where(exponent > -1, 2 * (exponent + 1), 0)
    return loss + noise * np.random.default_rng(seed).standard_normal(num_steps)


@pytest.mark.parametrize("num_steps", [60, 100, 400])
@pytest.mark.parametrize("middle", [-5.0, -3.5, -2.5])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.05])
def test_the_suggestion_is_where_the_curve_falls_most_steeply(num_steps: int, middle: float, noise: float) -> None:
    verdict = judge(make_test(falling_curve(num_steps, middle=middle, noise=noise), diverged=True))
    assert verdict.suggestion is not None
    assert abs(math.log10(verdict.suggestion) - middle) < 0.15 + 8 * noise
    assert verdict.least_rate is not None
    assert verdict.least_rate > verdict.suggestion
    assert "falls most steeply" in verdict.reason
    assert verdict.remedy == ""


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_a_flat_curve_has_no_suggestion(noise: float, seed: int) -> None:
    losses = 0.69 + noise * np.random.default_rng(seed).standard_normal(100)
    verdict = judge(make_test(losses, last=1e-5))
    assert verdict.suggestion is None
    assert verdict.reason.startswith("the loss is flat over rates from 1e-07 to 1e-05")
    assert "take a larger --to than 1e-05" in verdict.remedy


def test_a_loss_that_only_rises_has_no_suggestion() -> None:
    verdict = judge(make_test(np.linspace(0.7, 3.0, 15), planned=100, diverged=True))
    assert verdict.suggestion is None
    assert "(step 15 of 100) without having fallen before" in verdict.reason
    assert "smaller --from" in verdict.remedy


def test_a_bounded_loss_that_only_rises_has_no_suggestion() -> None:
    verdict = judge(make_test(np.linspace(0.5, 0.9, 100)))
    assert verdict.suggestion is None
    assert verdict.reason.startswith("the loss only rises over rates from 1e-07 to 1:")
    assert "smaller --from" in verdict.remedy


def test_a_loss_that_is_not_finite_at_once_is_said() -> None:
    verdict = judge(RateTest(100, [1e-7], [math.nan], [math.nan], diverged=True))
    assert (verdict.suggestion, verdict.least_rate) == (None, None)
    assert verdict.reason == "the loss of the very first step is not a finite number"
    assert "unetfast inspect --verify" in verdict.remedy


def test_one_finite_loss_is_no_curve() -> None:
    verdict = judge(RateTest(100, [1e-7, 1.2e-7], [0.7, math.inf], [0.7, math.inf], diverged=True))
    assert verdict.suggestion is None
    assert "(step 2 of 100)" in verdict.reason


def test_a_curve_that_still_falls_at_its_end_is_said() -> None:
    losses = 1 - np.linspace(0, 0.8, 100) ** 2
    verdict = judge(make_test(losses, last=1e-3))
    assert verdict.suggestion is not None
    assert "still falls at 0.001: a larger --to may find a larger rate" in verdict.remedy


@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=30), horizon=st.floats(1, 20))
def test_smoothing_is_a_weighted_mean(values: list[float], horizon: float) -> None:
    smoother = Smoother(horizon)
    found = [smoother.add(value) for value in values]
    keep = 1 - 1 / horizon
    for place, mean in enumerate(found):
        weights = keep ** np.arange(place, -1, -1)
        assert mean == pytest.approx(np.average(values[: place + 1], weights=weights), abs=1e-9)


def test_scatter_is_the_standard_deviation_of_noise_on_a_course() -> None:
    noise = 0.05 * np.random.default_rng(0).standard_normal(4000)
    assert scatter_of(np.linspace(1, 0, 4000) + noise) == pytest.approx(0.05, rel=0.1)
    assert scatter_of(np.array([1.0])) == 0


def test_the_steepest_place_is_that_of_a_plain_search() -> None:
    rng = np.random.default_rng(3)
    rates, smoothed = np.logspace(-6, 0, 40), rng.random(40)
    least = int(smoothed.argmin())
    slopes = []
    for place in range(least + 1):
        low, high = max(0, place - 2), min(40, place + 3)
        x, y = np.log10(rates[low:high]), smoothed[low:high]
        slopes.append(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    assert steepest_place(rates, smoothed, least, 2) == int(np.argmin(slopes))


def test_json_holds_no_nan() -> None:
    test = RateTest(100, [1e-7, 1.2e-7], [0.7, math.nan], [0.7, math.nan], diverged=True)
    tree = to_json(test, judge(test), picture=None)
    assert tree["losses"] == [0.7, None]
    assert tree["suggestion"] is None
    assert tree["num_steps"] == 2
