"""Both backends at the sizes at which pixel code goes wrong: ties, edges, enlarged, narrow and tiny images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backend_parity import (
    AUGMENTATIONS,
    DEVICES,
    FLIPS,
    IMAGE_KINDS,
    LABELS,
    LEAST_PSNR,
    TARGET_HW,
    build,
    check_parity,
    compare_backends,
    device_or_skip,
    make_config,
    make_lossless,
    names_of,
)
from loader_shards import make_sample, write_shards

from unetfast.data.reader import open_shards

pytestmark = pytest.mark.dali


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return device_or_skip(request.param)


# stored columns -> columns of the batch: at these ratios many centres fall exactly between two stored pixels
TIES = [(160, 240), (128, 240), (107, 160), (288, 240), (176, 240), (96, 160), (224, 160), (256, 192), (250, 300), (64, 96)]


@pytest.mark.parametrize("augment", [{}, FLIPS], ids=["plain", "flips"])
@pytest.mark.parametrize(("stored", "target"), TIES)
def test_centres_between_two_pixels_fall_to_the_same_side(
    tmp_path: Path, device: torch.device, stored: int, target: int, augment: dict[str, Any]
) -> None:
    labels = LABELS["16 bits"]
    places = np.arange(stored, dtype=np.uint16)
    across, down = np.broadcast_to(places, (stored, stored)), np.broadcast_to(places[:, None], (stored, stored))
    grey = np.zeros((stored, stored, 3), dtype=np.uint8)
    made = [make_lossless(i, grey, np.ascontiguousarray(mask), labels) for i, mask in enumerate([across, down])]
    files = compare_backends(
        write_shards(tmp_path / "shards", made, labels=labels),
        (target, target),
        augment,
        device=device,
        batch_size=2,
        num_batches=8,
    )
    check_parity(files, names_of(made), masks_equal=True)


@pytest.mark.parametrize("target_hw", [(96, 128), (37, 53)])
def test_images_differ_by_a_level_inside_the_outermost_ring(
    tmp_path: Path, device: torch.device, target_hw: tuple[int, int]
) -> None:
    """DALI repeats the pixel at an image's edge under the filter, the CPU backend leaves it out: that is all."""
    made = [make_sample(i, hw, kind="lz4") for i, hw in enumerate([(200, 260), (97, 129), (333, 301), (40, 50)])]
    folder = write_shards(tmp_path / "shards", made)
    images = {}
    for backend in ("cpu", "dali"):
        config = make_config(backend, target_hw, {}, batch_size=4)
        place = device if backend == "dali" else torch.device("cpu")
        with open_shards(folder).split("val") as reader, build(backend, reader, config, training=False, device=place) as loader:
            images[backend] = next(iter(loader)).image_NCHW.cpu().numpy().astype(int)
    difference = np.abs(images["cpu"] - images["dali"])
    inside = difference[:, :, 1:-1, 1:-1].max(axis=(1, 2, 3))
    assert (inside <= 1).all(), f"levels by image: {inside}"
    assert difference.max() > 1  # the ring is seen


@pytest.mark.parametrize("augment", ["none", "resized_crop", "rotation", "all"])
def test_small_images_are_enlarged(tmp_path: Path, device: torch.device, augment: str) -> None:
    sizes = [(9, 13), (16, 16), (24, 33), (2, 2), (5, 40), (31, 7)]
    made = [make_sample(i, hw, kind=IMAGE_KINDS[i]) for i, hw in enumerate(sizes)]
    files = compare_backends(
        write_shards(tmp_path / "shards", made), TARGET_HW, AUGMENTATIONS[augment], device=device, batch_size=6, num_batches=6
    )
    check_parity(files, names_of(made))


@pytest.mark.parametrize("augment", ["none", "resized_crop", "all"])
def test_extreme_aspects(tmp_path: Path, device: torch.device, augment: str) -> None:
    sizes = [(7, 400), (500, 6), (16, 640), (700, 17), (3, 1000), (900, 2)]
    made = [make_sample(i, hw, kind=IMAGE_KINDS[i]) for i, hw in enumerate(sizes)]
    files = compare_backends(
        write_shards(tmp_path / "shards", made), TARGET_HW, AUGMENTATIONS[augment], device=device, batch_size=6, num_batches=6
    )
    check_parity(files, names_of(made))


@pytest.mark.parametrize("size_hw", [[0, 0], [200, 150], [30, 400]])
def test_crops_larger_than_their_images(tmp_path: Path, device: torch.device, size_hw: list[int]) -> None:
    made = [make_sample(i, hw, kind=IMAGE_KINDS[i]) for i, hw in enumerate([(40, 50), (95, 300), (200, 64), (96, 128)])]
    augment = {"crop": {"prob": 1.0, "size_hw": size_hw}, **FLIPS}
    files = compare_backends(
        write_shards(tmp_path / "shards", made), TARGET_HW, augment, device=device, batch_size=4, num_batches=8
    )
    check_parity(files, names_of(made))


@pytest.mark.parametrize("mask_kind", LABELS)
@pytest.mark.parametrize("target_hw", [(16, 640), (1024, 8), (1, 1), (3, 5)])
def test_images_one_pixel_wide_or_high(
    tmp_path: Path, device: torch.device, target_hw: tuple[int, int], mask_kind: str
) -> None:
    labels = LABELS[mask_kind]
    sizes = [(1, 40), (40, 1), (1, 1), (1, 2), (2, 1), (3, 3)]
    made = []
    for i, hw in enumerate(sizes):
        one = make_sample(i, hw, kind=IMAGE_KINDS[i], labels=labels)
        one.mask[one.mask == labels.ignore_index] = 0
        made.append(make_lossless(i, one.image, one.mask, labels))
    folder = write_shards(tmp_path / "shards", made, labels=labels)
    files = compare_backends(folder, target_hw, FLIPS, device=device, batch_size=6, num_batches=4)
    # the backends treat an image's edge differently, and of the smallest batches the edge is all there is
    check_parity(files, names_of(made), masks_equal=True, least_psnr=LEAST_PSNR if max(target_hw) > 5 else 0)
    for backend in ("cpu", "dali"):
        config = make_config(backend, target_hw, {}, batch_size=6)
        place = device if backend == "dali" else torch.device("cpu")
        with open_shards(folder).split("val") as reader, build(backend, reader, config, training=False, device=place) as loader:
            masks = next(iter(loader)).mask_NHW.cpu().numpy()
        for row, one in enumerate(made):  # nothing is outside
            assert masks[row].max() < labels.num_classes, (backend, sizes[row])
            assert set(np.unique(masks[row])) <= set(np.unique(one.mask)), (backend, sizes[row])
