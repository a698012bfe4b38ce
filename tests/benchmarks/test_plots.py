"""Pictures of the bars and of the roofline: what is drawn of which record, and what is said where nothing can be."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import bar
import numpy as np
import plots
import pytest
from PIL import Image

BARS: list[dict[str, Any]] = [
    bar.make_bar("C1", "writer " * 20, [4.0, 5.0, 6.0], floor=3.5, goal=6),
    bar.make_bar("C3", "reader", [4.0], floor=5, goal=10),
    bar.make_bar("C7", "seek", [10.0, 12.5, 50.0], floor=50, goal=20, unit="ms", less_is_better=True),
    bar.absent_bar("C8", "step", floor=2.8, goal=5, reason="no AMX"),
]


def layer(kind: str, gflop: float, mib: float, bound_ms: float) -> dict[str, Any]:
    return {"kind": kind, "gflop": gflop, "eager_mib": mib, "bound_ms": bound_ms}


MODEL: dict[str, Any] = {
    "environment": {"gpus": [], "cores": 2, "processor": "Some CPU"},
    "rungs": {
        "model": {
            "facts": {
                "matrix_tflop_per_s": 2.0,
                "bandwidth_gb_per_s": 20.0,
                "share_of_roofline_pct": 30.0,
                "step_ms": {"median": 100.0},
                "roofline": {
                    "counted": "eager",
                    "layers": [layer("convolution", 40, 100, 20), layer("norm", 0.01, 100, 5), layer("activation", 0, 50, 5)],
                    "levels": [
                        {"level_hw": [160, 240], "bound_ms": 25.0, "memory_bound_ms": 10.0},
                        {"level_hw": None, "bound_ms": 5.0, "memory_bound_ms": 5.0},
                    ],
                },
            }
        }
    },
}


def test_a_figure_over_its_floor_is_better_the_greater_it_is() -> None:
    assert plots.over_floor(7.0, BARS[0]) == 2
    assert plots.over_floor(12.5, BARS[2]) == 4


def test_bars_with_a_figure_are_drawn_in_order() -> None:
    (axes,) = plots.draw_bars({"b": {"bars": BARS[::-1]}}).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label[:2] for label in labels] == ["C1", "C3", "C7"]
    assert labels[0].endswith("…")
    assert axes.get_xscale() == "log"
    assert "floor" in axes.get_xlabel()
    assert {text.get_text() for text in axes.texts} >= {"5x", "4x", "12.5 ms"}
    medians = [line for line in axes.lines if line.get_marker() in ("o", "X") and len(line.get_xdata())]
    drawn = {(str(line.get_marker()), round(float(np.asarray(line.get_xdata())[0]), 3)) for line in medians}
    assert drawn == {("o", round(5 / 3.5, 3)), ("X", 0.8), ("o", 4.0)}


def test_the_roofline_puts_operations_under_the_roof_and_the_step_where_it_was_measured() -> None:
    roof, levels = plots.draw_roofline(MODEL).axes
    assert (roof.get_xscale(), roof.get_yscale()) == ("log", "log")
    assert "FLOP/byte" in roof.get_xlabel()
    assert "TFLOP/s" in roof.get_ylabel()
    assert len(roof.collections) == 2  # what counts no FLOPs has no place on it
    star = next(line for line in roof.lines if line.get_marker() == "*")
    (intensity,), (rate,) = np.asarray(star.get_xdata()), np.asarray(star.get_ydata())
    assert intensity == pytest.approx(40.01e9 / (250 * 2**20))
    assert rate == pytest.approx(0.4001)
    widths = [round(float(one.get_width()), 6) for one in levels.patches]  # type: ignore[attr-defined]
    assert widths == [15, 10, 0, 5, 70]
    assert levels.get_xlabel() == "ms of a step"


def test_operations_that_were_timed_stand_at_the_rate_that_they_reached() -> None:
    timed = copy.deepcopy(MODEL)
    roofline = timed["rungs"]["model"]["facts"]["roofline"]
    for row in (*roofline["layers"], *roofline["levels"]):
        row["measured_ms"] = 2 * row["bound_ms"]
    (at_bound, _), (as_timed, levels) = (plots.draw_roofline(record).axes for record in (MODEL, timed))
    rates = [float(np.asarray(axes.collections[0].get_offsets())[0, 1]) for axes in (at_bound, as_timed)]
    assert rates == [2.0, 1.0]
    widths = [round(float(one.get_width()), 6) for one in levels.patches]  # type: ignore[attr-defined]
    assert widths == [50, 15, 10, 10, 0, 5]


def test_what_cannot_be_drawn_says_why() -> None:
    with pytest.raises(ValueError, match="no bar in the records has a figure"):
        plots.draw_bars({"b": {"bars": BARS[3:]}})
    with pytest.raises(ValueError, match="it has no rung model"):
        plots.draw_roofline({"rungs": {}})
    with pytest.raises(ValueError, match="made of nothing"):
        plots.draw_roofline({"rungs": {"model": {"facts": {"not_counted": "made of nothing"}}}})


def test_both_pictures_are_written_and_the_same_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bench-cpu.json").write_text(json.dumps({"bars": BARS}))
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    arguments = ["--results", str(tmp_path), "--roofline", str(tmp_path / "model.json")]
    for name in ("one", "two"):
        assert plots.main([*arguments, "--out", str(tmp_path / name)]) == 0
    for picture in ("bars.png", "roofline.png"):
        assert (tmp_path / "one" / picture).read_bytes() == (tmp_path / "two" / picture).read_bytes()
        with Image.open(tmp_path / "one" / picture) as opened:
            grey = np.asarray(opened.convert("L"))
        assert grey.std() > 10
    assert plots.main([*arguments[:2], "--roofline", str(tmp_path / "gone.json"), "--out", str(tmp_path / "one")]) == 2
    assert "gone.json: no such record; `unetfast bench model" in capsys.readouterr().err
