"""The source is found from the folder alone, or not at all."""

from __future__ import annotations

import io
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from unetfast.data.image import load_image
from unetfast.data.sample import check_mask
from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.detect import DATASETS, scan_source
from unetfast.data.spans import read_span
from unetfast.errors import UserError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def write_carvana(root):
    save(root / "train" / "car_01.jpg", np.zeros((2, 2, 3)))
    save(root / "train_masks" / "car_01_mask.gif", np.zeros((2, 2)))


def write_clevr(root):
    save(root / "video_0" / "image_0.png", np.zeros((2, 2, 3)))
    np.save(root / "video_0" / "mask.npy", np.zeros((1, 2, 2), np.uint8))


def write_ade20k(root):
    save(root / "images" / "training" / "ADE_train_00000001.jpg", np.zeros((2, 2, 3)))
    save(root / "annotations" / "training" / "ADE_train_00000001.png", np.zeros((2, 2)))


def write_folder(root):
    save(root / "images" / "a.png", np.zeros((2, 2, 3)))
    save(root / "masks" / "a.png", [[0, 1], [1, 0]])


def write_webdataset(root):
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "0.tar", "w") as tar:
        for name in ("a.jpg", "a.png"):
            stream = io.BytesIO()
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(stream, "JPEG" if name.endswith("jpg") else "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(stream.getvalue())
            tar.addfile(info, io.BytesIO(stream.getvalue()))


WRITERS = {
    "carvana": write_carvana,
    "clevr": write_clevr,
    "ade20k": write_ade20k,
    "folder": write_folder,
    "webdataset": write_webdataset,
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_found_by_itself_by_name_and_from_above(tmp_path, dataset):
    root = tmp_path / "data" / "set"
    WRITERS[dataset](root)
    for place, asked in ((root, "auto"), (root, dataset), (root.parent, "auto"), (root.parent, dataset)):
        found = scan_source(place, asked, SourceOptions())
        assert found.dataset == dataset
        assert len(found.samples) == 1
    pickle.loads(pickle.dumps(found.read_mask))(found.samples[0].mask)


def test_nothing_fits_lists_all_that_was_looked_for_and_what_is_there(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="no known data set in it") as caught:
        scan_source(tmp_path, "auto", SourceOptions())
    text = str(caught.value)
    for name in DATASETS:
        assert f"\n  {name} " in text
    assert "train_masks/<car>_<angle>_mask.gif" in text
    assert "found: notes/, 1 .txt file" in text


def test_named_layout_that_does_not_fit(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(UserError, match="no CLEVR videos with masks in it; looked for") as caught:
        scan_source(tmp_path, "clevr", SourceOptions())
    assert "found: images/, masks/" in str(caught.value)
    assert "carvana" not in str(caught.value)


def test_archives_beside_a_data_set_are_not_shards(tmp_path):
    write_folder(tmp_path)
    with tarfile.open(tmp_path / "download.tar", "w") as tar:
        tar.add(tmp_path / "images", "images")
        tar.add(tmp_path / "masks", "masks")
    (tmp_path / "broken.tar").write_bytes(b"x")
    assert scan_source(tmp_path, "auto", SourceOptions()).dataset == "folder"


def test_two_that_fit_are_never_guessed_at(tmp_path):
    write_carvana(tmp_path)
    write_clevr(tmp_path)
    with pytest.raises(UserError, match="2 data sets fit") as caught:
        scan_source(tmp_path, "auto", SourceOptions())
    assert "carvana (Kaggle layout)" in str(caught.value)
    assert "clevr (one folder of videos)" in str(caught.value)
    assert scan_source(tmp_path, "clevr", SourceOptions()).dataset == "clevr"


def test_two_folders_below(tmp_path):
    write_carvana(tmp_path / "one")
    write_carvana(tmp_path / "two")
    with pytest.raises(UserError, match="2 data sets fit"):
        scan_source(tmp_path, "auto", SourceOptions())


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        scan_source(tmp_path / "gone", "auto", SourceOptions())
    (tmp_path / "a.zip").write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.zip: not a folder"):
        scan_source(tmp_path / "a.zip", "auto", SourceOptions())
    with pytest.raises(UserError, match="--dataset cityscapes: unknown; one of auto, carvana"):
        scan_source(tmp_path, "cityscapes", SourceOptions())


@pytest.mark.parametrize("dataset", ["carvana", "clevr", "ade20k"])
def test_options_without_effect_are_refused(tmp_path, dataset):
    WRITERS[dataset](tmp_path)
    for options, flag in (
        (SourceOptions(classes_file=tmp_path / "x"), "--classes"),
        (SourceOptions(ignore_value=255), "--ignore"),
        (SourceOptions(mask_suffix="_m"), "--mask-suffix"),
    ):
        with pytest.raises(UserError, match=f"{flag}: .* is {dataset}, whose classes are fixed"):
            scan_source(tmp_path, "auto", options)
    scan_source(tmp_path, "auto", SourceOptions(value_map=((7, 0),)))


REAL = [
    ("carvana", "carvana", "Kaggle layout", 96),
    ("clevr", "clevr", "split folders", 88),
    ("clevr/Dataset_Student", "clevr", "split folders", 88),
    ("ade20k", "ade20k", "ADEChallengeData2016", 12),
    ("ade20k/ADEChallengeData2016", "ade20k", "ADEChallengeData2016", 12),
    ("ade20k_5class", "ade20k", "ADEChallengeData2016", 59),
    ("ade20k_full", "ade20k", "full release", 2),
    ("ade20k_full/ADE20K_2021_17_01", "ade20k", "full release", 2),
    ("folder/membrane", "folder", "image/ + label/", 12),
    ("folder/voc_labelme", "folder", "JPEGImages/ + SegmentationClass/", 3),
]


@pytest.mark.real
@pytest.mark.parametrize(("place", "dataset", "layout", "num_samples"), REAL)
def test_real_folders(real_data, place, dataset, layout, num_samples):
    found = scan_source(real_data / place, "auto", SourceOptions())
    assert (found.dataset, found.layout, len(found.samples), found.problems) == (dataset, layout, num_samples, [])
    assert found.samples == sorted(found.samples, key=lambda sample: (sample.split, sample.name))
    assert len({(sample.split, sample.key) for sample in found.samples}) == num_samples
    for sample in found.samples[:: max(1, num_samples // 4)]:
        loaded = load_image(read_span(sample.image), file=sample.source_path)
        mask_HW = found.read_mask(sample.mask)
        counts = check_mask(mask_HW, found.labels, image_hw=loaded.rgb_HWC.shape[:2], file=sample.mask.path)
        assert counts.sum() == mask_HW.size
        assert found.labels.has_ignore or counts[-1] == 0


@pytest.mark.real
def test_a_real_folder_of_two_data_sets(real_data):
    with pytest.raises(UserError, match="2 data sets fit"):
        scan_source(real_data / "folder", "auto", SourceOptions())
