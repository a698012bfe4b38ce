"""The histogram of classes: bars as long as their shares, colours of the classes, every row told, nothing clipped."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unetfast.viz import histogram
from unetfast.viz.histogram import MAX_ROWS, NUM_RAREST, draw_class_histogram

COLORS = np.array([[200, 30, 30], [30, 160, 30], [40, 60, 220], [160, 160, 20]], np.uint8)
RIMS_PX = 4  # a bar's rims hide so much of its colour


def draw(pixels: list[int], images: list[int] | None = None, names: list[str] | None = None, num: int = 10) -> np.ndarray:
    count = len(pixels)
    palette = np.resize(COLORS, (count, 3)) if count <= 4 else np.random.default_rng(0).integers(0, 200, (count, 3))
    picture = draw_class_histogram(
        names or [f"class {i}" for i in range(count)],
        pixels,
        images or [min(num, 5)] * count,
        palette.astype(np.uint8),
        num_images=num,
    )
    assert picture.mode == "RGB"
    return np.asarray(picture)


def bar_px(picture: np.ndarray, color: np.ndarray) -> int:
    """Length of the bar of a colour, pixels."""
    found = (picture == color).all(axis=2)
    return int(found.sum(axis=1).max())


def edges_are_paper(picture: np.ndarray) -> bool:
    return all((edge == 255).all() for edge in (picture[:3], picture[-3:], picture[:, :3], picture[:, -3:]))


def test_bars_are_as_long_as_the_shares() -> None:
    picture = draw([500, 300, 200], images=[10, 1, 1])
    lengths = [bar_px(picture, color) + RIMS_PX for color in COLORS[:3]]
    assert lengths[0] / lengths[1] == pytest.approx(5 / 3, rel=0.02)
    assert lengths[0] / lengths[2] == pytest.approx(5 / 2, rel=0.02)
    assert edges_are_paper(picture)


def test_on_a_logarithmic_axis_equal_ratios_are_equal_steps() -> None:
    picture = draw([10_000, 1_000, 100, 10], images=[10, 10, 10, 10])
    lengths = [bar_px(picture, color) + RIMS_PX for color in COLORS]
    steps = -np.diff(lengths)
    assert (steps > 20).all()
    assert np.ptp(steps) <= 3
    picture = draw([100, 50, 25, 20], images=[10] * 4)
    linear = [bar_px(picture, color) + RIMS_PX for color in COLORS]
    assert linear[0] / linear[2] == pytest.approx(4, rel=0.03)


def test_the_commonest_class_stands_first() -> None:
    picture = draw([100, 300, 200])
    tops = [np.flatnonzero((picture == color).all(axis=2).any(axis=1)).min() for color in COLORS[:3]]
    assert tops[1] < tops[2] < tops[0]


@pytest.mark.parametrize("num_classes", [1, 2, MAX_ROWS, MAX_ROWS + 1, 150])
def test_any_number_of_classes_fits(num_classes: int) -> None:
    picture = draw([10 * (i + 1) for i in range(num_classes)])
    assert edges_are_paper(picture)
    assert picture.shape[0] < 900


def test_of_many_classes_both_ends_are_shown_and_the_rest_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[float]] = []
    draw_gap = histogram._draw_gap
    monkeypatch.setattr(histogram, "_draw_gap", lambda axes, row, shares: (told.append(shares), draw_gap(axes, row, shares)))
    order = list(range(100, 0, -1))
    rows = histogram._choose_rows(order)
    assert len(rows) == MAX_ROWS
    assert rows[: rows.index(None)] == order[: MAX_ROWS - 1 - NUM_RAREST]
    assert rows[rows.index(None) + 1 :] == order[-NUM_RAREST:]
    draw([1000 - 5 * i for i in range(100)])
    (shares,) = told
    assert len(shares) == 100 - (MAX_ROWS - 1)
    total = sum(1000 - 5 * i for i in range(100))
    assert sum(shares) == pytest.approx(100 * sum(1000 - 5 * i for i in range(21, 92)) / total)


def test_names_of_any_kind_are_no_error() -> None:
    names = ["cost $5 and $\\frac$", "\u732b\u732b", "a name without an end " * 9, ""]
    picture = draw([10, 20, 30, 40], names=names)
    assert edges_are_paper(picture)
    # mathematics is not read, a code stands for what cannot be drawn
    other = draw([10, 20, 30, 40], names=["cost $5 and $\\frac$", "<732B><732B>", *names[2:]])
    assert np.array_equal(picture, other)


def test_no_pixels_and_wrong_lengths() -> None:
    assert edges_are_paper(draw([0, 0]))
    with pytest.raises(ValueError, match="3 names, 2 and 2 counts, 2 colours"):
        draw_class_histogram(["a", "b", "c"], [1, 2], [1, 1], COLORS[:2], num_images=2)


def test_it_reads_the_same_in_grey() -> None:
    """Classes whose colours are one grey still have bars with rims, and numbers."""
    picture = np.asarray(Image.fromarray(draw([50, 50])).convert("L"))
    rows = np.flatnonzero((picture[66:-52] < 60).sum(axis=1) > 100)
    assert len(rows) >= 4  # two rims a bar
