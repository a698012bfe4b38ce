"""The programs in benchmarks/ import each other as the scripts they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass
