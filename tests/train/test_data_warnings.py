"""What the start of a training says about rare and one-sided classes: through the loop, to the user's console."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unetfast.config import Config
from unetfast.data.pack import pack
from unetfast.data.toy import write_toy
from unetfast.train.loop import train

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy videos: almost all background, and kinds of objects that only one split shows."""
    root = tmp_path_factory.mktemp("unequal")
    write_toy(root / "src", "clevr", num_groups=3, seed=0, images_per_group=2)
    pack(root / "src", root / "shards", workers=1)
    return root / "shards"


def test_unequal_classes_are_told_once_with_what_to_set(
    unequal: Path, tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    train(unequal, make_config(train={"max_steps": 1}), tmp_path / "run", console=ear.console)
    assert ear.heard.count("warning: unequal classes in train: ") == 1
    for part in ("background has 9", "--set loss.class_weights=auto", "weights from background 0.0", "--set loss.dice=1"):
        assert part in ear.heard
    assert "--set augment.resized_crop.prob=1 --set augment.max_class_share=0.75" in ear.heard
    assert "warning: in val, but not in train: " in ear.heard
    assert "warning: in train, but not in val: " in ear.heard


def test_a_config_that_counters_it_is_not_told(unequal: Path, tmp_path: Path, make_config: MakeConfig, ear: Any) -> None:
    config = make_config(train={"max_steps": 1}, augment={"crop": {"prob": 1.0, "size_hw": [40, 60]}, "max_class_share": 0.75})
    train(unequal, config, tmp_path / "run", console=ear.console)
    assert "unequal classes" not in ear.heard
    assert "warning: in val, but not in train: " in ear.heard


def test_equal_classes_have_no_warning(toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any) -> None:
    train(toy_shards, make_config(train={"max_steps": 1}), tmp_path / "run", console=ear.console)
    assert "unequal" not in ear.heard
    assert "but not in" not in ear.heard
