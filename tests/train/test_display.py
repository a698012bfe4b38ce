"""What a run says: plain lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from unetfast.train.display import Display, format_duration, format_scores

ROW: dict[str, Any] = {"kind": "train", "step": 50, "epoch": 2, "loss": 0.02149, "images_per_s": 2480.4, "data_wait_pct": 0.61}


def test_plain_line_says_it_all_and_comes_seldom() -> None:
    out, time_s = io.StringIO(), [0.0]
    console = Console(file=out, width=60)
    with Display(console, num_epochs=3, num_steps=100, now=lambda: time_s[0]) as display:
        time_s[0] = 5.0
        display.show_row(ROW | {"gpu_memory_gib": 9.1})
        time_s[0] = 6.0
        display.show_row(ROW | {"step": 60})
        time_s[0] = 30.0
        display.show_row(ROW | {"step": 75, "loss": None})
    lines = out.getvalue().splitlines()
    assert lines == [
        "epoch 2/3  step 50/100  loss 0.0215  2,480 img/s  data-wait 0.6 %  9.1 GiB  0:00:05 left",
        "epoch 2/3  step 75/100  loss nan  2,480 img/s  data-wait 0.6 %  0:00:10 left",
    ]


def test_time_left_counts_only_this_processs_steps() -> None:
    out, time_s = io.StringIO(), [0.0]
    with Display(Console(file=out), num_epochs=3, num_steps=100, first_step=40, now=lambda: time_s[0]) as display:
        time_s[0] = 10.0
        display.show_row(ROW)
    assert "0:00:50 left" in out.getvalue()


def test_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=140), num_epochs=3, num_steps=100) as display:
        display.count_step(50)
        display.show_row(ROW)
    assert "━" in out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_live_line_is_whole_at_any_usual_width(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    row = ROW | {"epoch": 29, "step": 12_345, "gpu_memory_gib": 12.3, "images_per_s": 2480.0, "data_wait_pct": 10.6}
    with Display(console, num_epochs=30, num_steps=23_456) as display:
        display.show_row(row)
    live = out.getvalue()
    assert "…" not in live
    for part in ("29/30", "12,345/23,456", "2,480 img/s", "10.6 %", "12.3 GiB", " left"):
        assert part in live


def test_no_color_means_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=True, width=140), num_epochs=3, num_steps=100) as display:
        display.show_row(ROW)
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().startswith("epoch 2/3  step 50/100")


def test_brackets_in_names_are_not_markup() -> None:
    out = io.StringIO()
    with Display(Console(file=out), num_epochs=1, num_steps=1) as display:
        display.say("data    [red]shards[/red]")
    assert out.getvalue() == "data    [red]shards[/red]\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01"), (360000, "100:00:00")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_scores_of_two_classes_name_the_second_too() -> None:
    scores = {"mean_dice": 0.5, "mean_iou": 0.4, "pixel_accuracy": None, "loss": 0.25}
    assert format_scores(scores, ["a", "b", "c"]) == "mDice 0.5000  mIoU 0.4000  accuracy -  loss 0.2500"
    classes = [{"dice": 0.9}, {"dice": 0.98712}]
    assert format_scores(scores | {"classes": classes}, ["background", "car"]).startswith(
        "mDice 0.5000  Dice 0.9871 (car)  mIoU"
    )


def test_a_kind_of_warning_is_said_once() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=200), num_epochs=1, num_steps=1) as display:
        for warning in (
            "only predicted: 3; each counts as 0",
            "only predicted: 5; each counts as 0",
            "4 images: few",
            "no loss",
        ):
            display.warn_once(warning)
            display.warn_once(warning)
    assert out.getvalue().splitlines() == [
        "warning: only predicted: 3; each counts as 0",
        "warning: 4 images: few",
        "warning: no loss",
    ]


def test_history_is_drawn_now_and_then() -> None:
    time_s = [0.0]
    display = Display(Console(file=io.StringIO()), num_epochs=3, num_steps=100, now=lambda: time_s[0])
    found = []
    for time_s[0] in (1.0, 10.5, 12.0, 21.0):
        found.append(display.is_time_for_history())
    assert found == [False, True, False, True]
