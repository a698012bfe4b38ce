"""Toy data: the layouts of the real sets, the same bytes each time, and a task that wants learning."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_thresholds import best_threshold_dice

from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.detect import scan_source
from unetfast.data.toy import TOY_LAYOUTS, write_toy
from unetfast.errors import UserError

ALL_LAYOUTS = [(dataset, layout) for dataset, layouts in TOY_LAYOUTS.items() for layout in layouts]
SMALL = (48, 72)


def read_tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("dataset", "layout"), ALL_LAYOUTS)
def test_the_same_arguments_give_the_same_bytes(dataset: str, layout: str, tmp_path: Path) -> None:
    options = {
        "num_groups": 3,
        "size_hw": SMALL,
        "layout": layout,
        "images_per_group": 2 if dataset in ("carvana", "clevr") else 1,
    }
    files = write_toy(tmp_path / "a", dataset, seed=5, **options)
    write_toy(tmp_path / "b", dataset, seed=5, **options)
    write_toy(tmp_path / "c", dataset, seed=6, **options)
    first = read_tree(tmp_path / "a")
    assert first == read_tree(tmp_path / "b")
    assert set(first.values()).isdisjoint(read_tree(tmp_path / "c").values())
    assert sorted(tmp_path / "a" / name for name in first) == files


@pytest.mark.parametrize(("dataset", "layout"), ALL_LAYOUTS)
def test_the_sources_take_every_layout(dataset: str, layout: str, tmp_path: Path) -> None:
    write_toy(tmp_path, dataset, num_groups=4, seed=0, size_hw=SMALL, layout=layout)
    options = SourceOptions(ignore_value=255) if dataset == "folder" else SourceOptions()
    scan = scan_source(tmp_path, "auto", options)
    assert scan.dataset == dataset
    assert not scan.problems
    expected = {"carvana": 4 * 4, "clevr": 4 * 22}.get(dataset, 4)
    assert len(scan.samples) == expected
    assert {ref.split for ref in scan.samples} == ({""} if layout in ("kaggle", "flat") else {"train", "val"})
    mask_HW = scan.read_mask(scan.samples[0].mask)
    assert mask_HW.max() < scan.labels.num_classes or scan.labels.has_ignore


def test_carvana_is_as_kaggle_gives_it(tmp_path: Path) -> None:
    files = write_toy(tmp_path, "carvana", num_groups=2, seed=0, images_per_group=16, size_hw=SMALL)
    images = sorted(path for path in files if path.suffix == ".jpg")
    assert len(images) == 32
    assert len({path.stem[:12] for path in images}) == 2
    assert all(re.fullmatch(r"[0-9a-f]{12}_(0[1-9]|1[0-6])", path.stem) for path in images)
    for path in images:
        with Image.open(path) as image, Image.open(tmp_path / "train_masks" / f"{path.stem}_mask.gif") as mask:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (72, 48))
            assert (mask.format, mask.mode, mask.n_frames, mask.size) == ("GIF", "P", 1, (72, 48))
            assert set(np.unique(np.asarray(mask)).tolist()) == {0, 1}
            assert set(np.unique(np.asarray(mask.convert("L"))).tolist()) == {0, 255}
            assert 0.05 < np.asarray(mask).mean() < 0.5


def test_four_angles_are_spread_over_the_turn(tmp_path: Path) -> None:
    files = write_toy(tmp_path, "carvana", num_groups=1, seed=0, size_hw=SMALL)
    assert sorted(path.stem[13:15] for path in files if path.suffix == ".jpg") == ["01", "05", "09", "13"]


def test_a_car_stands_in_one_folder_alone(tmp_path: Path) -> None:
    write_toy(tmp_path, "carvana", num_groups=5, seed=0, images_per_group=2, size_hw=SMALL, layout="four-folders")
    train, val = ({path.stem[:12] for path in (tmp_path / folder).iterdir()} for folder in ("train_images", "val_images"))
    assert (len(train), len(val)) == (4, 1)
    assert not train & val


def test_more_cars_leave_the_first_ones_as_they_are(tmp_path: Path) -> None:
    write_toy(tmp_path / "few", "carvana", num_groups=2, seed=0, images_per_group=1, size_hw=SMALL)
    write_toy(tmp_path / "many", "carvana", num_groups=4, seed=0, images_per_group=1, size_hw=SMALL)
    few, many = read_tree(tmp_path / "few"), read_tree(tmp_path / "many")
    assert few.items() <= many.items()


def test_clevr_is_as_the_course_gives_it(tmp_path: Path) -> None:
    write_toy(tmp_path, "clevr", num_groups=4, seed=0)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")} == {
        *(f"train/video_{number}" for number in range(3)),
        "val/video_1000",
        "unlabeled/video_2000",
    }
    folder = tmp_path / "train" / "video_0"
    mask_THW = np.load(folder / "mask.npy", allow_pickle=False)
    assert (mask_THW.dtype, mask_THW.shape) == (np.uint8, (22, 160, 240))
    assert mask_THW.flags.c_contiguous
    assert mask_THW.max() <= 48
    assert 0.85 < (mask_THW == 0).mean() < 0.99
    assert {path.name for path in folder.iterdir()} == {"mask.npy", *(f"image_{frame}.png" for frame in range(22))}
    with Image.open(folder / "image_0.png") as image:
        assert (image.mode, image.size) == ("RGB", (240, 160))
    assert not (tmp_path / "unlabeled" / "video_2000" / "mask.npy").exists()


def test_ade20k_has_sizes_that_vary_and_official_numbers(tmp_path: Path) -> None:
    files = write_toy(tmp_path, "ade20k", num_groups=12, seed=0)
    names = {path.relative_to(tmp_path).as_posix() for path in files}
    assert {"images/training/ADE_train_00000001.jpg", "annotations/validation/ADE_val_00000001.png"} <= names
    sizes, values = set(), set()
    for path in (tmp_path / "images").rglob("*.jpg"):
        with Image.open(path) as image, Image.open(tmp_path / "annotations" / path.parent.name / f"{path.stem}.png") as mask:
            assert (mask.mode, mask.size) == ("L", image.size)
            sizes.add(image.size)
            values |= set(np.unique(np.asarray(mask)).tolist())
    assert len(sizes) > 6
    assert {0, 1, 2, 3, 4, 6} <= values <= set(range(151))  # rooms, streets, and "other"


def test_folder_masks_are_palette_images_with_an_ignore_value(tmp_path: Path) -> None:
    write_toy(tmp_path, "folder", num_groups=4, seed=0, size_hw=(96, 96))
    with Image.open(next((tmp_path / "train" / "masks").iterdir())) as mask:
        assert mask.mode == "P"
        assert set(np.unique(np.asarray(mask)).tolist()) <= {0, 1, 2, 255}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_single_threshold_finds_the_toy_cars(seed: int, tmp_path: Path) -> None:
    files = write_toy(tmp_path, "carvana", num_groups=20, seed=seed, images_per_group=2)
    images = [path for path in files if path.suffix == ".jpg"]
    masks = [tmp_path / "train_masks" / f"{path.stem}_mask.gif" for path in images]
    assert best_threshold_dice(images, masks) <= 0.8


def test_the_threshold_classifier_finds_what_a_threshold_can_find(tmp_path: Path) -> None:
    mask_HW = np.zeros((16, 16), np.uint8)
    mask_HW[4:9, 3:12] = 1
    dark_HWC = np.where(mask_HW[..., None] == 1, [20, 90, 90], [200, 100, 80]).astype(np.uint8)
    Image.fromarray(dark_HWC).save(tmp_path / "image.png")
    Image.fromarray(mask_HW).save(tmp_path / "mask.png")
    assert best_threshold_dice([tmp_path / "image.png"], [tmp_path / "mask.png"]) == 1.0


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("cityscapes", {}, "there are: carvana, clevr, ade20k, folder"),
        ("carvana", {"layout": "flat"}, "there are: kaggle, four-folders"),
        ("carvana", {"images_per_group": 17}, "takes 1 to 16"),
        ("ade20k", {"images_per_group": 2}, "takes 1 to 1"),
        ("clevr", {"num_groups": 1}, "needs at least 2"),
        ("carvana", {"num_groups": 0}, "needs at least 1"),
        ("folder", {"size_hw": (8, 100)}, "at least 16x16"),
    ],
)
def test_wrong_arguments_are_refused(dataset: str, options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        write_toy(tmp_path, dataset, **{"num_groups": 4, "seed": 0, **options})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
