"""The figure of a learning-rate test: named axes, a marked suggestion, readable in grey, whatever the curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from unetfast.viz import lrcurve
from unetfast.viz.lrcurve import draw_lr_curve

RATES = np.logspace(-7, 0, 50).tolist()
LOSSES = (0.2 + 0.5 / (1 + np.exp(3 * (np.linspace(-7, 0, 50) + 3)))).tolist()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    made: list[Figure] = []

    def keep(*args: Any, **kwargs: Any) -> Figure:
        made.append(Figure(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(lrcurve, "Figure", keep)
    return made


def test_axes_are_named_and_the_suggestion_is_marked(figures: list[Figure]) -> None:
    picture = draw_lr_curve(RATES, LOSSES, LOSSES, suggestion=1e-3, verdict="falls there", title="carvana")
    assert (picture.size, picture.mode) == ((1000, 600), "RGB")
    axes = figures[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == ("learning rate (logarithmic)", "training loss", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["loss of a step", "smoothed", "suggestion 0.001"]
    assert [text.get_text() for text in figures[0].texts] == ["carvana", "falls there"]
    marked = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert marked == [1e-3]


def test_the_mark_is_seen_in_grey() -> None:
    plain, marked = (
        np.asarray(draw_lr_curve(RATES, LOSSES, LOSSES, suggestion=suggestion, verdict="").convert("L"), dtype=np.int64)
        for suggestion in (None, 1e-3)
    )
    assert (np.abs(plain - marked) > 80).sum() > 300


def test_a_loss_that_blew_up_does_not_flatten_the_curve(figures: list[Figure]) -> None:
    losses = [*LOSSES[:-3], 40.0, 1e6, math.nan]
    draw_lr_curve(RATES, losses, losses, suggestion=1e-3, verdict="")
    low, high = figures[0].axes[0].get_ylim()
    assert low < 0.2
    assert 0.7 < high < 2


@pytest.mark.parametrize("losses", [[math.nan], [0.7], [0.7, 0.7, 0.7], [math.inf, math.nan]])
def test_any_curve_is_drawn(losses: list[float], figures: list[Figure]) -> None:
    draw_lr_curve(RATES[: len(losses)], losses, losses, suggestion=None, verdict="none " * 60)
    assert figures[0].texts[1].get_text().endswith("…")
