"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real sample files, from UNETFAST_REAL_DATA or ../shared/data; skips where neither exists."""
    named = os.environ.get("UNETFAST_REAL_DATA")
    if named and not Path(named).is_dir():
        pytest.fail(f"UNETFAST_REAL_DATA={named}: no such folder")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real sample files: set UNETFAST_REAL_DATA to their folder")
    return folder
