"""Charts as plain SVG with a legend in HTML: they read without JavaScript, and show values under the pointer with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unetfast.viz.report.html import Html, script_json, significant, tag
from unetfast.viz.series import thin

# of the drawing, in units of its view box: about a pixel of a phone's page, and a fourth more on a wide one
WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 10, 42
MAX_POINTS = 500  # of a curve
MAX_MARKERS = 40  # curves with more points are drawn without
DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 4", "12 4")


@dataclass(frozen=True, slots=True)
class Series:
    """One curve.

    Args:
        name: for the legend.
        steps: optimizer steps, (n,).
        values: (n,); NaN makes a gap.
        color: number of its colour and dash, 0..5.
        faint: drawn thin and pale, behind a smoothed one; without dash and marker.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    color: int
    faint: bool = False


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where values lie in the drawing."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log: bool

    def x(self, step: float) -> float:
        low, high = self.x_range
        return LEFT + (step - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)


def draw_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    marks: Sequence[int] = (),
) -> Html:
    """Draw curves over optimizer steps.

    Args:
        title: above the chart.
        series: curves; those without a finite value are left out. None left gives a line that says so.
        unit: of the values, for title and tooltip.
        y_range: of the axis; None takes what the curves need, with zero where all are of one sign and near it.
        log: a logarithmic axis, where all values are above 0.
        marks: steps to mark by a vertical line: where the run was resumed.
    """
    curves = [Series(one.name, *thin(one.steps, one.values, MAX_POINTS), one.color, one.faint) for one in series]
    curves = [one for one in curves if np.isfinite(one.values).any()]
    heading = tag("figcaption", title, tag("span", f" {unit}", class_="unit") if unit else None)
    if not curves:
        return tag("figure", heading, tag("p", "nothing to show", class_="empty"), class_="chart")
    axes = _choose_axes(curves, y_range, log)
    named = [curve for curve in curves if curve.name]
    drawing = tag(
        "svg",
        _draw_grid(axes),
        [
            tag("line", x1=f"{axes.x(mark):.1f}", x2=f"{axes.x(mark):.1f}", y1=TOP, y2=HEIGHT - BOTTOM, class_="mark")
            for mark in marks
        ],
        [_draw_curve(curve, axes, dashed=len(named) > 1) for curve in curves],
        tag("line", x1=0, x2=0, y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor", visibility="hidden"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {', '.join(curve.name for curve in curves)}",
    )
    legend = _draw_legend(named) if len(curves) > 1 else None
    return tag("figure", heading, legend, drawing, _tooltip_data(named, axes, unit), class_="chart")


def draw_histogram(title: str, values: np.ndarray, *, num_bins: int = 20) -> Html:
    """Draw how many values in [0, 1] fall into each of equal bins."""
    counts = np.histogram(np.clip(values, 0, 1), bins=num_bins, range=(0, 1))[0]
    axes = _Axes((0, 1), (0, max(1, int(counts.max())) * 1.06), log=False)
    bars = []
    for place, count in enumerate(counts.tolist()):
        left, right = axes.x(place / num_bins) + 1, axes.x((place + 1) / num_bins) - 1
        top = axes.y(count)
        label = tag("title", f"{place / num_bins:.2f} to {(place + 1) / num_bins:.2f}: {count:,}")
        shape = f"M{left:.1f} {HEIGHT - BOTTOM}V{top:.1f}H{right:.1f}V{HEIGHT - BOTTOM}Z"
        bars.append(tag("g", label, tag("path", d=shape, class_="bar"))) if count else None
    whole = [tick for tick in nice_ticks(*axes.y_range) if tick == int(tick)]
    drawing = tag(
        "svg",
        _draw_grid(axes, y_ticks=whole, x_ticks=[0, 0.2, 0.4, 0.6, 0.8, 1], x_label="score of one image"),
        bars,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
    )
    return tag("figure", tag("figcaption", title), drawing, class_="chart")


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Choose round numbers inside a range, at most `most`, steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / most))
    step *= next((factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most - 1), 20)
    first = math.ceil(low / step - 1e-9)
    return [round(place * step, 12) for place in range(first, math.floor(high / step + 1e-9) + 1)]


def format_step(step: float) -> str:
    """Write a number of steps shortly: 950, 1.5k, 20k, 3M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(step) >= size:
            return f"{step / size:.4g}{unit}"
    return f"{step:g}"


def _choose_axes(curves: Sequence[Series], y_range: tuple[float, float] | None, log: bool) -> _Axes:
    steps = np.concatenate([curve.steps for curve in curves]).astype(np.float64)
    values = np.concatenate([curve.values for curve in curves])
    values = values[np.isfinite(values)]
    x_low, x_high = float(steps.min()), float(steps.max())
    if x_low == x_high:
        x_low, x_high = x_low - 1, x_high + 1
    elif 0 < x_low < 0.2 * x_high:
        x_low = 0.0
    low, high = float(values.min()), float(values.max())
    log = log and low > 0 and high > 20 * low
    if y_range is not None:
        low, high = y_range
    elif log:
        low, high = low / 1.25, high * 1.25
    elif low == high:
        low, high = min(low - 0.5 * abs(low), 0.0) if low else 0.0, high + 0.5 * abs(high) if high else 1.0
    else:
        low = 0.0 if 0 <= low < 0.6 * high else low - 0.05 * (high - low)
        high += 0.05 * (high - low)
    return _Axes((x_low, x_high), (low, high), log)


def _draw_grid(
    axes: _Axes,
    *,
    x_ticks: Sequence[float] | None = None,
    y_ticks: Sequence[float] | None = None,
    x_label: str = "optimizer step",
) -> Html:
    parts = []
    for tick in _log_ticks(*axes.y_range) if axes.log else nice_ticks(*axes.y_range) if y_ticks is None else y_ticks:
        y = f"{axes.y(tick):.1f}"
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", _tick_text(tick), x=LEFT - 6, y=y, class_="y-tick"))
    is_step = x_ticks is None
    for tick in [tick for tick in nice_ticks(*axes.x_range) if tick == int(tick)] if x_ticks is None else x_ticks:
        x = f"{axes.x(tick):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM + 4, class_="axis"))
        parts.append(tag("text", format_step(tick) if is_step else f"{tick:g}", x=x, y=HEIGHT - BOTTOM + 18, class_="x-tick"))
    base = HEIGHT - BOTTOM
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"))
    parts.append(tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, class_="x-label"))
    return tag("g", parts)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    return [factor * 10.0**decade for decade in decades for factor in factors if low <= factor * 10.0**decade <= high]


def _tick_text(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return significant(value, 4)


def _draw_curve(curve: Series, axes: _Axes, *, dashed: bool) -> Html:
    pieces: list[str] = []
    points: list[tuple[float, float]] = []
    pen_down = False
    low, high = axes.y_range
    for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
        if not math.isfinite(value):
            pen_down = False
            continue
        x, y = axes.x(step), axes.y(min(max(value, low), high))
        pieces.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        points.append((x, y))
        pen_down = True
    look = f"curve c{curve.color}{' faint' if curve.faint else ''}"
    dash = DASHES[curve.color] if dashed and not curve.faint else ""
    path = tag("path", d="".join(pieces), class_=look, stroke_dasharray=dash or None)
    if curve.faint or len(points) > MAX_MARKERS:
        return path
    dots = [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.6, class_=f"dot c{curve.color}") for x, y in points]
    return tag("g", path, dots)


def _draw_legend(curves: Sequence[Series]) -> Html:
    entries = []
    for curve in curves:
        swatch = tag(
            "svg",
            tag(
                "path",
                d="M1 5H25",
                class_=f"curve c{curve.color}{' faint' if curve.faint else ''}",
                stroke_dasharray=DASHES[curve.color] or None if not curve.faint else None,
            ),
            viewBox="0 0 26 10",
            class_="swatch",
            aria_hidden="true",
        )
        entries.append(tag("span", swatch, curve.name))
    return tag("div", entries, class_="legend")


def _tooltip_data(curves: Sequence[Series], axes: _Axes, unit: str) -> Html:
    """Write what the page's script needs to find the values under the pointer."""
    series = [
        {
            "name": curve.name,
            "color": curve.color,
            "x": [int(step) for step in curve.steps.tolist()],
            "y": [float(f"{value:.5g}") if math.isfinite(value) else None for value in curve.values.tolist()],
        }
        for curve in curves
    ]
    frame = {"x": list(axes.x_range), "plot": [LEFT, WIDTH - RIGHT], "width": WIDTH, "unit": unit, "series": series}
    return script_json(frame, class_="points")
