"""A small shard folder of toy cars, and a config that trains on it in a second."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from unetfast.config import Config, build_config
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.toy import write_toy

TREE: dict[str, dict[str, Any]] = {
    "model": {"base_channels": 4, "depth": 2},
    "loader": {"size_hw": [32, 48], "batch_size": 4, "threads": 1},
    "train": {"epochs": 2, "amp": "off", "device": "cpu"},
    "optimizer": {"learning_rate": 3e-3},
    "log": {"every_steps": 2, "tensorboard": False, "report": False, "gif": False, "num_panels": 2, "num_saved_images": 3},
}


@pytest.fixture(scope="session")
def toy_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "src"
    write_toy(root, "carvana", num_groups=5, seed=0, images_per_group=3, size_hw=(40, 60))
    return root


@pytest.fixture(scope="session")
def pack_toy(toy_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[float], Path]:
    """Pack the 15 toy pictures with a share held back."""

    def do(val_fraction: float) -> Path:
        out = tmp_path_factory.mktemp("packed") / "shards"
        pack(toy_source, out, options=PackOptions(val_fraction=val_fraction), workers=1)
        return out

    return do


@pytest.fixture(scope="session")
def toy_shards(pack_toy: Callable[[float], Path]) -> Path:
    """12 pictures to train on, 3 to validate on."""
    return pack_toy(0.2)


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    pass


def make_config(**sections: dict[str, Any]) -> Config:
    tree = copy.deepcopy(TREE)
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    return build_config(tree)


@pytest.fixture(name="make_config")
def make_config_fixture() -> Callable[..., Config]:
    return make_config


class Ear:
    """A console whose words can be read."""

    def __init__(self) -> None:
        self._file = io.StringIO()
        self.console = Console(file=self._file, width=200)

    @property
    def heard(self) -> str:
        return self._file.getvalue()


@pytest.fixture
def ear() -> Ear:
    return Ear()
