"""Both backends on samples made by code: every codec and mask width, each alone and together, and the numbers of the plan."""

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
    TARGET_HW,
    build,
    check_parity,
    compare_backends,
    device_or_skip,
    make_config,
    make_lossless,
    names_of,
    plan_numbers,
)
from loader_shards import MadeSample, make_sample, write_shards

from unetfast.data.labels import LabelTable
from unetfast.data.reader import open_shards
from unetfast.loader.build import build_loader

pytestmark = pytest.mark.dali

LOSSLESS = {"lz4", "png"}
# every kind of image, and every kind of mask: codec and bits
CODECS = [
    *((kind, "lz4", "8 bits") for kind in IMAGE_KINDS),
    *(("jpeg420", codec, bits) for codec in ("lz4", "png") for bits in LABELS if (codec, bits) != ("lz4", "8 bits")),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return device_or_skip(request.param)


def make_coded(number: int, hw: tuple[int, int], labels: LabelTable) -> MadeSample:
    """Make a sample whose pixels tell their place, up to 256x256: red is the column, green the row, blue the sample."""
    rows, columns = np.mgrid[: hw[0], : hw[1]]
    image_HWC = np.stack([columns, rows, np.full(hw, number)], axis=2).astype(np.uint8)
    mask_HW = ((rows * 7 + columns * 3) % labels.num_classes).astype(labels.mask_dtype)
    return make_lossless(number, image_HWC, mask_HW, labels)


@pytest.mark.parametrize(("kind", "mask_codec", "mask_kind"), CODECS, ids=lambda part: str(part))
def test_each_codec_alone(tmp_path: Path, device: torch.device, kind: str, mask_codec: str, mask_kind: str) -> None:
    labels = LABELS[mask_kind]
    sizes = [(150, 201), (97, 130), (240, 320)]
    made = [make_sample(i, sizes[i], kind=kind, mask_codec=mask_codec, labels=labels) for i in range(3)]
    folder = write_shards(tmp_path / "shards", made, labels=labels)
    for augment in ("none", "all"):
        files = compare_backends(folder, TARGET_HW, AUGMENTATIONS[augment], device=device, batch_size=3, num_batches=6)
        assert len(files) == 18
        check_parity(files, names_of(made))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MadeSample]]:
    """All codecs of images and masks in one split, so in one batch."""
    sizes = [(150, 201), (96, 128), (61, 300), (333, 90), (240, 320), (97, 131), (128, 96)]
    made = [
        make_sample(i, sizes[i % len(sizes)], kind=IMAGE_KINDS[i % len(IMAGE_KINDS)], mask_codec="png" if i % 4 == 3 else "lz4")
        for i in range(12)
    ]
    return write_shards(tmp_path_factory.mktemp("mixed") / "shards", made, samples_per_shard=5), made


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_batch_of_all_codecs(mixed: tuple[Path, list[MadeSample]], device: torch.device, augment: str) -> None:
    folder, made = mixed
    files = compare_backends(folder, TARGET_HW, AUGMENTATIONS[augment], device=device, batch_size=12, num_batches=4)
    assert {file.codec for file in files} == {"jpeg", "lz4", "png"}
    check_parity(files, names_of(made))


def test_validation_sees_each_sample_once_in_order(mixed: tuple[Path, list[MadeSample]], device: torch.device) -> None:
    folder, made = mixed
    files = compare_backends(folder, TARGET_HW, AUGMENTATIONS["all"], split="val", training=False, device=device, batch_size=5)
    assert [file.sample_id for file in files] == list(range(12))
    check_parity(files, names_of(made))


def test_a_batch_of_one(mixed: tuple[Path, list[MadeSample]], device: torch.device) -> None:
    folder, made = mixed
    files = compare_backends(folder, TARGET_HW, AUGMENTATIONS["all"], device=device, batch_size=1, num_batches=24)
    assert len(files) == 24
    check_parity(files, names_of(made))


@pytest.mark.parametrize("mask_kind", LABELS)
def test_what_is_not_resized_is_not_changed(tmp_path: Path, device: torch.device, mask_kind: str) -> None:
    """Samples of the batch's own size, flipped or not: equal to what was packed."""
    labels = LABELS[mask_kind]
    made = [make_sample(i, (75, 101), kind=kind, labels=labels) for i, kind in enumerate(IMAGE_KINDS)]
    folder = write_shards(tmp_path / "shards", made, labels=labels)
    files = compare_backends(folder, (75, 101), FLIPS, device=device, batch_size=6, num_batches=8)
    check_parity(files, names_of(made), masks_equal=True, images_equal=LOSSLESS)
    config = make_config("dali", (75, 101), FLIPS, batch_size=6)
    ids, numbers = plan_numbers(folder, config, 6)
    assert {*numbers.hflip.tolist(), *numbers.vflip.tolist()} == {True, False}
    with open_shards(folder).split("train") as reader, build("dali", reader, config, training=True, device=device) as loader:
        batch = next(iter(loader))
        images, masks = batch.image_NCHW.cpu(), batch.mask_NHW.cpu()
    for row, sample_id in enumerate(ids):
        turned = (slice(None, None, -1 if numbers.vflip[row] else 1), slice(None, None, -1 if numbers.hflip[row] else 1))
        assert np.array_equal(masks[row].numpy(), made[sample_id].mask[turned])
        if made[sample_id].sample.image_codec in LOSSLESS:
            assert np.array_equal(images[row].permute(1, 2, 0).numpy(), made[sample_id].image[turned])


def test_bit_packed_boxes_that_begin_inside_a_byte(tmp_path: Path, device: torch.device) -> None:
    labels, target_hw = LABELS["1 bit"], (8, 12)
    widths = [12, 13, 15, 16, 17, 19, 23, 24, 25, 33, 47, 101]
    made = [make_sample(i, (9 + i, width), kind="lz4", labels=labels) for i, width in enumerate(widths)]
    folder = write_shards(tmp_path / "shards", made, labels=labels)
    augment = {"crop": {"prob": 1.0}, **FLIPS}
    _, numbers = plan_numbers(folder, make_config("dali", target_hw, augment), 96)
    left, right = numbers.crop_yxyx[:, 1], numbers.crop_yxyx[:, 3]
    assert set(left % 8) == set(range(8))
    assert set(right % 8) == set(range(8))
    files = compare_backends(folder, target_hw, augment, device=device, batch_size=12, num_batches=8)
    assert len(files) == 96
    check_parity(files, names_of(made), masks_equal=True, images_equal=LOSSLESS)


def test_bit_packed_masks_that_are_enlarged(tmp_path: Path, device: torch.device) -> None:
    labels = LABELS["1 bit"]
    made = [make_sample(i, (11, width), kind="jpeg", labels=labels) for i, width in enumerate([7, 8, 9, 31, 65, 130])]
    files = compare_backends(
        write_shards(tmp_path / "shards", made, labels=labels),
        TARGET_HW,
        AUGMENTATIONS["resized_crop"],
        device=device,
        batch_size=6,
        num_batches=8,
    )
    check_parity(files, names_of(made))


@pytest.mark.parametrize("mask_codec", ["lz4", "png"])
def test_ids_past_a_byte_and_the_ignore_index(tmp_path: Path, device: torch.device, mask_codec: str) -> None:
    labels = LABELS["16 bits"]
    made = [make_sample(i, (60, 80), kind="lz4", mask_codec=mask_codec, labels=labels) for i in range(4)]
    folder = write_shards(tmp_path / "shards", made, labels=labels)
    check_parity(
        compare_backends(folder, (60, 80), FLIPS, device=device, batch_size=4, num_batches=4),
        names_of(made),
        masks_equal=True,
        images_equal=LOSSLESS,
    )
    config = make_config("dali", (60, 80), {}, batch_size=4)
    with open_shards(folder).split("val") as reader, build("dali", reader, config, training=False, device=device) as loader:
        mask_NHW = next(iter(loader)).mask_NHW.cpu()
        assert mask_NHW.dtype == torch.uint16
    found = mask_NHW.numpy()
    assert np.array_equal(found, np.stack([one.mask for one in made]))
    assert found.max() == 65535
    assert ((found > 255) & (found < 300)).any()


def test_rotation_leaves_65535_outside(tmp_path: Path, device: torch.device) -> None:
    labels = LABELS["16 bits"]
    made = [make_sample(i, (90, 120), kind="lz4", labels=labels) for i in range(4)]
    for one in made:
        one.mask[one.mask == labels.ignore_index] = 0
    made = [make_lossless(i, one.image, one.mask, labels) for i, one in enumerate(made)]
    augment = {"rotation": {"prob": 1.0, "degrees": [30.0, 31.0]}}
    folder = write_shards(tmp_path / "shards", made, labels=labels)
    check_parity(compare_backends(folder, (90, 120), augment, device=device, batch_size=4, num_batches=4), names_of(made))
    config = make_config("dali", (90, 120), augment, batch_size=4)
    with open_shards(folder).split("train") as reader, build("dali", reader, config, training=True, device=device) as loader:
        found = next(iter(loader)).mask_NHW.cpu().numpy()
    assert (found[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 65535).all()
    assert found[:, 45, 60].max() < 300


@pytest.mark.parametrize("kind", ["lz4", "jpeg420"])
def test_outside_of_the_crop_box_is_ignored(tmp_path: Path, device: torch.device, kind: str) -> None:
    """The image goes on around the box; the turned mask ends with it all the same, at the very same pixels."""
    labels = LABELS["8 bits"]
    made = [make_sample(i, (200, 260), kind=kind, labels=labels) for i in range(6)]
    augment = {
        "resized_crop": {"prob": 1.0, "area": [0.2, 0.4]},
        "rotation": {"prob": 1.0, "degrees": [-90.0, 90.0]},
        "scale": {"prob": 1.0, "range": [0.5, 0.9]},
        **FLIPS,
    }
    folder = write_shards(tmp_path / "shards", made, labels=labels)
    check_parity(
        compare_backends(folder, TARGET_HW, augment, device=device, batch_size=6, num_batches=8),
        names_of(made),
    )
    config = make_config("dali", TARGET_HW, augment, batch_size=6)
    ids, numbers = plan_numbers(folder, config, 6)
    with open_shards(folder).split("train") as reader, build("dali", reader, config, training=True, device=device) as loader:
        batch = next(iter(loader))
        images, masks = batch.image_NCHW.cpu().numpy(), batch.mask_NHW.cpu().numpy()
    x, y = np.meshgrid(np.arange(TARGET_HW[1]) + 0.5, np.arange(TARGET_HW[0]) + 0.5)
    for row in range(len(ids)):
        top, left, bottom, right = numbers.crop_yxyx[row]
        at_x, at_y = (part[0] * x + part[1] * y + part[2] for part in numbers.mask_matrix[row])
        # signed distance to the box's border, stored pixels: above 0 outside
        outside = np.maximum.reduce([left - at_x, at_x - right, top - at_y, at_y - bottom])
        assert (outside > 5).any()
        assert (masks[row][outside > 0.01] == 255).all()
        assert (masks[row][outside < -0.01] < 255).mean() > 0.9
        # the image's warp reaches one target pixel out
        assert (images[row][:, outside > 2.5 * max(bottom - top, right - left) / min(TARGET_HW)] == 0).all()


def test_boxes_and_flips_are_those_of_the_plan(tmp_path: Path, device: torch.device) -> None:
    """Pixels tell their own place: each backend's corners are held against the stream's numbers, with no backend between."""
    labels, target_hw = LABELS["8 bits"], (40, 56)
    made = [make_coded(i, hw, labels) for i, hw in enumerate([(41, 57), (60, 56), (40, 90), (133, 151), (255, 256)])]
    folder = write_shards(tmp_path / "shards", made, labels=labels)
    augment = {"crop": {"prob": 1.0}, **FLIPS}
    ids, numbers = plan_numbers(folder, make_config("cpu", target_hw, augment), 60)
    assert len({tuple(box) for box in numbers.crop_yxyx.tolist()}) > 40
    for backend in ("cpu", "dali"):
        place = device if backend == "dali" else torch.device("cpu")
        config = make_config(backend, target_hw, augment, batch_size=60)
        with (
            open_shards(folder).split("train") as reader,
            build(backend, reader, config, training=True, device=place) as loader,
        ):
            batch = next(iter(loader))
            assert batch.sample_ids.tolist() == ids
            images, masks = batch.image_NCHW.cpu().numpy(), batch.mask_NHW.cpu().numpy()
        for row, sample_id in enumerate(ids):
            top, left, bottom, right = numbers.crop_yxyx[row].tolist()
            columns, rows = np.arange(left, right), np.arange(top, bottom)
            columns = columns[::-1] if numbers.hflip[row] else columns
            rows = rows[::-1] if numbers.vflip[row] else rows
            where = (backend, row, names_of(made)[sample_id])
            assert np.array_equal(images[row, 0], np.broadcast_to(columns, target_hw)), where
            assert np.array_equal(images[row, 1], np.broadcast_to(rows[:, None], target_hw)), where
            assert (images[row, 2] == sample_id).all(), where
            assert np.array_equal(masks[row], made[sample_id].mask[np.ix_(rows, columns)]), where


def images_of(folder: Path, device: torch.device, region: str, target_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    augment = {"resized_crop": {"prob": 1.0, "area": [0.05, 0.9]}, **FLIPS}
    config = make_config("dali", target_hw, augment, batch_size=24, dali={"region_decode": region})
    with open_shards(folder).split("train") as reader, build("dali", reader, config, training=True, device=device) as loader:
        batch = next(iter(loader))
        return batch.image_NCHW.permute(0, 2, 3, 1).cpu().numpy(), batch.mask_NHW.cpu().numpy()


@pytest.mark.parametrize("target_hw", [(96, 128), (24, 32)])
def test_decoding_regions_changes_no_pixels(tmp_path: Path, device: torch.device, target_hw: tuple[int, int]) -> None:
    """What lies around a box is seen by its border pixels too: a region cut too small would change them alone."""
    kinds = ["jpeg", "jpeg420", "gray", "progressive"]
    made = [make_sample(i, (230 + 17 * i, 300 - 9 * i), kind=kind) for i, kind in enumerate(kinds)]
    folder = write_shards(tmp_path / "shards", made)
    whole, masks = images_of(folder, device, "never", target_hw)
    # on a GPU, regions can end the process (see docs/architecture.md), and "auto" takes none
    for region in ("always", "auto") if device.type == "cpu" else ("auto",):
        found, found_masks = images_of(folder, device, region, target_hw)
        assert np.array_equal(found_masks, masks)
        # the resize counts from the region's corner, which rounds a pixel in thousands the other way
        levels = np.abs(found.astype(int) - whole).max(axis=(1, 2, 3))
        assert (levels <= 1).all(), f"{region}: images differ by up to {levels} levels"
        assert (found != whole).mean() < 1e-3


@pytest.mark.parametrize("sampler", ["shuffle", "sequential", "balanced"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_samples_and_positions_are_the_same(
    mixed: tuple[Path, list[MadeSample]], device: torch.device, sampler: str, world_size: int
) -> None:
    folder, _ = mixed
    found: dict[str, list[object]] = {}
    for backend in ("cpu", "dali"):
        config = make_config(backend, (24, 32), AUGMENTATIONS["all"], batch_size=6, sampler=sampler)
        place = device if backend == "dali" else torch.device("cpu")
        seen = found.setdefault(backend, [])
        for rank in range(world_size):
            with (
                open_shards(folder).split("train") as reader,
                build_loader(reader, config, training=True, device=place, rank=rank, world_size=world_size) as loader,
            ):
                for _, batch in zip(range(9), loader, strict=False):
                    seen.append((batch.sample_ids.tolist(), loader.position, loader.state_dict(), loader.num_batches))
    assert found["cpu"] == found["dali"]


def test_either_backend_goes_on_where_the_other_stopped(mixed: tuple[Path, list[MadeSample]], device: torch.device) -> None:
    folder, _ = mixed
    augment, seen = AUGMENTATIONS["all"], {}
    with open_shards(folder).split("train") as reader:
        for first, second in (("cpu", "cpu"), ("cpu", "dali"), ("dali", "cpu"), ("dali", "dali")):
            ids = []
            state: dict[str, Any] | None = None
            for backend, count in ((first, 5), (second, 7)):
                config = make_config(backend, (24, 32), augment, batch_size=5)
                with build(backend, reader, config, training=True, device=device) as loader:
                    if state is not None:
                        loader.load_state_dict(state)
                    for _, batch in zip(range(count), loader, strict=False):
                        ids.append(batch.sample_ids.tolist())
                    state = loader.state_dict()
            seen[first, second] = ids, state
    assert len(seen["cpu", "cpu"][0]) == 12
    assert all(other == seen["cpu", "cpu"] for other in seen.values())
