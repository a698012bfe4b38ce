"""A contact sheet: some samples, each as it is and with its mask laid over, one legend for all, and figures below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from unetfast.viz.lettering import fit_text, letter
from unetfast.viz.overlay import add_legend, overlay
from unetfast.viz.palette import INK, PAPER, visible_palette

_GAP_PX = 8
_FONT_PX = 13
_LEGEND_PX = 16
_HEADING_PX = 20
_MAX_ASPECT = 1.5  # height of a picture to the width of its place; taller ones are shown narrower


@dataclass(frozen=True, slots=True)
class SheetTile:
    """One sample of a sheet.

    Args:
        image_HWC: RGB, uint8, (H, W, 3).
        mask_HW: class ids in [0, K) or the ignore index, (H, W).
        caption: shown below it.
    """

    image_HWC: np.ndarray
    mask_HW: np.ndarray
    caption: str


def draw_sheet(
    tiles: Sequence[SheetTile],
    palette_K3: np.ndarray,
    class_names: Sequence[str],
    ignore_index: int,
    *,
    columns: int = 2,
    tile_width_px: int = 360,
) -> Image.Image:
    """Draw a contact sheet.

    Each sample takes two pictures beside each other, the image and the image under its mask, both scaled to the place's width
    (the image smoothly, the mask by nearest pixel, so that no class is invented).

    Args:
        tiles: the samples; at least one.
        palette_K3: display colours, uint8, (K, 3).
        class_names: K names.
        ignore_index: id of ignored pixels.
        columns: samples in a row of the sheet.
        tile_width_px: width of one picture.

    Raises:
        ValueError: there are no tiles, or an image and its mask differ in size.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one sample")
    columns = min(columns, len(tiles))
    drawn = [_draw_tile(tile, palette_K3, ignore_index, tile_width_px) for tile in tiles]
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    width = columns * (drawn[0].width + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", (width, sum(max(tile.height for tile in row) + _GAP_PX for row in rows) + _GAP_PX), PAPER)
    top = _GAP_PX
    for row in rows:
        for place, tile in enumerate(row):
            sheet.paste(tile, (_GAP_PX + place * (tile.width + _GAP_PX), top))
        top += max(tile.height for tile in row) + _GAP_PX
    masks = [tile.mask_HW for tile in tiles]
    return add_legend(sheet, masks, visible_palette(palette_K3), class_names, ignore_index, font_px=_LEGEND_PX)


def draw_page(heading: str, sheet: Image.Image, figures: Sequence[Image.Image]) -> Image.Image:
    """Put a heading above a contact sheet, and figures below it, side by side.

    Args:
        heading: one line.
        sheet: as `draw_sheet` draws it.
        figures: any; the page is as wide as the sheet or as all of them together.
    """
    top = round(2.2 * _HEADING_PX)
    width = max(sheet.width, sum(figure.width for figure in figures))
    below = max((figure.height for figure in figures), default=0)
    page = Image.new("RGB", (width, top + sheet.height + below), PAPER)
    text, font = letter(heading, _HEADING_PX)
    place = (_GAP_PX, top / 2)
    ImageDraw.Draw(page).text(place, fit_text(text, font, width - 2 * _GAP_PX), fill=INK, font=font, anchor="lm")
    page.paste(sheet, (0, top))
    left = 0
    for figure in figures:
        page.paste(figure, (left, top + sheet.height))
        left += figure.width
    return page


def _draw_tile(tile: SheetTile, palette_K3: np.ndarray, ignore_index: int, width_px: int) -> Image.Image:
    if tile.image_HWC.shape[:2] != tile.mask_HW.shape:
        raise ValueError(f"{tile.caption}: image is {tile.image_HWC.shape}, mask is {tile.mask_HW.shape}")
    height, width = tile.mask_HW.shape
    scale = min(width_px / width, _MAX_ASPECT * width_px / height)
    shown_hw = max(1, round(scale * height)), max(1, round(scale * width))
    image = Image.fromarray(tile.image_HWC).resize((shown_hw[1], shown_hw[0]), Image.Resampling.BILINEAR)
    rows, places = (
        (2 * np.arange(shown) + 1) * side // (2 * shown) for shown, side in zip(shown_hw, (height, width), strict=True)
    )
    masked = overlay(np.asarray(image), tile.mask_HW[rows[:, None], places], palette_K3, ignore_index)
    line_px = _FONT_PX + 6
    page = Image.new("RGB", (2 * width_px + 2, shown_hw[0] + line_px), PAPER)
    page.paste(image, (0, 0))
    page.paste(Image.fromarray(masked), (width_px + 2, 0))
    text, font = letter(tile.caption, _FONT_PX)
    middle = shown_hw[0] + line_px / 2
    ImageDraw.Draw(page).text((0, middle), fit_text(text, font, 2 * width_px), fill=INK, font=font, anchor="lm")
    return page
