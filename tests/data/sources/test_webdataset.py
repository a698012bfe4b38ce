"""Tar files made by others: members by key, masks by extension, pieces read by their place."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from unetfast.data.image import load_image
from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.webdataset import recognize, scan
from unetfast.data.spans import read_span
from unetfast.errors import BadSampleError, UserError


def picture(array, fmt="PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(stream, fmt)
    return stream.getvalue()


PHOTO = picture(np.full((2, 3, 3), 9), "JPEG")


def mask(value=1) -> bytes:
    return picture([[0, value, value], [0, 0, 0]])


def write_tar(path, members, fmt=tarfile.USTAR_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=fmt) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("extension", ["mask.png", "seg.png", "label.png", "png", "SEG.PNG", "gt.png"])
@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_pairs_by_key(tmp_path, extension, fmt):
    long = "folder/" + "x" * 80
    members = [("a.jpg", PHOTO), (f"a.{extension}", mask(1)), (f"{long}.jpg", PHOTO), (f"{long}.{extension}", mask(0))]
    write_tar(tmp_path / "0.tar", members, fmt)
    found = scan(tmp_path, SourceOptions())
    assert (found.dataset, found.layout, found.problems) == ("webdataset", "1 tar file", [])
    assert [(s.split, s.name, s.source_path) for s in found.samples] == [
        ("", "a", "0.tar/a.jpg"),
        ("", long, f"0.tar/{long}.jpg"),
    ]
    assert read_span(found.samples[0].image) == PHOTO
    assert load_image(read_span(found.samples[0].image), file="a").copyable
    assert found.read_mask(found.samples[0].mask).tolist() == [[0, 1, 1], [0, 0, 0]]
    assert found.read_mask(found.samples[1].mask).max() == 0
    assert found.samples[0].num_bytes == len(PHOTO) + len(mask(1))


def test_npy_masks_and_image_words(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.array([[0, 1, 255]], np.int64))
    write_tar(tmp_path / "0.tar", [("a.image.png", picture(np.zeros((1, 3, 3)))), ("a.npy", stream.getvalue())])
    found = scan(tmp_path, SourceOptions(ignore_value=255))
    assert found.read_mask(found.samples[0].mask).tolist() == [[0, 1, 255]]


def test_splits_by_folder_and_by_name(tmp_path):
    members = [("a.jpg", PHOTO), ("a.png", mask())]
    for name in ("train/000.tar", "val/000.tar"):
        write_tar(tmp_path / "folders" / name, members)
    for name in ("ade-train-000.tar", "ade-validation-000.tar"):
        write_tar(tmp_path / "names" / name, members)
    for root in ("folders", "names"):
        found = scan(tmp_path / root, SourceOptions())
        assert [(s.split, s.name) for s in found.samples] == [("train", "a"), ("val", "a")]
    write_tar(tmp_path / "names" / "more.tar", members)
    with pytest.raises(UserError, match=r"more\.tar: of no split, while other tar files are of one"):
        scan(tmp_path / "names", SourceOptions())


def test_other_members_are_counted_and_left_out(tmp_path):
    members = [("a.jpg", PHOTO), ("a.cls", b"3"), ("a.json", b"{}"), ("a.mask.png", mask()), ("README", b"hello")]
    write_tar(tmp_path / "0.tar", members)
    assert scan(tmp_path, SourceOptions()).notes == [("members .cls left out", 1), ("members .json left out", 1)]


def test_keys_that_occur_in_two_tars_are_told_apart(tmp_path):
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, [("a.jpg", PHOTO), ("a.png", mask())])
    assert [s.name for s in scan(tmp_path, SourceOptions()).samples] == ["0/a", "1/a"]


def test_what_does_not_pair_is_a_problem_by_tar_and_key(tmp_path):
    members = [
        *(("good.jpg", PHOTO), ("good.png", mask())),
        *(("bare.jpg", PHOTO), ("bare.cls", b"1")),
        *(("lost.mask.png", mask()), ("lost.txt", b"x")),
        *(("many.jpg", PHOTO), ("many.mask.png", mask()), ("many.seg.png", mask())),
        *(("twice.jpg", PHOTO), ("twice.jpg", PHOTO), ("twice.png", mask())),
        ("v1.2.jpg", PHOTO),
    ]
    write_tar(tmp_path / "0.tar", members)
    found = scan(tmp_path, SourceOptions())
    assert [s.name for s in found.samples] == ["good"]
    problems = {problem.file: problem.reason for problem in found.problems}
    assert problems["0.tar: bare"] == "has no mask; its members: bare.jpg, bare.cls"
    assert problems["0.tar: lost"] == "has no image; its members: lost.mask.png, lost.txt"
    assert problems["0.tar: many"] == "has 2 masks: many.mask.png, many.seg.png"
    assert problems["0.tar: twice"] == "has 2 images: twice.jpg, twice.jpg"
    assert "has no image" in problems["0.tar: v1"]


def test_damaged_tars(tmp_path):
    good = write_tar(tmp_path / "0.tar", [("a.jpg", PHOTO), ("a.png", mask())])
    (tmp_path / "1.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "2.tar").write_bytes(good.read_bytes()[:700])
    found = scan(tmp_path, SourceOptions())
    assert [s.source_path for s in found.samples] == ["0.tar/a.jpg"]
    assert {problem.file.partition(":")[0] for problem in found.problems} == {"1.tar", "2.tar"}
    assert all("--on-bad skip" in problem.remedy for problem in found.problems)


def test_errors_about_masks_name_tar_and_member(tmp_path):
    write_tar(tmp_path / "0.tar", [("a.jpg", PHOTO), ("a.png", mask()), ("b.jpg", PHOTO), ("b.png", b"broken")])
    found = scan(tmp_path, SourceOptions())
    with pytest.raises(BadSampleError, match=r"0\.tar: b\.png: is no image"):
        found.read_mask(found.samples[1].mask)


def test_our_own_shards_are_refused(tmp_path):
    write_tar(tmp_path / "000000.tar", [("a.jpg", PHOTO), ("a.mask.lz4", b"x"), ("a.json", b"{}")])
    with pytest.raises(UserError, match=r"members of a shard folder of unetfast that lost its manifest\.json"):
        scan(tmp_path, SourceOptions())
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is a shard folder already"):
        scan(tmp_path, SourceOptions())


def test_nothing_in_it(tmp_path):
    assert recognize(tmp_path) == ""
    with pytest.raises(UserError, match="no tar files in it; looked for"):
        scan(tmp_path, SourceOptions())
    write_tar(tmp_path / "0.tar", [("a.jpg", PHOTO), ("a.cls", b"1")])
    with pytest.raises(UserError, match="no sample with an image and a mask in 1 tar files") as caught:
        scan(tmp_path, SourceOptions())
    assert "0.tar: a: has no mask" in str(caught.value)


def test_a_tar_made_by_webdataset_itself(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    ids = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"s{number}", "jpg": PHOTO, "seg.png": picture(ids)})
    found = scan(tmp_path, SourceOptions())
    assert [(s.split, s.name) for s in found.samples] == [("train", "s0"), ("train", "s1"), ("train", "s2")]
    np.testing.assert_array_equal(found.read_mask(found.samples[2].mask), ids)


@pytest.mark.parametrize("damage", ["no end", "broken header", "two in one"])
def test_a_tar_that_ends_elsewhere_is_a_problem(tmp_path, damage):
    """Python's tarfile passes over all three in silence, and with them over the samples behind."""
    members = [("a.jpg", PHOTO), ("a.mask.png", mask()), ("b.jpg", PHOTO), ("b.mask.png", mask())]
    path = write_tar(tmp_path / "x.tar", members)
    assert scan(tmp_path, SourceOptions()).problems == []
    with tarfile.open(path) as tar:
        second = tar.getmember("b.jpg").offset
    data = bytearray(path.read_bytes())
    if damage == "no end":
        del data[second:]
    elif damage == "broken header":
        data[second + 150] ^= 1
    else:
        data += bytes(data)
    path.write_bytes(data)
    found = scan(tmp_path, SourceOptions())
    assert [sample.name for sample in found.samples] == (["a", "b"] if damage == "two in one" else ["a"])
    assert [problem.file for problem in found.problems] == ["x.tar"]
    assert "is damaged or cut short behind" in found.problems[0].reason
