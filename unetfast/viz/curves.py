"""The history of a run as a figure: loss, scores and learning rate over steps.

Drawn from the rows of metrics.jsonl alone, so a figure can be made again from a run folder. Lines differ in dash and marker as
well as in colour and darkness: the figure reads the same in grey.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from unetfast.viz.lettering import spell
from unetfast.viz.series import Row, collect, running_mean

SMOOTHED_POINTS = 60  # above this many, single training losses are drawn faint, with a running mean over them

TRAIN: dict[str, Any] = {"color": "#1b4f8f", "linestyle": "-"}
VAL: dict[str, Any] = {"color": "#d9822b", "linestyle": "--", "marker": "o", "markersize": 4.0}
EMA: dict[str, Any] = {"color": "#8350c4", "linestyle": "-.", "marker": "s", "markersize": 3.5}
OTHER: dict[str, Any] = {"color": "#5aa36a", "linestyle": ":", "marker": "^", "markersize": 4.0}
ACCURACY: dict[str, Any] = {"color": "#777777", "linestyle": "--", "marker": "x", "markersize": 4.0}


def draw_curves(rows: Sequence[Row], *, title: str = "") -> Image.Image:
    """Draw loss, scores and learning rate of a run.

    Args:
        rows: of metrics.jsonl, in order; kinds "train", "epoch", "val" and "val_ema", undefined numbers None.
        title: name of the run.

    Returns:
        RGB, 1500 x 420 pixels. An empty history gives axes that say so.
    """
    figure = Figure(figsize=(15, 4.2), dpi=100)
    canvas = FigureCanvasAgg(figure)
    loss_axes, score_axes, rate_axes = figure.subplots(1, 3)
    # fixed margins: the automatic layouts draw everything several times to measure it
    figure.subplots_adjust(left=0.05, right=0.985, bottom=0.13, top=0.83 if title else 0.91, wspace=0.2)
    _draw_loss(loss_axes, rows)
    _draw_scores(score_axes, rows)
    _draw_rate(rate_axes, rows)
    for axes in (loss_axes, score_axes, rate_axes):
        _finish(axes, rows)
    if title:
        figure.suptitle(spell(title), parse_math=False)
    buffer = io.BytesIO()
    canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    return Image.open(buffer).convert("RGB")


def _draw_loss(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_title("loss")
    axes.set_ylabel("loss")
    steps, losses = collect(rows, "train", "loss")
    if len(steps) > SMOOTHED_POINTS:
        axes.plot(steps, losses, color=TRAIN["color"], alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(losses, len(losses) // 20), label="training (running mean)", **TRAIN)
    elif len(steps) > 1:
        axes.plot(steps, losses, label="training", **TRAIN)
    else:  # fewer steps than two rows: the means of the epochs say more
        _plot(axes, rows, "epoch", "loss", "training (epoch means)", TRAIN)
    _plot(axes, rows, "val", "loss", "validation", VAL)
    _plot(axes, rows, "val_ema", "loss", "validation, averaged weights", EMA)
    drawn = np.concatenate([losses, collect(rows, "val", "loss")[1]])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size and drawn.min() > 0 and drawn.max() > 20 * drawn.min():
        axes.set_yscale("log")


def _draw_scores(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_title("scores, from one confusion matrix each")
    axes.set_ylabel("share (1 is perfect)")
    _plot(axes, rows, "epoch", "mean_iou", "mean IoU, training", TRAIN)
    _plot(axes, rows, "val", "mean_iou", "mean IoU, validation", VAL)
    _plot(axes, rows, "val_ema", "mean_iou", "mean IoU, averaged weights", EMA)
    _plot(axes, rows, "val", "mean_dice", "mean Dice, validation", OTHER)
    _plot(axes, rows, "val", "pixel_accuracy", "pixel accuracy, validation", ACCURACY)
    axes.set_ylim(0, 1.02)


def _draw_rate(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_title("learning rate")
    axes.set_ylabel("learning rate")
    _plot(axes, rows, "train", "learning_rate", "", TRAIN | {"marker": ".", "markersize": 5.0})
    if not len(collect(rows, "train", "learning_rate")[0]):
        axes.text(0.5, 0.5, "fewer steps than log.every_steps", ha="center", va="center", transform=axes.transAxes)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axes.set_ylim(bottom=0)


def _plot(axes: Axes, rows: Sequence[Row], kind: str, key: str, label: str, style: dict[str, Any]) -> None:
    steps, values = collect(rows, kind, key)
    if len(steps):
        axes.plot(steps, values, label=label or None, **style)


def _finish(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)
    if not rows and not axes.texts:
        axes.text(0.5, 0.5, "no rows yet", ha="center", va="center", transform=axes.transAxes)
