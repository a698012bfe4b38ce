"""The progress bar of evaluation and prediction."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unetfast.infer.show import build_bar


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
