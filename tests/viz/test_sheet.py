"""The contact sheet shows each sample twice, with one legend."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unetfast.viz.sheet import SheetTile, draw_page, draw_sheet

PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
NAMES = ["ground", "roof", "pond"]


def make_tile(height: int, width: int, class_id: int = 1) -> SheetTile:
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2] = class_id
    return SheetTile(np.full((height, width, 3), 200, np.uint8), mask, "train 0 · images/a_very_long_name.jpg · 20x10")


def test_image_stands_left_of_its_overlay() -> None:
    sheet = np.array(draw_sheet([make_tile(50, 100)], PALETTE, NAMES, 255, tile_width_px=200))
    left, right = sheet[8 + 20, 8 + 100], sheet[8 + 20, 8 + 202 + 100]
    assert left.tolist() == [200, 200, 200]
    assert right[0] > right[1] + 50  # tinted red


def test_sizes_follow_the_samples() -> None:
    tiles = [make_tile(40, 80), make_tile(300, 30), make_tile(1, 1), make_tile(500, 700), make_tile(64, 64)]
    sheet = draw_sheet(tiles, PALETTE, NAMES, 255, columns=2, tile_width_px=120)
    assert sheet.width == 2 * (2 * 120 + 2 + 8) + 8
    one = draw_sheet(tiles[:1], PALETTE, NAMES, 255, columns=2, tile_width_px=120)
    assert one.width == 2 * 120 + 2 + 16
    tall = draw_sheet([make_tile(3000, 10)], PALETTE, NAMES, 255, tile_width_px=120)
    assert tall.height < 2 * 180 + 100


def test_legend_names_the_classes_that_occur_and_ignored_pixels() -> None:
    tile = make_tile(60, 90, class_id=2)
    plain = draw_sheet([tile], PALETTE, NAMES, 255)
    colors = {color for _, color in plain.getcolors(1 << 24) or []}
    assert (0, 0, 255) in colors
    assert (255, 0, 0) not in colors
    tile.mask_HW[0, 0] = 255
    assert draw_sheet([tile], PALETTE, NAMES, 255).height >= plain.height


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        draw_sheet([], PALETTE, NAMES, 255)
    tile = make_tile(10, 10)
    with pytest.raises(ValueError, match="mask is"):
        draw_sheet([SheetTile(tile.image_HWC, tile.mask_HW[:5], "a")], PALETTE, NAMES, 255)


def test_a_page_has_all_its_parts_whole() -> None:
    sheet, left, right = (
        Image.new("RGB", size, color) for size, color in (((300, 50), "red"), ((150, 40), "lime"), ((170, 90), "blue"))
    )
    page = draw_page("toy: 3 train, 1 val", sheet, [left, right])
    assert page.width == 320
    colors = {color: count for count, color in page.getcolors(1 << 20) or []}
    assert colors[255, 0, 0] == 300 * 50
    assert colors[0, 255, 0] == 150 * 40
    assert colors[0, 0, 255] == 170 * 90
    assert (np.asarray(page)[:40] < 100).any()  # the heading's letters
    assert draw_page("alone", sheet, []).width == 300


def test_a_caption_in_any_script_is_drawn() -> None:
    tile = SheetTile(np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8), "train 0 · \u732b.jpg")
    spelled = SheetTile(tile.image_HWC, tile.mask_HW, "train 0 · <732B>.jpg")
    assert draw_sheet([tile], PALETTE, NAMES, 255).size == draw_sheet([spelled], PALETTE, NAMES, 255).size
