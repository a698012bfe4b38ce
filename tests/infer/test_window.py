"""Where windows lie and how they count, against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetfast.errors import UserError
from unetfast.infer.window import MAX_OVERLAP, Windows, blend_weights, lay_grid, parse_windows, place_windows


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 400), window=st.integers(1, 400), overlap=st.floats(0, MAX_OVERLAP))
def test_windows_cover_the_axis_with_the_overlap_asked_for(length: int, window: int, overlap: float) -> None:
    window = min(window, length)
    starts = place_windows(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - window
    gaps = np.diff(starts)
    assert (gaps > 0).all()
    assert (gaps <= max(1, window)).all(), "no pixel lies between two windows"
    assert (gaps <= max(1.0, window * (1 - overlap)) + 1).all()
    # one window fewer would not reach
    if len(starts) > 1:
        assert (len(starts) - 2) * max(1.0, window * (1 - overlap)) < length - window + 1e-6


def test_places_are_those_of_nnunet() -> None:
    """Its rule: steps of at most half a window, as few as reach, evenly spread (compute_steps_for_sliding_window)."""
    for length, window in ((162, 96), (162, 48), (110, 64), (300, 100), (64, 64)):
        num_steps = math.ceil((length - window) / (window * 0.5)) + 1
        actual = (length - window) / (num_steps - 1) if num_steps > 1 else 0
        assert list(place_windows(length, window, 0.5)) == [round(actual * i) for i in range(num_steps)]


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 200), window=st.integers(1, 90), overlap=st.floats(0, MAX_OVERLAP))
def test_weights_add_up_to_one_everywhere(length: int, window: int, overlap: float) -> None:
    window = min(window, length)
    starts = place_windows(length, window, overlap)
    total = np.zeros(length)
    for start, weights in zip(starts, blend_weights(starts, window, length), strict=True):
        assert (weights > 0).all()
        total[start : start + window] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_weights_are_a_gaussian_of_an_eighth_of_the_window() -> None:
    # two windows that share all but 4 pixels of 64: their ratio is that of the two bells
    first, second = blend_weights((0, 4), 64, 68).astype(np.float64)
    places = np.arange(4, 64)
    bells = [np.exp(-((places - centre) ** 2) / (2 * 8.0**2)) for centre in (31.5, 35.5)]
    np.testing.assert_allclose(first[4:64] / second[0:60], bells[0] / bells[1], rtol=1e-4)


def test_a_single_window_weighs_one() -> None:
    grid = lay_grid((30, 40), Windows((64, 64)))
    assert grid.window_hw == (30, 40)
    assert grid.num_windows == 1
    assert (grid.row_weights == 1).all()
    assert (grid.column_weights == 1).all()


def test_a_window_larger_in_one_direction_is_cut_to_the_image() -> None:
    grid = lay_grid((30, 400), Windows((64, 64)))
    assert grid.window_hw == (30, 64)
    assert len(grid.tops) == 1
    assert grid.lefts[-1] == 400 - 64


def test_scale_shrinks_what_windows_are_cut_from() -> None:
    grid = lay_grid((1280, 1918), Windows((160, 240), 0.5, 0.125))
    assert grid.scaled_hw == (160, 240)
    assert grid.num_windows == 1
    assert lay_grid((3, 3), Windows((160, 240), 0.5, 0.01)).scaled_hw == (1, 1)


def test_parsing() -> None:
    assert parse_windows("off", training_hw=(160, 240), overlap=0.5, scale=1.0) is None
    assert parse_windows("auto", training_hw=(160, 240), overlap=0.25, scale=0.5) == Windows((160, 240), 0.25, 0.5)
    assert parse_windows("96X128", training_hw=(160, 240), overlap=0.5, scale=1) == Windows((96, 128))


@pytest.mark.parametrize("text", ["12", "0x5", "axb", "12x", "x12", "-3x4", "12x12x12", "1.5x2", ""])
def test_a_window_that_is_none_is_one_clear_line(text: str) -> None:
    with pytest.raises(UserError, match=r"--window .*: give auto, off or HEIGHTxWIDTH in pixels, such as 512x512") as caught:
        parse_windows(text, training_hw=(8, 8), overlap=0.5, scale=1.0)
    assert "\n" not in str(caught.value)


def test_messages() -> None:
    with pytest.raises(UserError, match=r"--overlap 0\.95: give a share from 0 to 0\.9"):
        parse_windows("auto", training_hw=(8, 8), overlap=0.95, scale=1.0)
    with pytest.raises(UserError, match="--scale 0: give a factor"):
        parse_windows("auto", training_hw=(8, 8), overlap=0.5, scale=0.0)
    with pytest.raises(UserError, match="--scale nan: give a factor"):
        parse_windows("auto", training_hw=(8, 8), overlap=0.5, scale=math.nan)
    with pytest.raises(UserError, match="--overlap and --scale are for windows"):
        parse_windows("off", training_hw=(8, 8), overlap=0.5, scale=0.5)
