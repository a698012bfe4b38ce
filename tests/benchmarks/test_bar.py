"""Bars: what passes, and the line for people."""

from __future__ import annotations

import bar


def test_the_median_decides() -> None:
    assert bar.make_bar("C1", "a", [3.4, 3.6, 9.0], floor=3.5, goal=6)["verdict"] == "pass"
    assert bar.make_bar("C1", "a", [3.4, 3.4, 9.0], floor=3.5, goal=6)["verdict"] == "short"
    assert bar.make_bar("C7", "a", [51.0], floor=50, goal=20, unit="ms", less_is_better=True)["verdict"] == "short"
    assert bar.make_bar("C7", "a", [49.0], floor=50, goal=20, unit="ms", less_is_better=True)["verdict"] == "pass"


def test_a_condition_that_failed_never_passes() -> None:
    assert bar.make_bar("C2", "a", [9.0], floor=1.7, goal=1.95, sound=False, note="bytes differ")["verdict"] == "short"


def test_lines() -> None:
    made = bar.make_bar("C1", "writer against TarWriter", [4.0, 5.0, 6.0], floor=3.5, goal=6)
    assert bar.format_bar(made) == "| C1 | writer against TarWriter | 5 (4..6) | 3.5x | 6x | pass |"
    ms = bar.make_bar("C7", "seek", [4.0], floor=50, goal=20, unit="ms", less_is_better=True)
    assert bar.format_bar(ms) == "| C7 | seek | 4 (4..4) | <= 50 ms | <= 20 ms | pass |"
    absent = bar.absent_bar("C8", "step", floor=2.8, goal=5, reason="no AMX")
    assert bar.format_bar(absent) == "| C8 | step | - | 2.8x | 5x | n/a |"


def test_a_bar_whose_side_failed_is_told_apart_from_one_that_cannot_be_had() -> None:
    lost = bar.lost_bar("C7", "seek", floor=50, goal=20, unit="ms", less_is_better=True, reason="ours: crashed")
    assert (lost["verdict"], lost["ratio"], lost["note"]) == ("failed", None, "ours: crashed")
    assert bar.format_bar(lost) == "| C7 | seek | - | <= 50 ms | <= 20 ms | failed |"
    unknown = bar.lost_bar("C7", "not measured: seeking.py", floor=None, goal=None, reason="exit code 2")
    assert bar.format_bar(unknown) == "| C7 | not measured: seeking.py | - | - | - | failed |"
