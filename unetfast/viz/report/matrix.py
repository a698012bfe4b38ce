"""A confusion matrix by rows: a table of percentages for few classes, a picture for many, and the largest confusions."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from unetfast.viz.report.html import Html, script_json, tag

MAX_TABLE_CLASSES = 16  # more are shown as a picture
_ROOMY_CLASSES = 6  # up to this many, cells are large
MAX_PICTURE_CLASSES = 1000
NUM_CONFUSIONS = 15
_HIT_RGB = np.array([27, 106, 201])
_MISS_RGB = np.array([214, 96, 34])
_ABSENT_RGB = np.array([150, 150, 160])


def draw_confusion(confusion_KK: np.ndarray, names: Sequence[str], colors: Sequence[Sequence[int]]) -> Html:
    """Draw a confusion matrix whose rows are shares of the true class's pixels, and list the largest confusions.

    Args:
        confusion_KK: counts in pixels, int64, (K, K), true classes in rows.
        names: K class names.
        colors: K display colours, RGB.
    """
    share_KK = normalize_rows(confusion_KK)
    if len(names) <= MAX_TABLE_CLASSES:
        matrix = _draw_table(share_KK, names, colors)
    elif len(names) <= MAX_PICTURE_CLASSES:
        matrix = _draw_picture(share_KK, names)
    else:
        matrix = tag("p", f"{len(names):,} classes are too many to draw; the largest confusions:", class_="muted")
    return tag("div", matrix, _list_confusions(confusion_KK, names, colors), class_="confusion")


def normalize_rows(confusion_KK: np.ndarray) -> np.ndarray:
    """Divide each row by its sum; a class without true pixels has NaNs. float64, (K, K)."""
    total_K1 = confusion_KK.sum(axis=1, keepdims=True)
    return np.where(total_K1 > 0, confusion_KK / np.maximum(total_K1, 1), np.nan)


def largest_confusions(confusion_KK: np.ndarray, most: int = NUM_CONFUSIONS) -> list[tuple[int, int, float, int]]:
    """List (true class, predicted class, share of the true class's pixels, pixels) of wrong pixels, the most pixels first."""
    wrong_KK = confusion_KK.copy()
    np.fill_diagonal(wrong_KK, 0)
    flat = wrong_KK.reshape(-1)
    most = min(most, int((flat > 0).sum()))
    order = np.argsort(flat, kind="stable")[::-1][:most].tolist()
    total_K = confusion_KK.sum(axis=1)
    num_classes = len(confusion_KK)
    places = [divmod(place, num_classes) for place in order]
    return [(true, pred, float(wrong_KK[true, pred] / total_K[true]), int(wrong_KK[true, pred])) for true, pred in places]


def swatch(color: Sequence[int] | None) -> Html | None:
    """Draw a patch of a class's colour."""
    if color is None:
        return None
    red, green, blue = (int(part) for part in color)
    return tag("span", class_="patch", style=f"background:rgb({red},{green},{blue})")


def _draw_table(share_KK: np.ndarray, names: Sequence[str], colors: Sequence[Sequence[int]]) -> Html:
    head = [
        tag("th", tag("span", "true class", class_="word"), class_="name"),
        *(tag("th", str(place), title=name) for place, name in enumerate(names)),
    ]
    rows = []
    for true, (name, color) in enumerate(zip(names, colors, strict=True)):
        number = tag("span", str(true), class_="muted")
        label = tag("span", name, class_="label")
        cells = [tag("th", number, " ", swatch(color), label, class_="name", scope="row")]
        for pred, share in enumerate(share_KK[true].tolist()):
            if np.isnan(share):
                cells.append(tag("td", "\N{EN DASH}", class_="absent"))
                continue
            kind = "hit" if true == pred else "miss"
            title = f"{100 * share:.2f} % of {name} is predicted as {names[pred]}"
            dark = " strong" if share > 0.55 else ""
            style = f"--share:{100 * share**0.6:.1f}%"  # small confusions must show too
            cells.append(tag("td", _percent(share), class_=f"{kind}{dark}", style=style, title=title))
        rows.append(tag("tr", cells))
    caption = (
        "columns: predicted class, by its number; cells: % of the true class's pixels; \N{MIDDLE DOT}: below 0.1 %, "
        "empty: none; \N{EN DASH}: class absent"
    )
    key = tag("p", ", ".join(f"{place} {name}" for place, name in enumerate(names)), class_="muted key")
    table = tag(
        "table",
        tag("thead", tag("tr", head)),
        tag("tbody", rows),
        class_="matrix roomy" if len(names) <= _ROOMY_CLASSES else "matrix",
    )
    return tag("div", tag("div", table, class_="scroll"), tag("p", caption, class_="muted"), key)


def _percent(share: float) -> str:
    if share == 0:
        return ""
    return f"{100 * share:.0f}" if share >= 0.0995 else f"{100 * share:.1f}" if share >= 0.0005 else "\N{MIDDLE DOT}"


def _draw_picture(share_KK: np.ndarray, names: Sequence[str]) -> Html:
    known_KK = np.nan_to_num(share_KK)[..., None] ** 0.5
    is_hit_KK = np.eye(len(share_KK), dtype=bool)[..., None]
    paper = np.array([255, 255, 255])
    full_KK3 = np.where(is_hit_KK, _HIT_RGB, _MISS_RGB)
    rgb_KK3 = paper + known_KK * (full_KK3 - paper)
    absent_K = np.isnan(share_KK).all(axis=1)
    rgb_KK3[absent_K] = 0.75 * paper + 0.25 * _ABSENT_RGB
    buffer = io.BytesIO()
    Image.fromarray(rgb_KK3.round().astype(np.uint8)).save(buffer, format="PNG", optimize=True)
    picture = tag(
        "img",
        src="data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"),
        class_="heat",
        alt=f"confusion matrix of {len(names)} classes",
    )
    true, pred = (places.tolist() for places in np.nonzero(np.nan_to_num(share_KK) >= 0.0005))
    shares = [round(float(share_KK[row, column]), 4) for row, column in zip(true, pred, strict=True)]
    data = script_json({"names": list(names), "true": true, "pred": pred, "share": shares}, class_="cells")
    caption = (
        f"{len(names)} x {len(names)}, class 0 at the top left; rows: true class, columns: predicted class; blue: right, "
        "orange: wrong, grey: class absent; the darker, the larger the share of the true class's pixels"
    )
    return tag("div", tag("div", picture, data, class_="heat-box"), tag("p", caption, class_="muted"))


def _list_confusions(confusion_KK: np.ndarray, names: Sequence[str], colors: Sequence[Sequence[int]]) -> Html:
    found = largest_confusions(confusion_KK)
    if not found:
        return tag("p", "no pixel is confused", class_="empty")
    rows = [
        tag(
            "tr",
            tag("td", swatch(colors[true]), names[true]),
            tag("td", swatch(colors[pred]), names[pred]),
            tag("td", f"{100 * share:.1f} %", class_="num"),
            tag("td", f"{pixels:,}", class_="num wide"),
        )
        for true, pred, share, pixels in found
    ]
    head = tag(
        "tr",
        tag("th", "true"),
        tag("th", "predicted as"),
        tag("th", "of true", class_="num"),
        tag("th", "pixels", class_="num wide"),
    )
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="list")
    return tag("div", tag("h3", "Largest confusions"), tag("div", table, class_="scroll"))
