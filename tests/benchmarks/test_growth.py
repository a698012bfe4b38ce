"""The growth benchmark: each size in turn; here without processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import growth
import pytest
from runs import run_quick


class Here:
    """Stands for `apart.Apart`, in this process."""

    def __init__(self, function: Callable[[Any], Any], argument: Any) -> None:
        self._result = function(argument)

    def result(self, timeout_s: float) -> Any:
        assert timeout_s > 0
        return self._result


def test_each_size_is_measured(toy_root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "Apart", Here)
    record, _ = run_quick(growth, toy_root, capsys, monkeypatch, rounds=1)
    assert list(record["sides"]) == [
        *("1,000 samples", "10,000 samples", "16 frames", "32 frames"),
        *(f"{threads}, batch {size}" for threads in ("1 thread", "2 threads") for size in (1, 4)),
    ]
    assert record["sides"]["10,000 samples"]["index_mib"] == pytest.approx(0.76, abs=0.01)
    assert record["sides"]["32 frames"]["peak_mib"] > 0
    assert record["sides"]["2 threads, batch 4"]["images_per_s"]["median"] > 0
