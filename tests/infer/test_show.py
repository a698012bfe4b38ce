"""The progress bar of evaluation and prediction."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from unetfast.infer.show import build_bar, print_scores
from unetfast.model.metrics import compute_metrics


@pytest.mark.parametrize(("no_color", "is_terminal", "shown"), [("", True, True), ("1", True, False), ("", False, False)])
def test_a_bar_is_for_terminals_that_want_one(
    no_color: str, is_terminal: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    out = io.StringIO()
    with build_bar("eval val", 4, Console(file=out, force_terminal=is_terminal, width=100)) as advance_to:
        advance_to(4)
    assert ("4/4" in out.getvalue()) == shown
    assert bool(out.getvalue()) == shown


def test_classes_without_a_true_pixel_stand_last() -> None:
    confusion_KK = torch.tensor([[0, 0, 0], [2, 6, 0], [0, 0, 4]])  # "fog" is predicted but never true
    metrics = compute_metrics(confusion_KK, ["fog", "road", "car"])
    out = io.StringIO()
    print_scores(metrics, loss=0.5, title="a run", warnings=[], out=out)
    rows = [line.split() for line in out.getvalue().splitlines()]
    assert [row[0] for row in rows[2:5]] == ["road", "car", "fog"]
    assert rows[4] == ["fog", "0.0000", "0.0000", "no", "true", "pixel"]
