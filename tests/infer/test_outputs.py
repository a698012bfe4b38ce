"""Result files, read back by Pillow and numpy as a stranger would."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetfast.data.labels import ClassInfo, LabelTable, MaskValue
from unetfast.errors import UserError
from unetfast.infer.outputs import (
    MAX_OVERLAY_SIDE_PX,
    ProbsWriter,
    choose_mask_format,
    class_file_names,
    encode_overlay,
    open_whole,
    write_class_masks,
    write_file,
)
from unetfast.infer.prediction import Prediction

COLORS = [(0, 0, 0), (250, 10, 20), (0, 200, 90)]
PRED_HW = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.uint8)


def labels_with(values: list[MaskValue]) -> LabelTable:
    infos = [ClassInfo(name=f"class {place}", color=COLORS[place % 3], value=value) for place, value in enumerate(values)]
    return LabelTable(classes=tuple(infos))


def test_small_values_become_a_palette_png_of_values_and_colors() -> None:
    mask_format = choose_mask_format(labels_with([0, 255, 7]))
    picture = Image.open(io.BytesIO(mask_format.encode(PRED_HW)))
    assert mask_format.suffix == ".png"
    assert picture.mode == "P"
    np.testing.assert_array_equal(np.asarray(picture), [[0, 255, 7], [7, 255, 0]])
    np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), np.array(COLORS, dtype=np.uint8)[PRED_HW])


def test_rgb_masks_stay_rgb_in_their_own_colors() -> None:
    values: list[MaskValue] = [(1, 2, 3), (255, 0, 128), (9, 9, 9)]
    picture = Image.open(io.BytesIO(choose_mask_format(labels_with(values)).encode(PRED_HW)))
    assert picture.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(picture), np.array(values, dtype=np.uint8)[PRED_HW])


def test_values_past_a_byte_become_16_bits() -> None:
    picture = Image.open(io.BytesIO(choose_mask_format(labels_with([0, 2978, 65535])).encode(PRED_HW)))
    assert picture.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(picture), np.array([0, 2978, 65535])[PRED_HW])


@pytest.mark.parametrize("odd", [-1, 65536])
def test_values_that_fit_no_png_become_npy(odd: int) -> None:
    mask_format = choose_mask_format(labels_with([odd, 1, 2]))
    assert mask_format.suffix == ".npy"
    values_HW = np.load(io.BytesIO(mask_format.encode(PRED_HW)), allow_pickle=False)
    assert values_HW.dtype == np.int32
    np.testing.assert_array_equal(values_HW, np.array([odd, 1, 2])[PRED_HW])


def test_numbers_beside_colors_are_refused() -> None:
    with pytest.raises(UserError, match="some classes by a number and others by a colour"):
        choose_mask_format(labels_with([0, (1, 2, 3)]))


def test_class_files_sort_by_id_and_suit_every_file_system() -> None:
    infos = [ClassInfo(name=f"c/{place}: é", color=(0, 0, 0), value=place) for place in range(12)]
    names = class_file_names(LabelTable(classes=tuple(infos)))
    assert names == sorted(names)
    assert names[3] == "03_c-3.png"


def test_class_masks_are_0_and_255_and_stale_ones_go(tmp_path: Path) -> None:
    labels = labels_with([0, 1, 2])
    write_class_masks(tmp_path / "a_classes", Prediction.of(PRED_HW), labels)
    for class_id in range(3):
        with Image.open(tmp_path / "a_classes" / f"{class_id}_class-{class_id}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), 255 * (class_id == PRED_HW))
    (tmp_path / "a_classes" / "mine.png").write_bytes(b"keep")
    write_class_masks(tmp_path / "a_classes", Prediction.of(np.zeros_like(PRED_HW)), labels)
    assert sorted(path.name for path in (tmp_path / "a_classes").iterdir()) == ["0_class-0.png", "mine.png"]


def test_overlay_is_a_jpeg_with_legend_below() -> None:
    image_HWC = np.full((160, 240, 3), 200, dtype=np.uint8)
    picture = Image.open(
        io.BytesIO(encode_overlay(image_HWC, Prediction.of(np.ones((160, 240), np.uint8)), labels_with([0, 1])))
    )
    assert picture.format == "JPEG"
    assert picture.width == 240
    assert picture.height > 160


def test_overlay_of_a_giant_strip_is_thinned() -> None:
    width = MAX_OVERLAY_SIDE_PX * 2 + 10
    picture = Image.open(
        io.BytesIO(
            encode_overlay(
                np.zeros((6, width, 3), np.uint8), Prediction.of(np.zeros((6, width), np.uint8)), labels_with([0, 1])
            )
        )
    )
    assert picture.width == -(-width // 3)


def test_probs_written_in_stripes_are_one_array() -> None:
    probs_KHW = np.random.default_rng(0).random((5, 11, 7)).astype(np.float16)
    file = io.BytesIO()
    writer = ProbsWriter(file, (5, 11, 7))
    for top in range(0, 11, 4):
        writer.write_block(top, 0, probs_KHW[:, top : top + 4])
    file.seek(0)
    np.testing.assert_array_equal(np.load(file, allow_pickle=False), probs_KHW)


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    def fail_half_way() -> None:
        with open_whole(tmp_path / "a.npy") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_half_way()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"a file, no folder")
    with pytest.raises(UserError, match=r"out/a\.png: cannot be written .*take another --out"):
        write_file(tmp_path / "out" / "a.png", b"")
