"""How often each class occurs: its share of the labelled pixels and of the images, one row a class.

Bars have the classes' own colours and a dark rim, and the numbers stand beside them: the figure reads the same in grey.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from unetfast.viz.lettering import fit_text, letter
from unetfast.viz.palette import INK, visible_palette

DPI = 100
MAX_ROWS = 30  # of more classes, the commonest and the rarest are shown
NUM_RAREST = 8
LOG_RATIO = 50.0  # from this ratio of the largest share to the smallest on, the axis is logarithmic
_ROW_PX = 24
_FONT_PX = 13
_MAX_NAME_PX = 220
_TITLE_PX, _TOP_PX, _BOTTOM_PX = 40, 66, 52
_NUMBERS_PX, _PIXELS_AT_PX, _IMAGES_AT_PX = 150, 76, 136  # room right of the axes, and where its two columns end
_POINTS = 72 / DPI  # of a pixel
_INK = "#" + bytes(INK).hex()
_DIAMOND: dict[str, Any] = {"marker": "D", "markersize": 5.5, "color": "white", "markeredgecolor": _INK}


def draw_class_histogram(
    class_names: Sequence[str],
    class_pixels: Sequence[int],
    class_images: Sequence[int],
    palette_K3: np.ndarray,
    *,
    num_images: int,
    width_px: int = 860,
) -> Image.Image:
    """Draw the classes that occur, the commonest first.

    Of more than `MAX_ROWS` classes the rows between the commonest and the rarest are left out, and one line says how many they
    are and what they hold together. Classes that do not occur are counted below.

    Args:
        class_names: K names, in any script.
        class_pixels: pixels of each class.
        class_images: images in which each class occurs.
        palette_K3: display colours, uint8, (K, 3).
        num_images: in all.
        width_px: of the figure.

    Returns:
        RGB, `width_px` wide, as high as its rows need.

    Raises:
        ValueError: the lists differ in length.
    """
    if not len(class_names) == len(class_pixels) == len(class_images) == len(palette_K3):
        counts = f"{len(class_pixels)} and {len(class_images)} counts"
        raise ValueError(f"{len(class_names)} names, {counts}, {len(palette_K3)} colours")
    total = sum(class_pixels)
    order = sorted((k for k, count in enumerate(class_pixels) if count), key=lambda k: (-class_pixels[k], k))
    rows = _choose_rows(order)
    shares = {k: 100 * class_pixels[k] / total for k in order}
    of_images = {k: 100 * class_images[k] / max(num_images, 1) for k in order}

    lettered = {k: letter(class_names[k], _FONT_PX) for k in rows if k is not None}
    names = {k: fit_text(text, font, _MAX_NAME_PX) for k, (text, font) in lettered.items()}
    name_px = max((lettered[k][1].getlength(name) for k, name in names.items()), default=40)
    height_px = _TOP_PX + _BOTTOM_PX + _ROW_PX * max(len(rows), 3)
    figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)
    left, right = (name_px + 24) / width_px, 1 - _NUMBERS_PX / width_px
    figure.subplots_adjust(left=left, right=right, top=1 - _TOP_PX / height_px, bottom=_BOTTOM_PX / height_px)
    figure.text(12 / width_px, 1 - _TITLE_PX / 2 / height_px, "classes", fontsize=11, va="center")
    axes = figure.subplots()
    low, is_log = _choose_axis(axes, [*shares.values(), *of_images.values()])
    colors = visible_palette(palette_K3) / 255
    for row, k in enumerate(rows):
        if k is None:
            _draw_gap(axes, row, [shares[other] for other in order if other not in lettered])
            continue
        axes.barh(row, shares[k] - low, left=low, height=0.62, color=colors[k], edgecolor=_INK, linewidth=0.8, zorder=2)
        axes.plot(of_images[k], row, zorder=3, clip_on=False, **_DIAMOND)
        font = FontProperties(fname=str(lettered[k][1].path), size=_POINTS * _FONT_PX)
        _write(axes, (0, row), -6, names[k], fontproperties=font)
        _write(axes, (1, row), _PIXELS_AT_PX, _format(shares[k]))
        _write(axes, (1, row), _IMAGES_AT_PX, f"{class_images[k]:,}")
    _finish(axes, rows, is_log, num_absent=len(class_names) - len(order), num_images=num_images)
    canvas.draw()  # type: ignore[no-untyped-call]
    rgba_HWC = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return Image.fromarray(rgba_HWC[..., :3].copy())


def _write(axes: Axes, place: tuple[float, float], offset_px: float, text: str, **settings: Any) -> None:
    """Write beside a row, the text's end some pixels right of the left (0) or right (1) edge of the axes; no mathematics."""
    settings = {"fontsize": 8.5} | settings if "fontproperties" not in settings else settings
    label = axes.annotate(
        text,
        place,
        xycoords=axes.get_yaxis_transform(),
        xytext=(_POINTS * offset_px, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=_INK,
        annotation_clip=False,
        **settings,
    )
    label.set_parse_math(False)


def _choose_rows(order: list[int]) -> list[int | None]:
    """Choose the classes to show from all that occur, the commonest first; None stands for those left out."""
    if len(order) <= MAX_ROWS:
        return list(order)
    return [*order[: MAX_ROWS - 1 - NUM_RAREST], None, *order[-NUM_RAREST:]]


def _choose_axis(axes: Axes, percents: list[float]) -> tuple[float, bool]:
    """Set the axis of percentages, and return where it begins and whether it is logarithmic."""
    smallest = min((value for value in percents if value > 0), default=100.0)
    is_log = max(percents, default=0.0) >= LOG_RATIO * smallest
    low = 10.0 ** np.floor(np.log10(smallest * 0.8)) if is_log else 0.0
    if is_log:
        axes.set_xscale("log")
    axes.set_xlim(low, 100)
    return low, is_log


def _draw_gap(axes: Axes, row: int, shares: list[float]) -> None:
    together, most = _format(sum(shares)), _format(max(shares))
    text = f"… {len(shares)} more classes between: {together} of the pixels together, {most} at most each"
    axes.text(0.01, row, text, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color=_INK, style="italic")


def _finish(axes: Axes, rows: Sequence[int | None], is_log: bool, *, num_absent: int, num_images: int) -> None:
    axes.set_ylim(max(len(rows), 3) - 0.4, -0.6)
    axes.set_yticks([])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    absent = f"   ({num_absent} class{'es' if num_absent > 1 else ''} without a pixel not shown)" if num_absent else ""
    axes.set_xlabel(f"share, %{', logarithmic' if is_log else ''}{absent}", fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(True, axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles = [
        Patch(facecolor="#bbbbbb", edgecolor=_INK, label="of the labelled pixels"),
        Line2D([], [], linestyle="", label=f"of the {num_images:,} image{'s' * (num_images != 1)}", **_DIAMOND),
    ]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8.5, borderaxespad=0.2
    )
    _write(axes, (1, -1.15), _PIXELS_AT_PX, "pixels")
    _write(axes, (1, -1.15), _IMAGES_AT_PX, "images")
    if not rows:
        axes.text(0.5, 0.5, "no labelled pixel", ha="center", va="center", transform=axes.transAxes)


def _format(percent: float) -> str:
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2g} %"
