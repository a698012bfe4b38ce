"""Carvana: both layouts, what is out of place in them, and the real files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unetfast.data.sample import FileSpan
from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.carvana import recognize, scan
from unetfast.errors import BadSampleError, UserError

MASK = np.array([[0, 0, 1, 1], [0, 1, 1, 0]], np.uint8)


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((2, 4, 3), np.uint8)).save(path)


def write_gif(path, mask=MASK, palette=(0, 0, 0, 255, 255, 255)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("P", mask.shape[::-1])
    image.putpalette(list(palette))
    image.putdata(mask.reshape(-1).tolist())
    image.save(path, optimize=False)


def write_pair(root, stem, images="train", masks="train_masks"):
    write_image(root / images / f"{stem}.jpg")
    write_gif(root / masks / f"{stem}_mask.gif")


@pytest.fixture
def kaggle(tmp_path):
    for stem in ("carb_01", "cara_02", "cara_01"):
        write_pair(tmp_path, stem)
    return tmp_path


def test_kaggle_layout(kaggle):
    for name in (".DS_Store", "._cara_01.jpg", "Thumbs.db"):
        (kaggle / "train" / name).write_bytes(b"litter")
    (kaggle / "train_masks" / "._cara_01_mask.gif").write_bytes(b"litter")
    found = scan(kaggle, SourceOptions())
    assert (found.dataset, found.layout) == ("carvana", "Kaggle layout")
    assert [(s.split, s.name, s.group, s.source_path) for s in found.samples] == [
        ("", "cara_01", "cara", "train/cara_01.jpg"),
        ("", "cara_02", "cara", "train/cara_02.jpg"),
        ("", "carb_01", "carb", "train/carb_01.jpg"),
    ]
    assert found.problems == []
    assert [(c.name, c.value) for c in found.labels.classes] == [("background", 0), ("car", 1)]
    assert found.labels.mask_bits == 1
    assert found.samples[0].num_bytes == sum(
        (kaggle / path).stat().st_size for path in ("train/cara_01.jpg", "train_masks/cara_01_mask.gif")
    )
    np.testing.assert_array_equal(found.read_mask(found.samples[0].mask), MASK)


def test_four_folders(tmp_path):
    write_pair(tmp_path, "cara_01", "train_images")
    write_pair(tmp_path, "carb_01", "val_images", "val_masks")
    found = scan(tmp_path, SourceOptions())
    assert found.layout == "four folders"
    assert [(s.split, s.name) for s in found.samples] == [("train", "cara_01"), ("val", "carb_01")]
    assert found.notes == []


def test_four_folders_without_val(tmp_path):
    write_pair(tmp_path, "cara_01", "train_images")
    found = scan(tmp_path, SourceOptions())
    assert found.notes == [("val_images and val_masks: not there, so no val split", 1)]


def test_kaggle_test_images_are_counted(kaggle):
    write_image(kaggle / "test" / "card_01.jpg")
    assert scan(kaggle, SourceOptions()).notes == [("images of test/ left out", 1)]


def test_what_does_not_pair_is_a_problem_by_name(kaggle):
    write_image(kaggle / "train" / "carc_01.jpg")
    write_gif(kaggle / "train_masks" / "card_01_mask.gif")
    write_gif(kaggle / "train_masks" / "cara_01_mask.png")
    write_image(kaggle / "train" / "carb_01.png")
    found = scan(kaggle, SourceOptions())
    assert [s.name for s in found.samples] == ["cara_02"]
    problems = {problem.file: problem for problem in found.problems}
    assert problems["train/carc_01.jpg"].reason == "has no mask train_masks/carc_01_mask.gif"
    assert problems["train_masks/card_01_mask.gif"].reason == "has no image train/card_01.jpg"
    assert "has 2 masks: train_masks/cara_01_mask.gif, train_masks/cara_01_mask.png" in problems["train/cara_01.jpg"].reason
    assert problems["train/carb_01.jpg"].reason == "has the same name as carb_01.png"
    assert all(problem.remedy for problem in found.problems)
    assert len(problems) == 4


@pytest.mark.parametrize(
    ("mask", "palette"),
    [
        (MASK, (0, 0, 0, 255, 255, 255)),
        (1 - MASK, (255, 255, 255, 0, 0, 0)),
        (MASK * 255, [i for v in range(256) for i in (v, v, v)]),
    ],
)
def test_gif_masks_by_index_and_colour(kaggle, mask, palette):
    write_gif(kaggle / "train_masks" / "cara_01_mask.gif", mask.astype(np.uint8), palette)
    found = scan(kaggle, SourceOptions())
    np.testing.assert_array_equal(found.read_mask(found.samples[0].mask), MASK)


def test_png_masks_of_0_and_255(kaggle):
    for path in (kaggle / "train_masks").iterdir():
        Image.fromarray(MASK * 255).save(path.with_suffix(".png"))
        path.unlink()
    found = scan(kaggle, SourceOptions())
    assert found.labels.classes[1].value == 255
    np.testing.assert_array_equal(found.read_mask(found.samples[0].mask), MASK)


def test_strange_values_are_refused_and_can_be_mapped(kaggle):
    path = kaggle / "train_masks" / "cara_01_mask.gif"
    Image.fromarray(np.array([[0, 7, 255]], np.uint8)).save(path.with_suffix(".png"))
    path.unlink()
    found = scan(kaggle, SourceOptions())
    with pytest.raises(BadSampleError, match=r"cara_01_mask\.png: holds the values 0, 7, 255, of which 7 belong to none"):
        found.read_mask(found.samples[0].mask)
    mapped = scan(kaggle, SourceOptions(value_map=((7, 1),)))
    assert mapped.read_mask(mapped.samples[0].mask).tolist() == [[0, 1, 1]]
    assert mapped.labels.mask_bits == 1
    ignoring = scan(kaggle, SourceOptions(value_map=((7, None),)))
    assert ignoring.read_mask(ignoring.samples[0].mask).tolist() == [[0, 255, 1]]
    assert (ignoring.labels.ignore_value, ignoring.labels.mask_bits) == (7, 8)


def test_1_beside_255_is_refused(kaggle):
    path = kaggle / "train_masks" / "x_01_mask.png"
    Image.fromarray(np.array([[0, 1, 255]], np.uint8)).save(path)
    reader = scan(kaggle, SourceOptions()).read_mask
    with pytest.raises(BadSampleError, match="holds both 1 and 255"):
        reader(FileSpan(str(path)))


def test_jpeg_masks_are_refused(kaggle):
    for path in (kaggle / "train_masks").iterdir():
        Image.fromarray(MASK * 255).save(path.with_suffix(".jpg"))
        path.unlink()
    found = scan(kaggle, SourceOptions())
    with pytest.raises(BadSampleError, match="is a JPEG"):
        found.read_mask(found.samples[0].mask)


def test_other_folders_are_not_carvana(tmp_path):
    write_image(tmp_path / "train" / "a.jpg")
    write_gif(tmp_path / "train_masks" / "a.gif")
    assert recognize(tmp_path) == ""
    with pytest.raises(UserError, match="not a Carvana folder; looked for train/"):
        scan(tmp_path, SourceOptions())


def test_kaggle_ids_need_no_mask_ending(tmp_path):
    write_image(tmp_path / "train_images" / "0cdf5b5d0ce1_04.jpg")
    write_gif(tmp_path / "train_masks" / "0cdf5b5d0ce1_04.gif")
    found = scan(tmp_path, SourceOptions())
    assert [(s.name, s.group) for s in found.samples] == [("0cdf5b5d0ce1_04", "0cdf5b5d0ce1")]


@pytest.mark.real
def test_real_files(real_data):
    found = scan(real_data / "carvana", SourceOptions())
    assert (found.layout, len(found.samples), found.problems) == ("Kaggle layout", 96, [])
    groups = [s.group for s in found.samples]
    assert sorted(groups.count(group) for group in set(groups)) == [4] * 12 + [16] * 3
    assert found.labels.classes[1].value == 1
    for sample in found.samples[::16]:
        mask_HW = found.read_mask(sample.mask)
        assert (mask_HW.shape, mask_HW.dtype) == ((1280, 1918), np.uint8)
        assert 0.09 < mask_HW.mean() < 0.36
        with Image.open(sample.mask.path) as image:
            np.testing.assert_array_equal(mask_HW, np.asarray(image.convert("L")) // 255)
