"""The programs in benchmarks/ import each other as the scripts they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
def one_thread() -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)
