"""Pictures of what a model predicts: rows of image, truth, prediction and error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from unetfast.viz.legend import font_size_for
from unetfast.viz.lettering import fit_text, letter
from unetfast.viz.overlay import add_legend
from unetfast.viz.palette import IGNORED, INK, PAPER, WRONG, colorize

MIN_TILE_PX = 200  # smaller pictures are enlarged by a whole factor, without smoothing
MAX_TILE_PX = 640  # larger ones are reduced
_RIM = (190, 190, 196)  # around each picture: a white mask on white paper would not show
TITLES = ("image", "truth", "prediction", "error")


@dataclass(frozen=True, slots=True)
class Panel:
    """One row: an image, its true mask and the predicted one, all of one size.

    Args:
        image_HWC: RGB, uint8, (H, W, 3).
        mask_HW: true class ids in [0, K) or the ignore index, (H, W).
        pred_HW: predicted class ids in [0, K), (H, W).
        title: the sample's name, fit for a file name; may be empty.
        caption: written above the row; empty takes the title.
    """

    image_HWC: np.ndarray
    mask_HW: np.ndarray
    pred_HW: np.ndarray
    title: str = ""
    caption: str = ""


def draw_panels(panels: Sequence[Panel], palette_K3: np.ndarray, class_names: Sequence[str], ignore_index: int) -> Image.Image:
    """Draw one row a panel, and below them a legend of all classes that occur in truth or prediction.

    The error tile shows the image dimmed and grey, wrong pixels in yellow, ignored ones in flat grey, and gives the
    share of wrong pixels among the valid ones.

    Args:
        panels: at least one.
        palette_K3: display colours, uint8, (K, 3).
        class_names: K names.
        ignore_index: id of ignored pixels.

    Raises:
        ValueError: there is no panel, or sizes in a panel differ.
    """
    if not panels:
        raise ValueError("no panel to draw")
    rows = [_draw_row(panel, palette_K3, ignore_index, first=place == 0) for place, panel in enumerate(panels)]
    page = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        page.paste(row, (0, top))
        top += row.height
    masks = [mask for panel in panels for mask in (panel.mask_HW, panel.pred_HW)]
    return add_legend(page, masks, palette_K3, class_names, ignore_index, extra=[("(wrong)", WRONG)])


def draw_error(image_HWC: np.ndarray, mask_HW: np.ndarray, pred_HW: np.ndarray, ignore_index: int) -> np.ndarray:
    """Show where a prediction is wrong, on the dimmed grey image.

    Returns:
        RGB, uint8, (H, W, 3): wrong pixels `WRONG`, ignored ones `IGNORED`.
    """
    grey = image_HWC.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 luma
    error_HWC = np.repeat((grey * 0.5)[..., None], 3, axis=2).astype(np.uint8)
    valid = mask_HW != ignore_index
    error_HWC[valid & (mask_HW != pred_HW)] = WRONG
    error_HWC[~valid] = IGNORED
    return error_HWC


def _draw_row(panel: Panel, palette_K3: np.ndarray, ignore_index: int, *, first: bool) -> Image.Image:
    if not panel.image_HWC.shape[:2] == panel.mask_HW.shape == panel.pred_HW.shape:
        raise ValueError(f"image {panel.image_HWC.shape}, mask {panel.mask_HW.shape}, pred {panel.pred_HW.shape}: sizes differ")
    valid = panel.mask_HW != ignore_index
    wrong = int((valid & (panel.mask_HW != panel.pred_HW)).sum())
    share = f"{100 * wrong / valid.sum():.1f} % wrong" if valid.any() else "no valid pixel"
    pictures = [
        panel.image_HWC,
        colorize(panel.mask_HW, palette_K3, ignore_index),
        colorize(panel.pred_HW, palette_K3, ignore_index),
        draw_error(panel.image_HWC, panel.mask_HW, panel.pred_HW, ignore_index),
    ]
    tiles = [_scale_tile(Image.fromarray(picture), smooth=place == 0) for place, picture in enumerate(pictures)]
    width, height = tiles[0].size
    gap = max(4, width // 40)
    font_px = font_size_for(4 * width)
    line = round(1.6 * font_px)
    top = (1 + first) * line
    row = Image.new("RGB", (4 * width + 5 * gap, top + height + gap), PAPER)
    pen = ImageDraw.Draw(row)

    def write(text: str, left: int, middle: float, room: int) -> None:
        text, font = letter(text, font_px)
        pen.text((left, middle), fit_text(text, font, room), fill=INK, font=font, anchor="lm")

    if caption := panel.caption or panel.title:
        write(caption, gap, top - line / 2, 3 * width + 2 * gap)
    write(share, gap + 3 * (width + gap), top - line / 2, width)
    for place, (tile, title) in enumerate(zip(tiles, TITLES, strict=True)):
        left = gap + place * (width + gap)
        if first:
            write(title, left, line / 2, width)
        pen.rectangle((left - 1, top - 1, left + width, top + height), outline=_RIM)
        row.paste(tile, (left, top))
    return row


def _scale_tile(picture: Image.Image, *, smooth: bool) -> Image.Image:
    longest = max(picture.size)
    if longest < MIN_TILE_PX:
        factor: float = -(-MIN_TILE_PX // longest)
    else:
        factor = min(1.0, MAX_TILE_PX / longest)
    if factor == 1:
        return picture
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    reduce = smooth and factor < 1
    return picture.resize(size, Image.Resampling.BOX if reduce else Image.Resampling.NEAREST)
