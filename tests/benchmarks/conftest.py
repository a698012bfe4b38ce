"""The programs in benchmarks/ import each other as the scripts they are."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass


@pytest.fixture(autouse=True)
def _files_left_open_end_with_their_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collect what peers leave open while its warning is ignored; in a later test it would be an error of that one."""
    yield
    if request.node.get_closest_marker("filterwarnings"):
        gc.collect()
