"""Any folder of images and masks: where they lie, how they pair, what their values mean."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.folder import recognize, scan
from unetfast.errors import BadSampleError, UserError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(np.asarray(array, np.uint8)).save(path)


def write_pairs(root, images, masks, stems=("a", "b"), tail="", suffix=".png", values=(0, 255)):
    for stem in stems:
        save(root / images / f"{stem}.jpg", np.zeros((1, len(values), 3)))
        save(root / masks / f"{stem}{tail}{suffix}", np.array([values]))


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("image", "label"),
        ("imgs", "annotations"),
        ("Images", "Labels"),
        ("img", "gt"),
        ("JPEGImages", "SegmentationClass"),
    ],
)
def test_names_of_folders(tmp_path, images, masks):
    write_pairs(tmp_path, images, masks)
    found = scan(tmp_path, SourceOptions())
    assert (found.dataset, found.layout) == ("folder", f"{images}/ + {masks}/")
    assert [(s.split, s.name, s.group, s.source_path) for s in found.samples] == [
        ("", "a", "", f"{images}/a.jpg"),
        ("", "b", "", f"{images}/b.jpg"),
    ]
    assert found.read_mask(found.samples[0].mask).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("train", "val"),
    [
        (("train/images", "train/masks"), ("val/images", "val/masks")),
        (("images/train", "masks/train"), ("images/val", "masks/val")),
        (("images/training", "annotations/train"), ("images/validation", "annotations/val")),
        (("train_images", "train_masks"), ("valid_images", "valid_masks")),
        (("images_train", "masks_train"), ("images_val", "masks_val")),
        (("train", "trainannot"), ("val", "valannot")),
        (("train", "train_labels"), ("val", "val_labels")),
    ],
)
def test_split_folders(tmp_path, train, val):
    write_pairs(tmp_path, *train, stems=("a", "b"))
    write_pairs(tmp_path, *val, stems=("a", "c"))
    found = scan(tmp_path, SourceOptions())
    assert [(s.split, s.name) for s in found.samples] == [("train", "a"), ("train", "b"), ("val", "a"), ("val", "c")]
    assert found.problems == []


def test_lone_folders(tmp_path):
    write_pairs(tmp_path / "one", "", "", tail="_mask")
    assert recognize(tmp_path / "one") == "images and masks in one folder"
    found = scan(tmp_path / "one", SourceOptions())
    assert [(s.split, s.name) for s in found.samples] == [("", "a"), ("", "b")]
    for split in ("train", "val"):
        write_pairs(tmp_path / "two", split, split, tail="_mask")
    found = scan(tmp_path / "two", SourceOptions())
    assert [s.split for s in found.samples] == ["train", "train", "val", "val"]


def test_deep_folders_keep_their_path_in_the_name(tmp_path):
    write_pairs(tmp_path, "images/day/1", "masks/day/1")
    write_pairs(tmp_path, "images/night", "masks/night")
    names = [s.name for s in scan(tmp_path, SourceOptions()).samples]
    assert names == ["day/1/a", "day/1/b", "night/a", "night/b"]


def test_problems_are_named_with_their_folders(tmp_path):
    write_pairs(tmp_path, "train/images", "train/masks", stems=("a", "b", "c"))
    (tmp_path / "train/masks/b.png").unlink()
    (tmp_path / "train/images/c.jpg").unlink()
    found = scan(tmp_path, SourceOptions())
    assert [s.name for s in found.samples] == ["a"]
    assert {problem.file for problem in found.problems} == {"train/images/b.jpg", "train/masks/c.png"}


def test_image_masks_come_before_npy_ones(tmp_path):
    write_pairs(tmp_path, "JPEGImages", "SegmentationClass")
    write_pairs(tmp_path, "JPEGImages", "SegmentationClassNpy", suffix=".npy")
    found = scan(tmp_path, SourceOptions())
    assert found.samples[0].mask.path.endswith(".png")
    assert found.notes == [("SegmentationClassNpy/ left out, SegmentationClass/ taken; files", 2)]


def test_several_mask_folders_are_asked_for(tmp_path):
    write_pairs(tmp_path, "images", "masks")
    write_pairs(tmp_path, "images", "labels")
    with pytest.raises(UserError, match="labels/, masks/ may all hold the masks; move away"):
        scan(tmp_path, SourceOptions())


def test_folders_without_masks_do_not_count(tmp_path):
    write_pairs(tmp_path, "images", "masks")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 1 1")
    assert scan(tmp_path, SourceOptions()).layout == "images/ + masks/"


def test_npy_masks_with_minus_one(tmp_path):
    write_pairs(tmp_path, "images", "masks", suffix=".npy", values=(-1, 0, 1, 2))
    found = scan(tmp_path, SourceOptions(ignore_value=-1))
    assert found.labels.ignore_value == -1
    assert found.read_mask(found.samples[0].mask).tolist() == [[255, 0, 1, 2]]


def test_options_reach_the_labels(tmp_path):
    write_pairs(tmp_path, "images", "masks", tail="_x", values=(0, 7, 9))
    names = tmp_path / "names.txt"
    names.write_text("sky\nroad\n")
    options = SourceOptions(classes_file=names, ignore_value=9, value_map=((7, 1),), mask_suffix="_x")
    found = scan(tmp_path, options)
    assert [(c.name, c.value) for c in found.labels.classes] == [("sky", 0), ("road", 7)]
    assert found.read_mask(found.samples[0].mask).tolist() == [[0, 1, 255]]


def test_rgb_masks_want_a_colour_table(tmp_path):
    for stem in ("a", "b"):
        save(tmp_path / "images" / f"{stem}.jpg", np.zeros((1, 2, 3)))
        save(tmp_path / "masks" / f"{stem}.png", [[[0, 0, 0], [255, 0, 0]]])
    with pytest.raises(UserError, match=r"a\.png: RGB mask without a colour table") as caught:
        scan(tmp_path, SourceOptions())
    assert "--classes FILE" in str(caught.value)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nroad,0,0,0\ncar,255,0,0\n")
    found = scan(tmp_path, SourceOptions())
    assert found.notes == [("classes taken from class_dict.csv", 1)]
    assert found.labels.classes[1].value == (255, 0, 0)
    assert found.read_mask(found.samples[0].mask).tolist() == [[0, 1]]


def test_sixteen_bit_masks(tmp_path):
    values = np.arange(300, dtype=np.uint16)[None]
    save(tmp_path / "images" / "a.jpg", np.zeros((1, 300, 3)))
    (tmp_path / "masks").mkdir()
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    found = scan(tmp_path, SourceOptions())
    assert (found.labels.num_classes, found.labels.mask_bits) == (300, 16)
    mask_HW = found.read_mask(found.samples[0].mask)
    assert mask_HW.dtype == np.uint16
    np.testing.assert_array_equal(mask_HW, values)


def test_jpeg_masks_are_refused_at_once(tmp_path):
    write_pairs(tmp_path, "images", "masks", suffix=".jpg")
    with pytest.raises(BadSampleError, match=r"masks/a\.jpg: is a JPEG"):
        scan(tmp_path, SourceOptions())


def test_broken_mask_is_left_to_the_packer(tmp_path):
    write_pairs(tmp_path, "images", "masks", stems=("a", "b", "c"))
    (tmp_path / "masks" / "a.png").write_bytes(b"broken")
    found = scan(tmp_path, SourceOptions())
    assert found.labels.num_classes == 2
    with pytest.raises(BadSampleError, match=r"a\.png: is no image"):
        found.read_mask(found.samples[0].mask)


def test_voc_lists_make_the_splits(tmp_path):
    write_pairs(tmp_path, "JPEGImages", "SegmentationClass", stems=("a", "b", "c"))
    save(tmp_path / "JPEGImages" / "only_boxes.jpg", np.zeros((1, 2, 3)))
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nmissing\n")
    (lists / "val.txt").write_text("b\n")
    found = scan(tmp_path, SourceOptions())
    assert [(s.split, s.name) for s in found.samples] == [("train", "a"), ("val", "b")]
    assert found.notes == [("files that the lists in ImageSets/Segmentation/ do not name, left out", 2)]
    assert [problem.file for problem in found.problems] == ["ImageSets/Segmentation/train.txt"]
    assert "missing" in found.problems[0].reason


def test_nothing_pairs(tmp_path):
    write_pairs(tmp_path, "images", "masks", stems=("a",))
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / "zzz.png")
    with pytest.raises(UserError, match=r"no image has a mask \(images/ \+ masks/\)") as caught:
        scan(tmp_path, SourceOptions())
    assert "images/a.jpg has no mask" in str(caught.value)
    assert "--mask-suffix" in str(caught.value)


def test_nothing_found(tmp_path):
    save(tmp_path / "pictures_of_cats" / "a.jpg", np.zeros((1, 1, 3)))
    assert recognize(tmp_path) == ""
    with pytest.raises(UserError, match="no images and masks found; looked for images/ and masks/"):
        scan(tmp_path, SourceOptions())


@pytest.mark.real
def test_real_membrane(real_data):
    found = scan(real_data / "folder" / "membrane", SourceOptions())
    assert (len(found.samples), found.problems, found.notes) == (12, [], [])
    assert [(c.name, c.value) for c in found.labels.classes] == [("background", 0), ("foreground", 255)]
    for sample in found.samples:
        with Image.open(sample.mask.path) as image:
            np.testing.assert_array_equal(found.read_mask(sample.mask), np.asarray(image) // 255)


@pytest.mark.real
def test_real_voc(real_data):
    root = real_data / "folder" / "voc_labelme"
    found = scan(root, SourceOptions())
    assert (len(found.samples), found.problems) == (3, [])
    assert found.labels.names[:2] == ["background", "aeroplane"]
    assert (found.labels.num_classes, found.labels.ignore_value) == (21, 255)
    assert found.labels.classes[1].color == (128, 0, 0)
    assert ("SegmentationClassNpy/ left out, SegmentationClass/ taken; files", 3) in found.notes
    for sample in found.samples:
        same = np.load(root / "SegmentationClassNpy" / f"{sample.name}.npy")
        np.testing.assert_array_equal(found.read_mask(sample.mask), np.where(same == -1, 255, same))


@pytest.mark.real
def test_real_voc_by_its_npy_masks(real_data, tmp_path):
    root = real_data / "folder" / "voc_labelme"
    (tmp_path / "images").symlink_to(root / "JPEGImages")
    (tmp_path / "masks").symlink_to(root / "SegmentationClassNpy")
    options = SourceOptions(classes_file=root / "class_names.txt", ignore_value=-1)
    found, pictures = scan(tmp_path, options), scan(root, SourceOptions())
    for sample, other in zip(found.samples, pictures.samples, strict=True):
        np.testing.assert_array_equal(found.read_mask(sample.mask), pictures.read_mask(other.mask))
