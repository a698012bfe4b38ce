"""ADE20K: the benchmark's folder and the full release give the same 150 classes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from unetfast.data.sources.ade20k import build_labels, class_of_name, recognize, scan
from unetfast.data.sources.base import SourceOptions
from unetfast.errors import BadSampleError, UserError


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)


def write_benchmark(root, folder, stem, mask):
    save(root / "images" / folder / f"{stem}.jpg", np.zeros((*np.shape(mask), 3)))
    save(root / "annotations" / folder / f"{stem}.png", mask)


def write_full(root, stem, numbers, names, folder="training/urban/street", encoding="utf-8"):
    numbers = np.asarray(numbers)
    place = root / "images" / "ADE" / folder
    seg = np.stack([numbers // 256 * 10 + 3, numbers % 256, np.arange(numbers.size).reshape(numbers.shape)], axis=2)
    save(place / f"{stem}.jpg", np.zeros((*numbers.shape, 3)))
    save(place / f"{stem}_seg.png", seg)
    save(place / f"{stem}_parts_1.png", seg)
    save(place / stem / f"instance_000_{stem}.png", numbers % 2)
    objects = [{"id": i, "name": name, "name_ndx": number, "polygon": {"x": [1]}} for i, (number, name) in enumerate(names)]
    text = json.dumps({"annotation": {"filename": stem, "object": objects}}, ensure_ascii=False)
    (place / f"{stem}.json").write_bytes(text.encode(encoding))
    return place / f"{stem}.json"


def test_labels():
    labels = build_labels()
    assert (labels.num_classes, labels.ignore_value) == (150, 0)
    assert labels.names[:3] == ["wall", "building", "sky"]
    assert labels.names[44] == "chest of drawers"
    assert labels.classes[149].value == 150
    # road and skyscraper share theirs in the official list
    assert len({info.color for info in labels.classes}) == 149


def test_benchmark(tmp_path):
    write_benchmark(tmp_path, "training", "ADE_train_00000001", [[0, 1, 150]])
    write_benchmark(tmp_path, "validation", "ADE_val_00000001", [[2, 2]])
    save(tmp_path / "images" / "testing" / "ADE_test_00000001.jpg", np.zeros((2, 2, 3)))
    (tmp_path / "images" / "training" / "._ADE_train_00000001.jpg").write_bytes(b"x")
    found = scan(tmp_path, SourceOptions())
    assert (found.layout, found.problems) == ("ADEChallengeData2016", [])
    assert [(s.split, s.name, s.group) for s in found.samples] == [
        ("train", "ADE_train_00000001", ""),
        ("val", "ADE_val_00000001", ""),
    ]
    assert found.samples[0].source_path == "images/training/ADE_train_00000001.jpg"
    assert found.read_mask(found.samples[0].mask).tolist() == [[255, 0, 149]]
    assert found.notes == [("test images without masks left out", 1)]


def test_benchmark_problems(tmp_path):
    for number in (1, 2, 3):
        write_benchmark(tmp_path, "training", f"ADE_train_0000000{number}", [[1]])
    (tmp_path / "annotations" / "training" / "ADE_train_00000001.png").unlink()
    (tmp_path / "images" / "training" / "ADE_train_00000002.jpg").unlink()
    save(tmp_path / "images" / "training" / "ADE_train_00000003.png", np.zeros((1, 1, 3)))
    problems = {problem.file: problem.reason for problem in scan(tmp_path, SourceOptions()).problems}
    assert problems == {
        "images/training/ADE_train_00000001.jpg": "has no mask annotations/training/ADE_train_00000001.png",
        "annotations/training/ADE_train_00000002.png": "has no image images/training/ADE_train_00000002.jpg",
        "images/training/ADE_train_00000003.png": "has the same name as ADE_train_00000003.jpg",
    }


def test_benchmark_refuses_strange_values_and_rgb(tmp_path):
    write_benchmark(tmp_path, "training", "ADE_train_00000001", [[0, 151]])
    write_benchmark(tmp_path, "training", "ADE_train_00000002", [[0, 1]])
    save(tmp_path / "annotations" / "training" / "ADE_train_00000002.png", [[[10, 20, 30]]])
    found = scan(tmp_path, SourceOptions())
    with pytest.raises(BadSampleError, match=r"ADE_train_00000001\.png: holds the values 0, 151, of which 151"):
        found.read_mask(found.samples[0].mask)
    with pytest.raises(BadSampleError, match="is RGB; the benchmark's annotations are grey"):
        found.read_mask(found.samples[1].mask)


def test_full_release(tmp_path):
    tree, building, wheel, door = 2855, 312, 3035, 774
    write_full(
        tmp_path,
        "ADE_train_00000002",
        [[0, tree, building], [wheel, door, door]],
        [(tree, "tree"), (building, "building, edifice"), (wheel, "wheel"), (wheel, "wheel"), (door, "door")],
    )
    write_full(tmp_path, "ADE_val_00000001", [[tree]], [(tree, "tree")], folder="validation/nature")
    found = scan(tmp_path, SourceOptions())
    assert (found.layout, found.problems) == ("full release", [])
    assert [(s.split, s.name) for s in found.samples] == [
        ("train", "urban/street/ADE_train_00000002"),
        ("val", "nature/ADE_val_00000001"),
    ]
    assert found.read_mask(found.samples[0].mask).tolist() == [[255, 4, 1], [255, 14, 14]]
    assert found.labels == build_labels()
    assert found.notes == [("object names that are none of the 150 classes, ignored", 1), ("objects of such names", 2)]


def test_full_release_reads_old_encodings_and_other_spacing(tmp_path):
    path = write_full(tmp_path, "ADE_train_00000001", [[5]], [(5, "tree"), (6, "café")], encoding="latin-1")
    assert scan(tmp_path, SourceOptions()).problems == []
    tree = {"annotation": {"object": [{"name_ndx": 5, "polygon": 1, "name": "tree"}]}}
    path.write_text(json.dumps(tree, indent=3))  # the number stands before the name
    found = scan(tmp_path, SourceOptions())
    assert found.read_mask(found.samples[0].mask).tolist() == [[4]]


def test_full_release_problems(tmp_path):
    for number in range(1, 5):
        write_full(tmp_path, f"ADE_train_0000000{number}", [[5]], [(5, "tree")])
    place = tmp_path / "images" / "ADE" / "training" / "urban" / "street"
    (place / "ADE_train_00000001_seg.png").unlink()
    (place / "ADE_train_00000002.json").unlink()
    (place / "ADE_train_00000003.json").write_text("{broken")
    save(place / "ADE_train_00000009_seg.png", [[[1, 2, 3]]])
    found = scan(tmp_path, SourceOptions())
    assert [s.name for s in found.samples] == ["urban/street/ADE_train_00000004"]
    problems = {problem.file.rpartition("/")[2]: problem.reason for problem in found.problems}
    assert "has no mask" in problems["ADE_train_00000001.jpg"]
    assert "which names the numbers of its mask" in problems["ADE_train_00000002.jpg"]
    assert "is no annotation of the full release" in problems["ADE_train_00000003.json"]
    assert "has no image" in problems["ADE_train_00000009_seg.png"]


def test_full_release_numbers_must_agree_and_be_named(tmp_path):
    write_full(tmp_path, "ADE_train_00000001", [[5, 77]], [(5, "tree")])
    found = scan(tmp_path, SourceOptions())
    with pytest.raises(BadSampleError, match="holds the values 5, 77, of which 77"):
        found.read_mask(found.samples[0].mask)
    mapped = scan(tmp_path, SourceOptions(value_map=((77, 2),)))
    assert mapped.read_mask(mapped.samples[0].mask).tolist() == [[class_of_name("tree"), 2]]
    write_full(tmp_path, "ADE_train_00000002", [[5]], [(5, "sky")])
    with pytest.raises(UserError, match="calls number 5 'sky', another calls it 'tree': the folder mixes releases"):
        scan(tmp_path, SourceOptions())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tree", "tree"),
        ("windowpane, window", "windowpane"),
        ("sidewalk,  Pavement", "sidewalk"),
        ("streetlight, street lamp", "streetlight"),
        ("television receiver, television, television set, tv, tv set, idiot box, boob tube, telly, goggle box", "television"),
        ("double door", "door"),
        ("window", None),
        ("wheel", None),
        ("plane", None),
        ("", None),
    ],
)
def test_class_of_name(name, expected):
    class_id = class_of_name(name)
    assert (None if class_id is None else build_labels().names[class_id]) == expected


def test_look_alikes_are_not_ade20k(tmp_path):
    save(tmp_path / "images" / "training" / "mine.jpg", np.zeros((2, 2, 3)))
    save(tmp_path / "annotations" / "training" / "mine.png", np.zeros((2, 2)))
    assert recognize(tmp_path) == ""
    with pytest.raises(UserError, match="not an ADE20K folder; looked for"):
        scan(tmp_path, SourceOptions())


@pytest.mark.real
def test_official_names_and_colours(real_data):
    with (real_data / "ade20k" / "ade20k_150_classes.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = build_labels()
    assert labels.names == [row["name"] for row in rows]
    assert [info.color for info in labels.classes] == [(int(row["r"]), int(row["g"]), int(row["b"])) for row in rows]
    for class_id, row in enumerate(rows):
        assert class_of_name(row["synonyms"].replace("|", ", ")) == class_id


@pytest.mark.real
def test_real_benchmark(real_data):
    for folder, splits in (("ade20k", ["train"] * 6 + ["val"] * 6), ("ade20k_5class", ["train"] * 59)):
        found = scan(real_data / folder / "ADEChallengeData2016", SourceOptions())
        assert ([s.split for s in found.samples], found.problems, found.notes) == (splits, [], [])
        for sample in found.samples[:8]:
            with Image.open(sample.mask.path) as image, Image.open(sample.image.path) as photo:
                expected = np.asarray(image).astype(int) - 1
                assert photo.size == image.size
            np.testing.assert_array_equal(found.read_mask(sample.mask), np.where(expected < 0, 255, expected))


@pytest.mark.real
def test_real_full_release(real_data):
    found = scan(real_data / "ade20k_full" / "ADE20K_2021_17_01", SourceOptions())
    assert (len(found.samples), found.problems) == (2, [])
    names = found.labels.names
    for sample in found.samples:
        mask_HW = found.read_mask(sample.mask)
        present = {names[i] for i in np.unique(mask_HW[mask_HW < 255])}
        assert {"sky", "building", "road", "car", "tree", "person", "sidewalk"} <= present
        assert (mask_HW == 255).mean() < 0.1
