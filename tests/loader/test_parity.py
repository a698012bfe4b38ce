"""Every pixel of a batch against the plain float64 reference, for every codec and augmentation; one body for every backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import loader_reference as reference
import numpy as np
import pytest
import torch
from loader_batches import keep
from loader_shards import MadeSample, make_sample, write_shards

from unetfast.config import build_config
from unetfast.loader.augment import Augmentation, draw_augmentation
from unetfast.loader.batch import Loader
from unetfast.loader.order import Order

MakeLoader = Callable[..., Loader]

AUGMENTATIONS: dict[str, dict[str, object]] = {
    "none": {},
    "flips": {"hflip": {"prob": 0.5}, "vflip": {"prob": 0.5}},
    "rotation": {"rotation": {"prob": 0.8}},
    "resized_crop": {"resized_crop": {"prob": 0.8, "area": [0.2, 1.0]}},
    "crop": {"crop": {"prob": 0.8}},
    "scale": {"scale": {"prob": 1.0, "range": [0.6, 1.7]}},
    "color": {name: {"prob": 0.7} for name in ("brightness", "contrast", "saturation", "hue")},
}
AUGMENTATIONS["all"] = {
    name: value for kind, sections in AUGMENTATIONS.items() if kind != "crop" for name, value in sections.items()
}


def numbers_of(made: list[MadeSample], augment: dict[str, object], count: int, target_hw: tuple[int, int]) -> Augmentation:
    places = Order(len(made), seed=0).locate(np.arange(count))
    stored_hw = np.array([made[i].mask.shape for i in places.sample_ids])
    return draw_augmentation(build_config({"augment": augment}).augment, places, stored_hw, seed=0, target_hw=target_hw)


def to_hwc(image_CHW: torch.Tensor) -> np.ndarray:
    return image_CHW.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_pixels_are_what_the_reference_says(make_loader: MakeLoader, made: list[MadeSample], kind: str) -> None:
    augment, count, target_hw = AUGMENTATIONS[kind], 26, (24, 32)
    numbers = numbers_of(made, augment, count, target_hw)
    loader = make_loader(augment=augment, batch_size=count)
    batch = keep(loader, 1)[0]
    for row, sample_id in enumerate(batch.ids):
        one = made[sample_id]
        mask = reference.render_mask(one.mask, numbers, row, target_hw, 255)
        assert np.array_equal(batch.mask[row].numpy(), mask), one.sample.source_path
        image = reference.render_image(one.image, numbers, row, target_hw, loader.backend)
        assert reference.psnr(to_hwc(batch.image[row]), image) >= 45, one.sample.source_path


def test_samples_of_the_batch_size_are_not_changed_at_all(
    make_loader: MakeLoader, backend_and_device: tuple[str, torch.device], made: list[MadeSample]
) -> None:
    batch = keep(make_loader(training=False, batch_size=13))[0]
    rounds_otherwise = backend_and_device == ("dali", torch.device("cuda"))  # a GPU's JPEG decoder
    found = 0
    for row, one in enumerate(made):
        if one.mask.shape == (24, 32):
            image = to_hwc(batch.image[row])
            if one.sample.image_codec == "jpeg" and rounds_otherwise:
                assert reference.psnr(image, one.image) >= 45
            else:
                assert np.array_equal(image, one.image)
            assert np.array_equal(batch.mask[row].numpy(), one.mask)
            found += 1
    assert found == 4


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MadeSample]]:
    """Samples so large that scaled decoding is used."""
    made = [make_sample(i, hw, kind=kind) for i, (hw, kind) in enumerate([((401, 599), "jpeg420"), ((300, 802), "gray")])]
    return write_shards(tmp_path_factory.mktemp("large"), made), made


@pytest.mark.parametrize(("decode", "least"), [("exact", 45), ("fast", 28)])
@pytest.mark.parametrize("kind", ["none", "all", "crop"])
def test_scaled_decoding_stays_close(
    make_loader: MakeLoader, large: tuple[Path, list[MadeSample]], kind: str, decode: str, least: int
) -> None:
    folder, made = large
    augment, target_hw = AUGMENTATIONS[kind], (24, 32)
    numbers = numbers_of(made, augment, 8, target_hw)
    loader = make_loader(folder=folder, augment=augment, batch_size=8, decode=decode)
    batch = keep(loader, 1)[0]
    for row, sample_id in enumerate(batch.ids):
        image = reference.render_image(made[sample_id].image, numbers, row, target_hw, loader.backend)
        assert reference.psnr(to_hwc(batch.image[row]), image) >= least
        mask = reference.render_mask(made[sample_id].mask, numbers, row, target_hw, 255)
        assert np.array_equal(batch.mask[row].numpy(), mask)


@pytest.mark.parametrize("stored_hw", [(401, 599), (40, 56)])
def test_the_two_rules_for_the_edge_differ_in_the_outermost_pixels_alone(stored_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(5).integers(0, 256, (*stored_hw, 3)).astype(np.uint8)
    one, other = (reference.resize_box(image, (0, 0, *stored_hw), (24, 32), beyond) for beyond in ("left out", "edge"))
    differs = (np.abs(one - other) > 1e-9).any(axis=2)
    assert differs[[0, -1]].all()
    assert differs[:, [0, -1]].all()
    assert not differs[1:-1, 1:-1].any()
