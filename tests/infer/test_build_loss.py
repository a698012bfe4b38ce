"""Every key of [loss] reaches the loss that is built from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unetfast.config import LossConfig
from unetfast.data.manifest import Manifest, read_manifest
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.toy import write_toy
from unetfast.errors import UserError
from unetfast.infer.load import build_loss

EVERYTHING: dict[str, Any] = {
    "cross_entropy": 0.9,
    "bce": 0.8,
    "dice": 0.7,
    "focal": 0.6,
    "tversky": 0.5,
    "lovasz": 0.4,
    "focal_gamma": 1.5,
    "tversky_alpha": 0.2,
    "tversky_beta": 0.9,
    "label_smoothing": 0.1,
    "class_weights": [0.5, 2.0],
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = tmp_path_factory.mktemp("toy")
    write_toy(root / "src", "carvana", num_groups=2, seed=0, images_per_group=2, size_hw=(20, 30))
    pack(root / "src", root / "shards", options=PackOptions(val_fraction=0.5), workers=1)
    return read_manifest(root / "shards")


def value_of(manifest: Manifest, tree: dict[str, Any]) -> float:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, generator=generator)
    mask = torch.randint(0, 2, (2, 8, 8), generator=generator)
    return build_loss(LossConfig(**tree), manifest, split="train")(logits, mask).item()


@pytest.mark.parametrize("key", LossConfig.model_fields)
def test_every_key_counts(manifest: Manifest, key: str) -> None:
    assert EVERYTHING.keys() == LossConfig.model_fields.keys()
    changed = EVERYTHING | {key: "none" if key == "class_weights" else EVERYTHING[key] / 2}
    assert value_of(manifest, changed) != pytest.approx(value_of(manifest, EVERYTHING), rel=1e-4)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"class_weights": [1.0, 2.0, 3.0]}, "class_weights has 3 numbers, there are 2 classes"),
        (
            {"cross_entropy": 0.0, "lovasz": 1.0, "class_weights": [1.0, 2.0]},
            "class_weights act on cross_entropy, bce and focal",
        ),
        ({"cross_entropy": 0.0, "dice": 1.0, "label_smoothing": 0.1}, "label_smoothing = 0.1 acts on cross_entropy alone"),
        ({"tversky": 1.0, "tversky_alpha": 0.0, "tversky_beta": 0.0}, "tversky_alpha = 0.0, tversky_beta = 0.0"),
    ],
)
def test_keys_that_do_not_fit_are_named(manifest: Manifest, tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_loss(LossConfig(**tree), manifest, split="train")


def test_counted_weights_reach_the_loss_too(manifest: Manifest) -> None:
    pixels = manifest.splits["train"].class_pixels
    median = sum(pixels) / 2
    counted = [median / count for count in pixels]
    trees = [{"focal": 1.0, "class_weights": weights} for weights in ("auto", counted)]
    assert value_of(manifest, trees[0]) == pytest.approx(value_of(manifest, trees[1]), rel=1e-5)
