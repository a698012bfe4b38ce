"""The history of a run: drawn from rows alone, named axes, readable in grey."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from unetfast.viz import curves
from unetfast.viz.curves import draw_curves
from unetfast.viz.series import collect, running_mean


def make_rows(num_steps: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(1, num_steps + 1):
        rows.append({"kind": "train", "step": step, "epoch": 1, "loss": 2 / step, "learning_rate": 1e-3})
        if step % 5 == 0:
            scores = {"mean_iou": 1 - 1 / step, "mean_dice": None}
            rows.append({"kind": "epoch", "step": step, "epoch": step // 5, "loss": 2 / step, **scores})
            rows.append({"kind": "val", "step": step, "epoch": step // 5, "loss": 3 / step, **scores})
    return rows


@pytest.mark.parametrize("num_steps", [0, 1, 5, 200])
def test_draws_a_history_of_any_length(num_steps: int) -> None:
    picture = draw_curves(make_rows(num_steps), title="carvana-1")
    assert picture.size == (1500, 420)
    assert picture.mode == "RGB"


def test_curves_are_seen_in_grey() -> None:
    empty = np.asarray(draw_curves([]).convert("L"), dtype=np.int64)
    drawn = np.asarray(draw_curves(make_rows(40)).convert("L"), dtype=np.int64)
    assert (np.abs(empty - drawn) > 80).sum() > 1000


def test_axes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []

    def keep(*args: Any, **kwargs: Any) -> Figure:
        figures.append(Figure(*args, **kwargs))
        return figures[-1]

    monkeypatch.setattr(curves, "Figure", keep)
    draw_curves(make_rows(20))
    axes = figures[0].axes
    assert [(one.get_xlabel(), one.get_ylabel()) for one in axes] == [
        ("optimizer step", "loss"),
        ("optimizer step", "share (1 is perfect)"),
        ("optimizer step", "learning rate"),
    ]
    styles = {line.get_linestyle() for line in axes[1].lines}
    assert len(styles) == len(axes[1].lines)


def test_averaged_weights_stand_beside_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "Figure", lambda *args, **kwargs: figures.append(Figure(*args, **kwargs)) or figures[-1])
    rows = make_rows(20)
    draw_curves([*rows, *({**row, "kind": "val_ema"} for row in rows if row["kind"] == "val")])
    loss, scores, _ = figures[0].axes
    assert "validation, averaged weights" in loss.get_legend_handles_labels()[1]
    assert "mean IoU, averaged weights" in scores.get_legend_handles_labels()[1]
    styles = {line.get_linestyle() for line in scores.lines}
    assert len(styles) == len(scores.lines)


def test_undefined_numbers_leave_gaps() -> None:
    rows = [*make_rows(3), {"kind": "train", "step": 4, "loss": None, "learning_rate": 1e-3}]
    steps, losses = collect(rows, "train", "loss")
    assert steps.tolist() == [1, 2, 3, 4]
    assert np.isnan(losses[3])
    draw_curves(rows)


def test_running_mean_against_plain_python() -> None:
    values = np.array([1.0, np.nan, 3.0, 7.0, 2.0, np.nan])
    wanted = []
    for place in range(len(values)):
        part = [value for value in values[max(0, place - 1) : place + 2] if np.isfinite(value)]
        wanted.append(sum(part) / len(part))
    np.testing.assert_allclose(running_mean(values, 2), wanted)
