"""Overlays: what is painted, what is not, and where the legend stands."""

from __future__ import annotations

import numpy as np
import pytest

from unetfast.viz.lettering import fit_text, load_font
from unetfast.viz.overlay import border_of, draw_overlay, overlay
from unetfast.viz.palette import ACCENTS, IGNORED, classes_in, colorize, visible_palette

PALETTE = np.array([(0, 0, 0), (200, 0, 0), (0, 100, 250)], dtype=np.uint8)
NAMES = ["background", "red thing", "blue thing"]


def test_colorize_looks_up_colors_and_greys_ignored_pixels() -> None:
    mask_HW = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    expected = [[PALETTE[0], PALETTE[1]], [PALETTE[2], IGNORED]]
    np.testing.assert_array_equal(colorize(mask_HW, PALETTE, 255), expected)
    np.testing.assert_array_equal(colorize(mask_HW.astype(np.int64), PALETTE, 255), expected)


@pytest.mark.parametrize("bad", [3, 254])
def test_colorize_refuses_ids_without_color(bad: int) -> None:
    with pytest.raises(ValueError, match="do not all have a colour"):
        colorize(np.array([[bad]], dtype=np.uint8), PALETTE, 255)


def test_colorize_takes_uint16_masks() -> None:
    palette = np.arange(300 * 3).reshape(300, 3).astype(np.uint8)
    mask_HW = np.array([[299, 65535]], dtype=np.uint16)
    np.testing.assert_array_equal(colorize(mask_HW, palette, 65535)[0], [palette[299], IGNORED])


def test_overlay_leaves_black_classes_and_ignored_pixels_as_they_are() -> None:
    image_HWC = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask_HW = np.zeros((20, 30), dtype=np.uint8)
    mask_HW[5:15, 5:15] = 1
    mask_HW[:, 25:] = 255
    result = overlay(image_HWC, mask_HW, PALETTE, 255)
    untouched = (mask_HW == 255) | ((mask_HW == 0) & ~border_of(mask_HW))
    np.testing.assert_array_equal(result[untouched], image_HWC[untouched])


def test_overlay_tints_the_inside_and_paints_the_border() -> None:
    image_HWC = np.full((20, 20, 3), 100, dtype=np.uint8)
    mask_HW = np.zeros((20, 20), dtype=np.uint8)
    mask_HW[5:15, 5:15] = 1
    result = overlay(image_HWC, mask_HW, PALETTE, 255, alpha=0.25)
    np.testing.assert_array_equal(result[10, 10], [125, 75, 75])  # 0.75 * 100 + 0.25 * (200, 0, 0)
    np.testing.assert_array_equal(result[5, 10], PALETTE[1])
    np.testing.assert_array_equal(result[4, 10], [0, 0, 0], "the outline on the black class's side")
    np.testing.assert_array_equal(result[3, 10], [100, 100, 100])


def test_a_white_class_is_tinted_in_the_accent_in_picture_and_legend() -> None:
    palette = np.array([(0, 0, 0), (255, 255, 255)], dtype=np.uint8)
    image_HWC = np.full((60, 240, 3), 200, dtype=np.uint8)
    mask_HW = np.zeros((60, 240), dtype=np.uint8)
    mask_HW[10:50, 10:50] = 1
    page = np.asarray(draw_overlay(image_HWC, mask_HW, palette, ["background", "car"], 255))
    np.testing.assert_array_equal(page[10, 30], ACCENTS[0])
    assert (page[60:] == ACCENTS[0]).all(axis=2).any()
    np.testing.assert_array_equal(palette[1], [255, 255, 255], "the caller's palette stays")


def test_visible_colors_stay_apart_and_others_stay() -> None:
    palette = np.array([(0, 0, 0), (255, 255, 255), (255, 82, 0), (240, 240, 250), (120, 120, 120)], dtype=np.uint8)
    shown = visible_palette(palette)
    np.testing.assert_array_equal(shown[[0, 2, 4]], palette[[0, 2, 4]])
    np.testing.assert_array_equal(shown[[1, 3]], ACCENTS[1:3], "the first accent is too like class 2")


def test_border_stands_on_both_sides() -> None:
    mask_HW = np.array([[0, 0, 1, 1]], dtype=np.uint8)
    np.testing.assert_array_equal(border_of(mask_HW), [[False, True, True, False]])
    assert not border_of(np.ones((1, 1), dtype=np.uint8)).any()


def test_overlay_refuses_other_sizes() -> None:
    with pytest.raises(ValueError, match="mask is"):
        overlay(np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4), np.uint8), PALETTE, 255)


def test_drawn_overlay_is_the_overlay_with_a_legend_below() -> None:
    image_HWC = np.full((160, 240, 3), 90, dtype=np.uint8)
    mask_HW = np.zeros((160, 240), dtype=np.uint8)
    mask_HW[40:80, 40:80] = 2
    page = np.asarray(draw_overlay(image_HWC, mask_HW, PALETTE, NAMES, 255))
    np.testing.assert_array_equal(page[:160, :240], overlay(image_HWC, mask_HW, PALETTE, 255))
    legend = page[160:].reshape(-1, 3).tolist()
    assert list(PALETTE[2]) in legend
    assert list(PALETTE[1]) not in legend, "only classes that occur have an entry"


def test_tiny_picture_gets_paper_for_its_legend() -> None:
    page = draw_overlay(np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.uint8), PALETTE, NAMES, 255)
    assert page.width > 60, "the name must fit"


def test_classes_in_lists_real_classes_once() -> None:
    masks = [np.array([[2, 255]]), np.array([[0, 2]])]
    assert classes_in(*masks, num_classes=3) == [0, 2]


def test_fit_text_shortens_to_the_width() -> None:
    font = load_font(12)
    assert fit_text("car", font, 100) == "car"
    assert fit_text("two\nlines", font, 200) == "two lines"
    short = fit_text("a very long class name that does not fit", font, 80)
    assert short.endswith("…")
    assert font.getlength(short) <= 80
