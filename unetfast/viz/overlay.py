"""A mask laid over its image: tinted classes, solid borders, and a legend below."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from unetfast.viz.legend import draw_legend, font_size_for, min_legend_width
from unetfast.viz.palette import IGNORED, PAPER, classes_in, colorize, visible_palette


def overlay(
    image_HWC: np.ndarray, mask_HW: np.ndarray, palette_K3: np.ndarray, ignore_index: int, *, alpha: float = 0.5
) -> np.ndarray:
    """Tint an image by class and draw the borders between classes in full colour.

    A class whose display colour is black (the usual background) is left unpainted, so the image stays readable there; so
    are ignored pixels. A colour near white, which would look like light, is replaced as `visible_palette` says. Each side of
    a border has its own class's colour, also black.

    Args:
        image_HWC: RGB, uint8, (H, W, 3).
        mask_HW: class ids in [0, K) or `ignore_index`, (H, W).
        palette_K3: display colours, uint8, (K, 3).
        ignore_index: id of ignored pixels.
        alpha: share of the class colour in a tinted pixel, 0..1.

    Returns:
        RGB, uint8, (H, W, 3).

    Raises:
        ValueError: image and mask differ in size, or an id has no colour.
    """
    if image_HWC.shape[:2] != mask_HW.shape:
        raise ValueError(f"image is {image_HWC.shape}, mask is {mask_HW.shape}")
    color_HWC = colorize(mask_HW, visible_palette(palette_K3), ignore_index)
    border_HW = border_of(mask_HW)
    painted_HW = (color_HWC.any(axis=2) | border_HW) & (mask_HW != ignore_index)
    share_HW = np.where(border_HW, np.uint8(255), np.uint8(round(255 * alpha))) * painted_HW
    mixed = Image.composite(Image.fromarray(color_HWC), Image.fromarray(image_HWC), Image.fromarray(share_HW))
    return np.asarray(mixed)


def border_of(mask_HW: np.ndarray) -> np.ndarray:
    """Mark pixels that have a neighbour of another class; one pixel wide per side, two on pictures past 800 px."""
    border = np.zeros(mask_HW.shape, dtype=bool)
    for step in range(1, 3 if max(mask_HW.shape) > 800 else 2):
        differ = mask_HW[step:] != mask_HW[:-step]
        border[step:] |= differ
        border[:-step] |= differ
        differ = mask_HW[:, step:] != mask_HW[:, :-step]
        border[:, step:] |= differ
        border[:, :-step] |= differ
    return border


def draw_overlay(
    image_HWC: np.ndarray,
    mask_HW: np.ndarray,
    palette_K3: np.ndarray,
    class_names: Sequence[str],
    ignore_index: int,
    *,
    alpha: float = 0.5,
) -> Image.Image:
    """Draw an overlay with a legend of the classes that occur below it.

    A picture narrower than the longest class name gets white paper at its right.

    Args:
        image_HWC: RGB, uint8, (H, W, 3).
        mask_HW: class ids in [0, K) or `ignore_index`, (H, W).
        palette_K3: display colours, uint8, (K, 3).
        class_names: K names.
        ignore_index: id of ignored pixels.
        alpha: share of the class colour in a tinted pixel, 0..1.
    """
    picture = Image.fromarray(overlay(image_HWC, mask_HW, palette_K3, ignore_index, alpha=alpha))
    return add_legend(picture, [mask_HW], visible_palette(palette_K3), class_names, ignore_index)


def add_legend(
    picture: Image.Image,
    masks: Sequence[np.ndarray],
    palette_K3: np.ndarray,
    class_names: Sequence[str],
    ignore_index: int,
    extra: Sequence[tuple[str, tuple[int, int, int]]] = (),
    font_px: int | None = None,
) -> Image.Image:
    """Put a legend of the classes that occur in `masks`, and of `extra` (name, colour) entries, below a picture.

    The text height is chosen by the picture's width unless `font_px` gives it.
    """
    present = classes_in(*masks, num_classes=len(class_names))
    names = [class_names[class_id] for class_id in present]
    colors = [tuple(int(part) for part in palette_K3[class_id]) for class_id in present]
    if any(bool((mask == ignore_index).any()) for mask in masks):
        names.append("(ignored)")
        colors.append(IGNORED)
    names += [name for name, _ in extra]
    colors += [color for _, color in extra]
    font_px = font_px or font_size_for(picture.width)
    width = max(picture.width, min_legend_width(names, font_px))
    legend = draw_legend(names, colors, width_px=width, font_px=font_px)
    page = Image.new("RGB", (width, picture.height + legend.height), PAPER)
    page.paste(picture, (0, 0))
    page.paste(legend, (0, picture.height))
    return page
