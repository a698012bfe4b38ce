"""The legend of a picture: a colour patch and a name for each class."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from unetfast.viz.lettering import fit_text, letter
from unetfast.viz.palette import INK, PAPER

Color = Sequence[int]
MIN_FONT_PX = 11
MAX_FONT_PX = 40


def font_size_for(width_px: int) -> int:
    """Choose the text height for a picture of this width, pixels: 11 at 240, more on larger ones."""
    return max(MIN_FONT_PX, min(MAX_FONT_PX, round(width_px / 60)))


def min_legend_width(class_names: Sequence[str], font_px: int) -> int:
    """Width that shows each name whole in one column, at most 30 letter heights."""
    lettered = [letter(name, font_px) for name in class_names]
    longest = max((font.getlength(text) for text, font in lettered), default=0.0)
    return min(30 * font_px, int(longest) + 1 + _name_offset(font_px) + 2 * _margin(font_px))


def draw_legend(
    class_names: Sequence[str], colors: Sequence[Color], *, width_px: int, font_px: int | None = None
) -> Image.Image:
    """Draw patches and names in as many columns as fit, read down each column.

    Args:
        class_names: the classes to show; give only those that occur in the picture. None gives a picture of height 0. Names
            in scripts that the usual font lacks are drawn as `unetfast.viz.lettering.letter` says.
        colors: RGB in 0..255, one a class. Each patch has a rim, so that white and black ones show on any paper.
        width_px: width of the legend; a name wider than it is cut with an ellipsis.
        font_px: text height; None chooses by `width_px`.

    Raises:
        ValueError: names and colours differ in number.
    """
    if len(class_names) != len(colors):
        raise ValueError(f"{len(class_names)} names for {len(colors)} colours")
    if not class_names:
        return Image.new("RGB", (width_px, 0), PAPER)
    size = font_px or font_size_for(width_px)
    lettered = [letter(name, size) for name in class_names]
    margin, offset = _margin(size), _name_offset(size)
    line = round(1.5 * size)
    longest = max(font.getlength(text) for text, font in lettered)
    column = min(int(longest) + 1 + offset + 2 * margin, max(width_px - margin, 1))
    num_columns = min(len(class_names), max(1, (width_px - margin) // column))
    num_rows = -(-len(class_names) // num_columns)
    legend = Image.new("RGB", (width_px, num_rows * line + 2 * margin), PAPER)
    pen = ImageDraw.Draw(legend)
    for place, ((text, font), color) in enumerate(zip(lettered, colors, strict=True)):
        left = margin + place // num_rows * column
        top = margin + place % num_rows * line
        patch_top = top + (line - size) // 2
        pen.rectangle((left, patch_top, left + size, patch_top + size), fill=_rgb(color), outline=INK)
        fitting = fit_text(text, font, column - offset - margin)
        pen.text((left + offset, top + line / 2), fitting, fill=INK, font=font, anchor="lm")
    return legend


def _margin(font_px: int) -> int:
    return max(4, font_px // 2)


def _name_offset(font_px: int) -> int:
    return font_px + max(4, font_px // 2)


def _rgb(color: Color) -> tuple[int, int, int]:
    red, green, blue = color
    return int(red), int(green), int(blue)
