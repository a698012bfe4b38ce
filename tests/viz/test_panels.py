"""Panels: four tiles a row, the share of wrong pixels, one legend."""

from __future__ import annotations

import numpy as np
import pytest

from unetfast.viz.palette import IGNORED, WRONG
from unetfast.viz.panels import Panel, draw_error, draw_panels


def make_panel(height: int, width: int, num_classes: int = 2, seed: int = 0) -> Panel:
    rng = np.random.default_rng(seed)
    image_HWC = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask_HW = rng.integers(0, num_classes, (height, width)).astype(np.uint8)
    pred_HW = rng.integers(0, num_classes, (height, width)).astype(np.int64)
    mask_HW[0] = 255
    return Panel(image_HWC, mask_HW, pred_HW, title="video_0000/image_0")


def palette_of(num_classes: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 200, (num_classes, 3)).astype(np.uint8)


def test_error_marks_exactly_the_wrong_valid_pixels() -> None:
    panel = make_panel(12, 9)
    error_HWC = draw_error(panel.image_HWC, panel.mask_HW, panel.pred_HW, 255)
    valid = panel.mask_HW != 255
    wrong = valid & (panel.mask_HW != panel.pred_HW)
    np.testing.assert_array_equal((error_HWC == WRONG).all(axis=2), wrong)
    assert (error_HWC[~valid] == IGNORED).all()
    right = error_HWC[valid & ~wrong]
    assert (right.max(axis=1) == right.min(axis=1)).all(), "right pixels are grey"
    assert right.max() <= 128, "and dim"


@pytest.mark.parametrize(("height", "width"), [(160, 240), (16, 16), (1280, 1918), (40, 2000), (1, 1)])
def test_any_size_gives_a_page_of_readable_tiles(height: int, width: int) -> None:
    page = draw_panels([make_panel(height, width)], palette_of(2), ["background", "car"], 255)
    longest_tile = (page.width - 5 * 4) / 4
    assert 150 <= max(longest_tile, page.height) <= 2000
    assert page.width <= 4 * 640 + 5 * 16


@pytest.mark.parametrize("num_classes", [2, 49, 150])
def test_rows_stand_below_each_other_with_one_legend(num_classes: int) -> None:
    names = [f"class number {place}" for place in range(num_classes)]
    panels = [make_panel(160, 240, num_classes, seed) for seed in range(3)]
    one = draw_panels(panels[:1], palette_of(num_classes), names, 255)
    three = draw_panels(panels, palette_of(num_classes), names, 255)
    assert three.width == one.width
    assert three.height > one.height + 2 * 160
    # nothing runs into the right and lower edges
    pixels = np.asarray(three)
    assert (pixels[:, -2:] == 255).all()
    assert (pixels[-2:] == 255).all()


def test_truth_and_prediction_are_drawn_in_the_palette() -> None:
    mask_HW = np.zeros((200, 200), dtype=np.uint8)
    pred_HW = np.ones((200, 200), dtype=np.uint8)
    palette = np.array([(10, 20, 30), (200, 100, 50)], dtype=np.uint8)
    page = np.asarray(draw_panels([Panel(np.zeros((200, 200, 3), np.uint8), mask_HW, pred_HW)], palette, ["a", "b"], 255))
    tile = 200 + 5
    for place, color in ((0, (0, 0, 0)), (1, palette[0]), (2, palette[1]), (3, WRONG)):
        np.testing.assert_array_equal(page[120, 5 + place * tile + 100], color)


def test_all_ignored_is_no_division_by_zero() -> None:
    panel = make_panel(160, 240)
    panel.mask_HW[:] = 255
    page = np.asarray(draw_panels([panel], palette_of(2), ["background", "car"], 255))
    error_tile = page[80:180, 5 + 3 * (240 + 5) : 5 + 3 * (240 + 5) + 230]
    assert not (error_tile == np.array(WRONG)).all(axis=-1).any()


def test_messages() -> None:
    with pytest.raises(ValueError, match="no panel"):
        draw_panels([], palette_of(2), ["a", "b"], 255)
    panel = make_panel(8, 8)
    with pytest.raises(ValueError, match="sizes differ"):
        draw_panels([Panel(panel.image_HWC, panel.mask_HW, panel.pred_HW[1:])], palette_of(2), ["a", "b"], 255)
