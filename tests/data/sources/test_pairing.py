"""Which mask belongs to which image: whole names, known endings, never a guess."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetfast.data.sources.listing import FoundFile
from unetfast.data.sources.pairing import pair_folders, pair_lone_folder


def files(*names):
    return [FoundFile(name, f"/data/{name}", 1) for name in names]


def pair(images, masks, suffix=None):
    result = pair_folders(files(*images), files(*masks), image_prefix="images/", mask_prefix="masks/", mask_suffix=suffix)
    pairs = {image.relative: mask.relative for image, mask in result.pairs}
    return pairs, {problem.file: problem.reason for problem in result.problems}


@pytest.mark.parametrize("tail", ["", "_mask", "_manual1", "_label", "_seg", "_gt", "_segmentation", "-mask"])
def test_usual_endings(tail):
    assert pair(["a.jpg", "b.JPG"], [f"a{tail}.png", f"b{tail}.PNG"]) == (
        {"a.jpg": f"a{tail}.png", "b.JPG": f"b{tail}.PNG"},
        {},
    )


def test_images_may_have_an_ending():
    assert pair(["21_training.tif"], ["21_manual1.gif"]) == ({"21_training.tif": "21_manual1.gif"}, {})


def test_stems_that_are_prefixes_of_others():
    images = ["car_1.jpg", "car_10.jpg", "car_1_b.jpg", "car.jpg"]
    masks = ["car_1.png", "car_10.png", "car_1_b.png", "car.png"]
    pairs, problems = pair(images, masks)
    assert pairs == dict(zip(images, masks, strict=True))
    assert problems == {}


def test_stems_with_dots_and_folders():
    images = ["v1.2/a.b.jpg", "v1.2/a.jpg", "v2/a.jpg"]
    masks = ["v1.2/a.b.png", "v1.2/a.png", "v2/a.png"]
    assert pair(images, masks)[0] == dict(zip(images, masks, strict=True))


def test_masks_named_by_the_whole_file():
    assert pair(["a.jpg"], ["a.jpg.png"])[0] == {"a.jpg": "a.jpg.png"}


def test_own_suffix():
    pairs, problems = pair(["a.jpg", "b.jpg"], ["a_left.png", "a_right.png", "b_left.png"], suffix="_left")
    assert pairs == {"a.jpg": "a_left.png", "b.jpg": "b_left.png"}
    assert problems == {}


def test_two_masks_for_one_image():
    for masks in (["a.png", "a_mask.png"], ["a.png", "a.npy"], ["a_mask.png", "a_mask.gif"]):
        pairs, problems = pair(["a.jpg"], masks)
        assert pairs == {}
        assert problems == {"images/a.jpg": f"has 2 masks: masks/{masks[0]}, masks/{masks[1]}"}


def test_image_without_mask_and_mask_without_image():
    pairs, problems = pair(["a.jpg", "b.jpg"], ["a.png", "c_mask.png"])
    assert pairs == {"a.jpg": "a.png"}
    assert "has no mask; there is no masks/b.*" in problems["images/b.jpg"]
    assert problems["masks/c_mask.png"] == "is a mask without an image of its name"


def test_same_stem_twice():
    pairs, problems = pair(["a.jpg", "a.png"], ["a.png"])
    assert pairs == {}
    assert problems["images/a.jpg"] == "has the same name as images/a.png"
    assert problems["images/a.png"] == "has the same name as images/a.jpg"
    assert problems.keys() == {"images/a.jpg", "images/a.png"}  # their mask is none without an image


def test_one_mask_wanted_by_two():
    pairs, problems = pair(["a_rgb.jpg", "a_img.jpg"], ["a.png"])
    assert len(pairs) == 1
    assert "wants the mask of images/" in problems["images/a_img.jpg"]


def lone(*names, suffix=None):
    result = pair_lone_folder(files(*names), prefix="", mask_suffix=suffix)
    return {image.relative: mask.relative for image, mask in result.pairs}, [problem.file for problem in result.problems]


def test_lone_folder():
    assert lone("a.png", "a_mask.png", "b.png", "b_mask.png") == ({"a.png": "a_mask.png", "b.png": "b_mask.png"}, [])
    assert lone("a.jpg", "a.png", "b.jpg", "b.png") == ({"a.jpg": "a.png", "b.jpg": "b.png"}, [])
    assert lone("a.png", "a.npy") == ({"a.png": "a.npy"}, [])
    assert lone("a.png", "a_x.png", suffix="_x") == ({"a.png": "a_x.png"}, [])
    assert lone("a.png", "b.png") == ({}, [])
    assert lone("a.png", "a_mask.png", "b.png", "c_mask.png")[1] == ["b.png", "c_mask.png"]


@given(
    st.sets(st.text("ab_1.m", min_size=1, max_size=6).filter(lambda s: s.strip(".") == s), max_size=8),
    st.sampled_from(["", "_mask"]),
)
def test_every_file_is_in_a_pair_or_a_problem(stems, tail):
    images = [f"{stem}.jpg" for stem in sorted(stems)]
    masks = [f"{stem}{tail}.png" for stem in sorted(stems)]
    pairs, problems = pair(images, masks)
    for image in images:
        assert (image in pairs) != (f"images/{image}" in problems)
    assert len(set(pairs.values())) == len(pairs)
