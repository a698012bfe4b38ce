"""Markup that is escaped by construction, charts and matrices, against readers of their own."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_record import EVIL, make_confusion, make_names

from unetfast.viz.report.charts import MAX_POINTS, Series, draw_chart, draw_histogram, format_step, nice_ticks
from unetfast.viz.report.html import Html, join, number, script_json, significant, tag
from unetfast.viz.report.matrix import draw_confusion, largest_confusions, normalize_rows
from unetfast.viz.series import thin


class Reader(HTMLParser):
    """Collects what a browser would see of one snippet."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"])), st.text(st.characters(exclude_categories=["Cs", "Cc"])))
def test_any_text_comes_back_as_text_and_any_attribute_as_that_attribute(text: str, value: str) -> None:
    read = Reader(tag("p", text, title=value))
    assert read.tags == [("p", {"title": value})]
    assert read.text == text


def test_what_no_file_may_hold_is_replaced() -> None:
    assert tag("p", "a\x00b\x07c\ud800d\te") == "<p>a\ufffdb\ufffdc\ufffdd\te</p>"
    tag("p", "\ud800", title="\udfff").encode()  # can be written


def test_attributes_and_void_elements() -> None:
    assert tag("img", src="a", alt="", hidden=True, class_=None) == '<img src="a" alt="" hidden>'
    assert tag("line", x1=1, stroke_width=2) == '<line x1="1" stroke-width="2"/>'
    assert tag("div", None, ["a", Html("<br>"), ("b",)], data_x="1") == '<div data-x="1">a<br>b</div>'
    assert join(None) == ""


@pytest.mark.parametrize("text", [*EVIL, "<!--<script>", "\u2029"])
def test_data_for_a_script_cannot_end_it(text: str) -> None:
    written = script_json({"names": [text]})
    body = re.fullmatch(r'<script type="application/json">(.*)</script>', written)
    assert body is not None
    assert "<" not in body[1]
    assert not re.search("[\u2028\u2029]", body[1])
    assert json.loads(body[1]) == {"names": [text]}


def test_numbers() -> None:
    assert (number(None), number(0.12345), significant(1234567), significant(0.00012345)) == (
        "–",
        "0.1235",
        "1,234,567",
        "0.000123",
    )


# charts


def steps_of(num: int) -> np.ndarray:
    return np.arange(1, num + 1)


def svg_of(figure: str) -> ElementTree.Element:
    """The drawing; well-formed XML, or the parser complains."""
    return ElementTree.fromstring(re.findall(r"<svg viewBox=\"0 0 460.*?</svg>", figure, flags=re.DOTALL)[0])


def test_a_curve_goes_from_edge_to_edge_with_gaps_where_it_is_undefined() -> None:
    values = np.array([1.0, 2.0, np.nan, 4.0, 3.0])
    figure = draw_chart("Loss <1>", [Series("training & more", steps_of(5) * 100, values, 1)], marks=[200])
    drawing = svg_of(figure)
    (path,) = [node.get("d") or "" for node in drawing.iter("path")]
    assert path.count("M") == 2
    places = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]
    heights = [y for _, y in places]
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert heights[0] > heights[1] > heights[3] > heights[2]  # larger values lie higher
    assert "Loss &lt;1&gt;" in figure
    marks = [node for node in drawing.iter("line") if node.get("class") == "mark"]
    assert [float(mark.get("x1") or 0) for mark in marks] == [places[1][0]]


def test_a_chart_carries_its_numbers_for_the_script() -> None:
    figure = draw_chart("Loss", [Series("<a>", steps_of(3), np.array([1.23456789, np.nan, 3.0]), 0)], unit="s")
    data = json.loads(re.findall(r'class="points">(.*?)</script>', figure)[0])
    assert data["series"] == [{"name": "<a>", "color": 0, "x": [1, 2, 3], "y": [1.2346, None, 3.0]}]
    assert data["unit"] == "s"


@pytest.mark.parametrize("values", [np.array([]), np.array([np.nan, np.inf])])
def test_a_chart_of_nothing_says_so(values: np.ndarray) -> None:
    figure = draw_chart("Loss", [Series("a", np.arange(len(values)), values, 0)])
    assert "nothing to show" in figure
    assert "<svg" not in figure


@pytest.mark.parametrize("values", [[0.0], [5.0], [-1.0, -1.0], [1e-9, 1e9], [0.0, 1e-12], [1e30, 2e30]])
@pytest.mark.parametrize("log", [False, True])
def test_axes_of_any_values_are_finite(values: list[float], log: bool) -> None:
    drawing = svg_of(draw_chart("x", [Series("a", np.arange(len(values)), np.array(values), 0)], log=log))
    text = ElementTree.tostring(drawing, encoding="unicode")
    assert not re.search(r"nan|inf", text)
    assert [node for node in drawing.iter("text") if node.get("class") == "y-tick"]


def test_long_curves_are_thinned_to_means() -> None:
    steps, values = thin(steps_of(100_000), np.tile([0.0, 2.0], 50_000), MAX_POINTS)
    assert len(steps) == MAX_POINTS
    assert steps[-1] == 100_000
    assert np.allclose(values, 1.0)
    assert len(draw_chart("x", [Series("a", steps_of(100_000), np.ones(100_000), 0)])) < 60_000


def test_thinning_leaves_undefined_values_out_of_the_means() -> None:
    _, values = thin(steps_of(6), np.array([1.0, np.nan, np.nan, np.nan, 3.0, 5.0]), 3)
    assert np.array_equal(values, [1.0, np.nan, 4.0], equal_nan=True)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_inside(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert len(ticks) <= 6
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)
    if span > 1e-3 * abs(low):
        assert len(ticks) >= 2


def test_steps_are_written_shortly() -> None:
    assert [format_step(step) for step in (0, 950, 1500, 20_000, 3_000_000)] == ["0", "950", "1.5k", "20k", "3M"]


def test_a_histogram_counts_every_value_once() -> None:
    scores = np.array([0.0, 0.049, 0.05, 0.5, 1.0, 1.0])
    figure = draw_histogram("Images", scores, num_bins=20)
    found = [int(count) for count in re.findall(r"<title>[\d.]+ to [\d.]+: (\d+)</title>", figure)]
    assert found == [2, 1, 1, 2]


# confusion matrices


def test_rows_are_shares_of_the_true_class() -> None:
    share_KK = normalize_rows(np.array([[8, 2, 0], [0, 0, 0], [1, 1, 2]]))
    assert share_KK[0].tolist() == [0.8, 0.2, 0.0]
    assert np.isnan(share_KK[1]).all()
    assert share_KK[2].sum() == 1


def test_the_largest_confusions_are_those_of_the_most_pixels() -> None:
    matrix_KK = np.array([[90, 10, 0], [4, 6, 0], [0, 30, 0]])
    assert largest_confusions(matrix_KK) == [(2, 1, 1.0, 30), (0, 1, 0.1, 10), (1, 0, 0.4, 4)]
    assert largest_confusions(matrix_KK, most=1) == [(2, 1, 1.0, 30)]
    assert largest_confusions(np.eye(3, dtype=np.int64)) == []


@pytest.mark.parametrize("num_classes", [1, 2, 16, 17, 150])
def test_a_matrix_of_any_size_is_markup_with_all_names_as_text(num_classes: int) -> None:
    names = make_names(num_classes)
    figure = draw_confusion(make_confusion(num_classes), names, [(1, 2, 3)] * num_classes)
    read = Reader(figure)
    assert ("table", {"class": "matrix"}) in read.tags or ("img" in [name for name, _ in read.tags]) or num_classes <= 6
    assert not [
        attributes for name, attributes in read.tags if name == "img" and not (attributes["src"] or "").startswith("data:")
    ]
    if num_classes > 16:
        cells = json.loads(re.findall(r'class="cells">(.*?)</script>', figure)[0])
        assert cells["names"] == names
        share_KK = normalize_rows(make_confusion(num_classes))
        for true, pred, share in zip(cells["true"], cells["pred"], cells["share"], strict=True):
            assert math.isclose(share, share_KK[true, pred], abs_tol=1e-4)
    elif num_classes > 1:
        # every row of the table, but that of the absent class, shows about 100 %
        body = re.findall(r"<tbody>(.*?)</tbody>", figure)[0]
        titles = re.findall(r'title="([\d.]+) % of', body)
        assert math.isclose(sum(map(float, titles)), 100 * (num_classes - 1), abs_tol=0.01 * num_classes**2)


def test_a_perfect_model_has_no_confusions() -> None:
    assert "no pixel is confused" in draw_confusion(np.diag([5, 7]), ["a", "b"], [(0, 0, 0)] * 2)
