"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unetfast.viz.report.charts import Series, draw_chart
from unetfast.viz.report.comparison import SCORES, Comparison
from unetfast.viz.report.html import Child, Html, number, tag
from unetfast.viz.report.page import build_page, navigation, section, table
from unetfast.viz.report.record import Row
from unetfast.viz.report.sections import METRIC_WORDS
from unetfast.viz.report.settings import format_value
from unetfast.viz.series import collect, running_mean

MAX_CLASSES = 60  # rows of the table
NUM_COLORS = 6
_WORDS = METRIC_WORDS | {"loss": "loss"}


def build_comparison(comparison: Comparison) -> str:
    """Write a comparison as one HTML file that needs nothing else."""
    parts: list[tuple[str, str, Html]] = [
        ("scores", "Scores", _write_scores(comparison)),
        ("curves", "Curves", _write_curves(comparison)),
        ("classes", "Classes", _write_classes(comparison)),
        ("config", "Config", _write_config(comparison)),
        ("speed", "Speed", _write_speed(comparison)),
    ]
    notice = None
    if comparison.reasons:
        why = tag("ul", [tag("li", reason) for reason in comparison.reasons])
        notice = tag("div", tag("strong", "Not comparable"), why, class_="warnings")
    notes = tag("p", "Note: ", "; ".join(comparison.notes), ".", class_="notice") if comparison.notes else None
    title = " and ".join(comparison.labels) if len(comparison.labels) == 2 else f"{len(comparison.labels)} runs"
    return build_page(
        f"unetfast compare: {title}",
        tag("header", tag("h1", "Comparison"), [tag("span", label, class_="chip") for label in comparison.labels]),
        navigation([(name, heading) for name, heading, _ in parts]),
        notice,
        notes,
        [section(name, heading, content) for name, heading, content in parts],
        footer=f"Made by unetfast from the files of {', '.join(record.path for record in comparison.records)}.",
    )


def delta(value: float | None, base: float | None, *, lower_is_better: bool = False, digits: int = 4) -> tuple[str, str]:
    """Write a difference with its sign, and say whether it is "better", "worse" or "" (the same, or unknown)."""
    if value is None or base is None:
        return "", ""
    text = f"{value - base:+.{digits}f}"
    if float(text) == 0:
        return "\N{PLUS-MINUS SIGN}0", ""
    return text, "better" if (value > base) != lower_is_better else "worse"


def _write_scores(comparison: Comparison) -> Html:
    tables = []
    for title, rows in (("Best validation pass", comparison.best), ("Last validation pass", comparison.last)):
        lines: list[list[Child]] = [
            [_WORDS[key], *(_score_cell(row, rows[0], key, is_first=place == 0) for place, row in enumerate(rows))]
            for key in SCORES
        ]
        lines.append(["at step", *("\N{EN DASH}" if row is None else f"{row['step']:,}" for row in rows)])
        weights = [None if row is None else "EMA" if row["kind"] == "val_ema" else "raw" for row in rows]
        if "EMA" in weights:
            lines.append(["weights", *(word or "\N{EN DASH}" for word in weights)])
        tables.append((tag("h3", title), table(["", *comparison.labels], lines)))
    first = comparison.labels[0]
    return tag("div", tables, tag("p", f"In brackets: the difference to {first}.", class_="muted"))


def _score_cell(row: Row | None, base: Row | None, key: str, *, is_first: bool) -> Child:
    value = None if row is None else row[key]
    if is_first or base is None:
        return number(value)
    text, verdict = delta(value, base[key], lower_is_better=key == "loss")
    return [number(value), " ", tag("span", f"({text})", class_=verdict or "muted")] if text else number(value)


def _write_curves(comparison: Comparison) -> Html:
    def overlay(kind: str, key: str, *, smooth: bool = False) -> list[Series]:
        curves = []
        for place, (record, label) in enumerate(zip(comparison.records, comparison.labels, strict=True)):
            steps, values = collect(record.rows, kind, key)
            curves.append(Series(label, steps, _smooth(values) if smooth else values, place % NUM_COLORS))
        return curves

    charts = [
        draw_chart("Mean IoU, validation", overlay("val", "mean_iou"), y_range=(0, 1)),
        draw_chart("Mean Dice, validation", overlay("val", "mean_dice"), y_range=(0, 1)),
        draw_chart("Loss, validation", overlay("val", "loss"), log=True),
        draw_chart("Loss, training (running mean)", overlay("train", "loss", smooth=True), log=True),
        draw_chart("Learning rate", overlay("train", "learning_rate")),
        draw_chart("Throughput", overlay("train", "images_per_s", smooth=True), unit="images/s"),
    ]
    return tag("div", charts, class_="charts")


def _smooth(values: np.ndarray) -> np.ndarray:
    return running_mean(values, len(values) // 20) if len(values) > 60 else values


def _write_classes(comparison: Comparison) -> Html:
    if not comparison.classes:
        return tag("p", "The runs do not have the same classes, or not all have validation scores.", class_="empty")
    lines: list[Sequence[Child]] = []
    for one in comparison.classes[:MAX_CLASSES]:
        cells: list[Child] = [one.name, number(one.ious[0])]
        for iou in one.ious[1:]:
            text, verdict = delta(iou, one.ious[0])
            cells.append([number(iou), " ", tag("span", f"({text})", class_=verdict or "muted")] if text else number(iou))
        lines.append(cells)
    rest = len(comparison.classes) - MAX_CLASSES
    more = tag("p", f"{rest} classes with smaller differences are left out here; --json lists all.", class_="muted")
    note = tag("p", "IoU in the best validation pass, the largest differences first.", class_="muted")
    return tag("div", note, table(["class", *comparison.labels], lines), more if rest > 0 else None)


def _write_config(comparison: Comparison) -> Html:
    if not comparison.config:
        return tag("p", "No key differs but those of logging.", class_="empty")
    lines: list[Sequence[Child]] = [
        [tag("code", key), *(tag("code", format_value(value)) for value in values)] for key, values in comparison.config.items()
    ]
    return table(["key", *comparison.labels], lines)


def _write_speed(comparison: Comparison) -> Html:
    speeds = comparison.speeds
    lines: list[Sequence[Child]] = [
        ["images/s, median", *(number(speed.images_per_s, 1) for speed in speeds)],
        ["data-wait, median, %", *(number(speed.data_wait_pct, 1) for speed in speeds)],
        ["GPU memory, most, GiB", *(number(speed.gpu_memory_gib, 1) for speed in speeds)],
        ["device", *(speed.device or "\N{EN DASH}" for speed in speeds)],
    ]
    return table(["", *comparison.labels], lines)
