"""The learning-rate test as a figure: loss over learning rate, with the suggestion marked.

Lines differ in dash and width as well as in colour and darkness: the figure reads the same in grey.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

LOSS_COLOR, SMOOTHED_COLOR, MARK_COLOR = "#7aa0cf", "#1b4f8f", "#b3441e"


def draw_lr_curve(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    *,
    suggestion: float | None,
    verdict: str,
    title: str = "",
) -> Image.Image:
    """Draw the loss of each step over the learning rate that it was taken with.

    Args:
        rates: learning rate of each step, rising, above 0.
        losses: of each step; NaN and infinity are left out.
        smoothed: their running mean; as many.
        suggestion: the rate to mark; None marks none.
        verdict: one sentence under the title: what the curve says.
        title: of the figure.

    Returns:
        RGB, 1000 x 600 pixels.
    """
    figure = Figure(figsize=(10, 6), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.11, 0.885, 0.74))
    x, raw, smooth = (np.asarray(values, dtype=np.float64) for values in (rates, losses, smoothed))
    axes.set_xscale("log")
    axes.plot(x, _finite(raw), color=LOSS_COLOR, linewidth=1.0, linestyle="-", alpha=0.8, label="loss of a step")
    axes.plot(x, _finite(smooth), color=SMOOTHED_COLOR, linewidth=2.4, linestyle="-", label="smoothed")
    axes.set_ylim(*_limits(raw, smooth))
    if suggestion is not None:
        place = int(np.abs(np.log(x) - math.log(suggestion)).argmin())
        axes.axvline(suggestion, color=MARK_COLOR, linewidth=1.6, linestyle="--", label=f"suggestion {suggestion:.2g}")
        axes.plot([suggestion], [smooth[place]], marker="o", markersize=9, color=MARK_COLOR, linestyle="none")
    axes.set_xlabel("learning rate (logarithmic)")
    axes.set_ylabel("training loss")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.text(0.085, 0.945, title or "learning-rate test", fontsize=14)
    figure.text(0.085, 0.895, _shorten(verdict), fontsize=10, color="#444444")
    buffer = io.BytesIO()
    canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    return Image.open(buffer).convert("RGB")


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _limits(raw: np.ndarray, smooth: np.ndarray) -> tuple[float, float]:
    """Frame the smoothed curve up to twice its height at the start, so that a loss that blew up flattens nothing."""
    first = smooth[np.isfinite(smooth)]
    if not first.size:
        return 0.0, 1.0
    start = float(np.median(first[: max(1, len(first) // 10)]))
    shown = np.concatenate([first, raw[np.isfinite(raw)]])
    shown = shown[shown <= max(2 * start, float(first.min()) * 4)]
    low, high = float(shown.min()), float(shown.max())
    margin = 0.06 * (high - low) or 0.05 * max(abs(high), 1e-3)
    return low - margin, high + margin


def _shorten(text: str, limit: int = 130) -> str:
    return text if len(text) <= limit else text[: limit - 1].rsplit(" ", 1)[0] + " …"
