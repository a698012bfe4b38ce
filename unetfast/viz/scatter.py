"""How large the samples are: width against height, and the size that a training batch has.

Splits differ in marker and fill as well as in colour, so the figure reads the same in grey.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image

DPI = 100
LOG_RATIO = 20.0  # from this ratio of the largest side to the smallest on, both axes are logarithmic
_MARKERS: dict[str, dict[str, Any]] = {
    "train": {"marker": "o", "facecolor": "#1b4f8f", "edgecolor": "white"},
    "val": {"marker": "^", "facecolor": "#f2c38b", "edgecolor": "#5a3206"},
    "test": {"marker": "s", "facecolor": "none", "edgecolor": "#2f6b3d"},
}
_OTHER: dict[str, Any] = {"marker": "P", "facecolor": "none", "edgecolor": "#555555"}
_TITLE_PX, _LEGEND_LINE_PX = 40, 18
_CROWD = 60  # sizes of a split, above which markers shrink
_SMALLEST_PT2, _LARGEST_PT2 = 28.0, 260.0  # area of a marker


def draw_size_scatter(
    sizes_hw: Mapping[str, np.ndarray],
    *,
    training_hw: tuple[int, int] | None = None,
    training_name: str = "training size",
    width_px: int = 580,
    height_px: int = 480,
) -> Image.Image:
    """Draw one marker for each size that occurs, larger where more samples have it.

    Args:
        sizes_hw: heights and widths of each split's samples, pixels, (n, 2).
        training_hw: height and width of a training batch, pixels; None where it is not known. A dashed line from the origin has
            its aspect: samples on it are not stretched.
        training_name: what it is called in the legend.
        width_px: of the figure.
        height_px: of the figure.

    Returns:
        RGB, of that size.
    """
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    found = {name: np.unique(hw, axis=0, return_counts=True) for name, hw in sizes_hw.items() if len(hw)}
    top_px = _TITLE_PX + _LEGEND_LINE_PX * (len(found) + 2 * (training_hw is not None)) + 6
    figure.subplots_adjust(left=78 / width_px, right=1 - 22 / width_px, top=1 - top_px / height_px, bottom=52 / height_px)
    figure.text(24 / width_px, 1 - _TITLE_PX / 2 / height_px, "sizes of the samples", fontsize=11, va="center")
    axes = figure.subplots()
    shown = [hw for hw, _ in found.values()] + ([np.array([training_hw])] if training_hw else [])
    if shown:
        _set_axes(axes, np.concatenate(shown))
    most = max((int(counts.max()) for _, counts in found.values()), default=1)
    for place, (name, (hw, counts)) in enumerate(found.items()):
        share = np.log1p(counts) / np.log1p(most)
        # later splits are drawn smaller and on top, so that none hides another of the same size
        areas = (_SMALLEST_PT2 + (_LARGEST_PT2 - _SMALLEST_PT2) * share) * 0.45**place
        style = {"linewidth": 0.9, "alpha": 0.85, "zorder": 3 + place} | _MARKERS.get(name, _OTHER)
        if len(hw) > _CROWD:  # a cloud: small and see-through
            areas = np.maximum(areas * _CROWD / len(hw), 9.0)
            style |= {"linewidth": 0.5, "alpha": 0.5}
        axes.scatter(hw[:, 1], hw[:, 0], s=areas, label=f"{name}: {_describe(hw, counts)}", **style)
    if training_hw is not None:
        _draw_training_size(axes, training_hw, training_name)
    _finish(axes, is_empty=not found)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba_HWC = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(rgba_HWC[..., :3].copy())


def _draw_training_size(axes: Axes, training_hw: tuple[int, int], name: str) -> None:
    height, width = training_hw
    axes.scatter(
        [width], [height], marker="x", s=90, linewidth=2.2, color="black", zorder=9, label=f"{name}: {width} x {height}"
    )
    start = (0, 0) if axes.get_xscale() == "linear" else (width / 10, height / 10)
    axes.axline(start, (width, height), label="its aspect", color="#888888", linestyle="--", linewidth=1, zorder=1)


def _describe(sizes_hw: np.ndarray, counts: np.ndarray) -> str:
    """Write how many samples of which size there are."""
    num = int(counts.sum())
    sizes = f"{sizes_hw[0, 1]} x {sizes_hw[0, 0]}" if len(sizes_hw) == 1 else f"{len(sizes_hw):,} sizes"
    return f"{num:,} sample{'s' * (num != 1)}, {sizes}"


def _set_axes(axes: Axes, sizes_hw: np.ndarray) -> None:
    if sizes_hw.max() >= LOG_RATIO * sizes_hw.min():
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(sizes_hw[:, 1].min() / 1.3, sizes_hw[:, 1].max() * 1.3)
        axes.set_ylim(sizes_hw[:, 0].min() / 1.3, sizes_hw[:, 0].max() * 1.3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.1 * sizes_hw[:, 1].max())
        axes.set_ylim(0, 1.1 * sizes_hw[:, 0].max())
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))


def _finish(axes: Axes, *, is_empty: bool) -> None:
    scale = ", logarithmic" if axes.get_xscale() == "log" else ""
    axes.set_xlabel(f"width, pixels{scale}", fontsize=9)
    axes.set_ylabel(f"height, pixels{scale}", fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(True, color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if is_empty:
        axes.text(0.5, 0.5, "no sample", ha="center", va="center", transform=axes.transAxes)
    else:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), frameon=False, fontsize=8.5, borderaxespad=0.2)
