"""The programs in benchmarks/ import each other as the scripts they are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that holds small toy shards of all three sets, drawn and packed once."""
    from toyshards import TOY_SETS, make_toy_shards

    root = tmp_path_factory.mktemp("toy")
    for name in TOY_SETS:
        make_toy_shards(name, root, small=True)
    return root


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass
