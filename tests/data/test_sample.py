"""The proof of a mask: sizes, dtype and ids; and keys."""

from __future__ import annotations

import numpy as np
import pytest
from plain_source import make_labels

from unetfast.data.sample import MAX_KEY_LENGTH, check_mask, escape_key, shorten
from unetfast.errors import BadSampleError


def test_a_sound_mask_is_counted() -> None:
    mask = np.array([[0, 1, 1], [2, 255, 0]], np.uint8)
    counts = check_mask(mask, make_labels(3), image_hw=(2, 3), file="m.png")
    assert counts.dtype == np.int64
    assert counts.tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("mask", "ignore", "message"),
    [
        (np.zeros((3, 2), np.uint8), True, r"m\.png: mask is 2x3, its image is 3x2 \(width x height\)\n  give the mask"),
        (np.zeros((2, 3), np.uint16), True, r"m\.png: mask is uint16 of shape \(2, 3\)"),
        (
            np.array([[0, 1, 2], [3, 4, 77]], np.uint8),
            True,
            r"class ids 3, 4, 77 are not among the 3 classes 0\.\.2\n  map them",
        ),
        (np.array([[0, 1, 2], [0, 1, 255]], np.uint8), False, r"class ids 255 are not among the 3 classes"),
    ],
)
def test_an_unsound_mask_is_refused(mask: np.ndarray, ignore: bool, message: str) -> None:
    with pytest.raises(BadSampleError, match=message):
        check_mask(mask, make_labels(3, ignore=ignore), image_hw=(2, 3), file="m.png")


def test_keys() -> None:
    assert escape_key("cars/a.b") == "cars=2Fa=2Eb"
    assert escape_key("A-z_09") == "A-z_09"
    assert escape_key("x\udcff é\n") == "x=FF=20=C3=A9=0A"
    assert escape_key("=2E") == "=3D2E"  # one to one: an escape in a name is escaped itself


def test_long_keys_keep_their_head_and_differ() -> None:
    whole, longer = "a" * MAX_KEY_LENGTH, "a" * (MAX_KEY_LENGTH + 1)
    assert escape_key(whole) == whole
    keys = {escape_key(longer), escape_key(longer + "a"), escape_key("." * 27)}
    assert len(keys) == 3
    assert all(len(key) == MAX_KEY_LENGTH and key[-18:-16] == "=h" for key in keys)


def test_lists_are_shortened() -> None:
    assert shorten([1, 2]) == "1, 2"
    assert shorten(list(range(14))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ... (14 values)"
