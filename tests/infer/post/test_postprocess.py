"""The text of --post: what it means, and each way to get it wrong."""

from __future__ import annotations

import numpy as np
import pytest

from unetfast.errors import UserError
from unetfast.infer.post.crf import CrfOptions, refine
from unetfast.infer.post.process import parse_post
from unetfast.infer.post.regions import fill_holes, remove_islands

NAMES = ["background", "car", "chest of drawers"]


def make_case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    probs_KHW = rng.dirichlet(np.ones(3), (24, 30)).transpose(2, 0, 1).astype(np.float32)
    return rng.integers(0, 256, (24, 30, 3), dtype=np.uint8), probs_KHW


@pytest.mark.parametrize("text", ["", "none", " none "])
def test_nothing_is_asked_for(text: str) -> None:
    assert parse_post(text) is None


def test_steps_are_done_in_their_order() -> None:
    rgb_HWC, probs_KHW = make_case()
    pred_HW = probs_KHW.argmax(axis=0).astype(np.uint8)
    cases = {
        "islands:9": remove_islands(pred_HW, 9),
        "holes:9": fill_holes(pred_HW, 9),
        "holes:9,islands:5": remove_islands(fill_holes(pred_HW, 9), 5),
        "islands:5,holes:9": fill_holes(remove_islands(pred_HW, 5), 9),
        "islands:5:car": remove_islands(pred_HW, 5, [1]),
        "holes:9:2": fill_holes(pred_HW, 9, [2]),
        "holes:9:chest of drawers": fill_holes(pred_HW, 9, [2]),
    }
    for text, expected_HW in cases.items():
        post = parse_post(text, NAMES)
        assert post is not None
        found_HW = post(rgb_HWC, probs_KHW)
        assert found_HW.dtype == np.uint8
        np.testing.assert_array_equal(found_HW, expected_HW, err_msg=text)
    assert not np.array_equal(cases["holes:9,islands:5"], cases["islands:5,holes:9"])


def test_settings_of_the_crf_are_taken() -> None:
    rgb_HWC, probs_KHW = make_case()
    post = parse_post("crf:iterations=2:xy=30:rgb=40:compat=2:smooth_xy=1.5:smooth_compat=0,islands:4", NAMES)
    assert post is not None
    options = CrfOptions(iterations=2, xy=30, rgb=40, compat=2, smooth_xy=1.5, smooth_compat=0)
    assert post.crf == options
    expected_HW = remove_islands(refine(rgb_HWC, probs_KHW, options).argmax(axis=0).astype(np.uint8), 4)
    np.testing.assert_array_equal(post(rgb_HWC, probs_KHW), expected_HW)
    default = parse_post("crf")
    assert default is not None
    assert default.crf == CrfOptions(iterations=5, xy=80, rgb=13, compat=10, smooth_xy=3, smooth_compat=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("blur", "no step is called 'blur'"),
        ("crf,", "no step is called ''"),
        ("islands", "islands wants a number of pixels, such as islands:64"),
        ("islands:many", "islands wants a number of pixels"),
        ("holes:0", "holes wants a number of pixels"),
        ("holes:1:car:2", "holes wants a number of pixels"),
        ("islands:64,crf", "it stands once and first"),
        ("crf,crf", "it stands once and first"),
        ("crf:5", "crf takes no setting '5'"),
        ("crf:sxy=3", "crf takes no setting 'sxy=3'"),
        ("crf:xy=wide", "xy is 'wide', not a number"),
        ("crf:rgb=0", "rgb must be above 0"),
        ("crf:compat=-1", "compat must be 0 or more"),
        ("crf:xy=inf", "xy must be above 0"),
        ("crf:iterations=0", "iterations must be"),
        ("crf:iterations=2.5", "iterations must be a whole number of 1 or more"),
    ],
)
def test_what_cannot_be_understood_is_one_line_with_what_there_is(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_post(text, NAMES)
    message = str(caught.value)
    assert message.startswith(f"--post {text}: ")
    assert said in message
    assert "there are crf" in message
    assert "islands:PIXELS and holes:PIXELS" in message
    assert "\n" not in message


def test_an_unknown_class_is_answered_with_the_classes() -> None:
    with pytest.raises(UserError, match=r"no class is called 'lorry'; the classes are background, car, chest of drawers"):
        parse_post("islands:64:lorry", NAMES)
    with pytest.raises(UserError, match="no class is called '3'"):
        parse_post("islands:64:3", NAMES)


def test_a_kernel_too_narrow_for_the_picture_names_the_setting() -> None:
    rgb_HWC, probs_KHW = make_case()
    post = parse_post("crf:xy=0.001:rgb=0.001")
    assert post is not None
    with pytest.raises(UserError, match=r"--post crf:xy=0\.001:rgb=0\.001: the Gaussian is too narrow"):
        post(rgb_HWC, probs_KHW)
