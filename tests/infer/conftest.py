"""A tiny trained model on disk, and the label tables that it may have."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from unetfast.checkpoint import Checkpoint, build_network, save_checkpoint
from unetfast.config import build_config
from unetfast.data.labels import ClassInfo, LabelTable

CAR_LABELS = LabelTable(
    classes=(ClassInfo(name="background", color=(0, 0, 0), value=0), ClassInfo(name="car", color=(255, 255, 255), value=255))
)


@pytest.fixture(scope="session")
def make_labels() -> Callable[[int], LabelTable]:
    return build_labels


def build_labels(num_classes: int) -> LabelTable:
    """Classes with values 1, 2, ... and an ignore value, as in ADE20K."""
    infos = [
        ClassInfo(name=f"class {k}", color=(k % 256, 50, 255 - k % 256), value=(k + 1) % 65536) for k in range(num_classes)
    ]
    return LabelTable(classes=tuple(infos), ignore_value=0)


@pytest.fixture
def save_tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """Save a checkpoint of a random U-Net of 4 base channels and depth 2; returns its path."""
    return partial(save_random_model, tmp_path / "best.pt")


@pytest.fixture(scope="session")
def save_model_at() -> Callable[..., Path]:
    """The same, to a path that is given first."""
    return save_random_model


def save_random_model(
    path: Path,
    labels: LabelTable = CAR_LABELS,
    *,
    size_hw: tuple[int, int] = (32, 48),
    dataset: str = "folder",
    **sections: dict[str, object],
) -> Path:
    tree = {"model": {"base_channels": 4, "depth": 2}, "loader": {"size_hw": list(size_hw), "batch_size": 4}}
    config = build_config({**tree, "train": {"amp": "off"}, **sections})
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_network(config.model, num_classes=labels.num_classes, mean=mean, std=std)
    checkpoint = Checkpoint(
        step=10,
        epoch=2,
        config=config,
        labels=labels,
        dataset=dataset,
        manifest_digest="0" * 16,
        mean=mean,
        std=std,
        weights=model.state_dict(),
    )
    save_checkpoint(path, checkpoint)
    return path
