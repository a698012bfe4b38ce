"""A moving picture of a run's predictions, one frame a picture, with what each frame shows written above it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from unetfast.viz.lettering import fit_text, load_font
from unetfast.viz.palette import IGNORED, INK, PAPER, WRONG

MAX_WIDTH_PX = 1000  # wider pictures are reduced
MAX_FRAMES = 60  # of more pictures, evenly spread ones are taken; the first and the last always
FRAME_MS = 900
LAST_MS = 3500
_BAR_RGB = (54, 98, 160)
_NUM_COLORS = 256
_MAX_RESERVED = 128  # of them for classes
_SAMPLE_PX = 200_000  # pixels of all frames together that the other colours are chosen from


def draw_progress_gif(pictures: Sequence[tuple[str, Image.Image]], palette_K3: np.ndarray) -> bytes:
    """Draw a GIF that shows pictures one after another, and begins anew after a longer look at the last.

    All frames share one palette, in which the colours of paper, ink, errors and (up to 128) classes stand exactly, so that
    masks do not flicker and agree with their legend. A bar above the picture shows how far the frame is.

    Args:
        pictures: what to write above each, and the picture, RGB; sizes may differ. At least one.
        palette_K3: colours of the classes, uint8, (K, 3).

    Returns:
        A GIF file.

    Raises:
        ValueError: there is no picture.
    """
    if not pictures:
        raise ValueError("no picture to show")
    chosen = [pictures[place] for place in spread(len(pictures), MAX_FRAMES)]
    scale = min(1.0, MAX_WIDTH_PX / max(picture.width for _, picture in chosen))
    shown = [(title, _reduce(picture, scale)) for title, picture in chosen]
    size = max(picture.width for _, picture in shown), max(picture.height for _, picture in shown)
    frames = [_draw_frame(title, picture, size, (place, len(shown))) for place, (title, picture) in enumerate(shown)]
    palette, num_reserved = _choose_palette(frames, palette_K3)
    flat = [_quantize(frame, palette, num_reserved) for frame in frames]
    durations = [FRAME_MS] * (len(flat) - 1) + [LAST_MS]
    buffer = io.BytesIO()
    flat[0].save(
        buffer, format="GIF", save_all=True, append_images=flat[1:], duration=durations, loop=0, optimize=False, disposal=1
    )
    return buffer.getvalue()


def spread(num: int, most: int) -> list[int]:
    """Choose at most `most` of `num` places, evenly spread, the first and the last among them."""
    if num <= most:
        return list(range(num))
    places: list[int] = np.linspace(0, num - 1, most).round().astype(int).tolist()
    return places


def _reduce(picture: Image.Image, scale: float) -> Image.Image:
    if scale == 1:
        return picture
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BOX)


def _draw_frame(title: str, picture: Image.Image, size: tuple[int, int], place: tuple[int, int]) -> Image.Image:
    width, height = size
    font_px = max(13, min(22, width // 30))
    top = round(1.9 * font_px) + 4
    frame = Image.new("RGB", (width, top + height), PAPER)
    frame.paste(picture, (0, top))
    pen, font = ImageDraw.Draw(frame), load_font(font_px)
    pen.text((8, (top - 4) / 2), fit_text(title, font, width - 16), fill=INK, font=font, anchor="lm")
    done = width * (place[0] + 1) // place[1]
    pen.rectangle((0, top - 4, width, top - 2), fill=(222, 222, 228))
    pen.rectangle((0, top - 4, done, top - 2), fill=_BAR_RGB)
    return frame


def _quantize(frame: Image.Image, palette: Image.Image, num_reserved: int) -> Image.Image:
    """Give each pixel a colour of the palette: a reserved one to all that have it exactly, to the others one that is near."""
    # no dithering: it would make noise of flat masks
    flat = frame.quantize(palette=palette, dither=Image.Dither.NONE)
    index_HW = np.array(flat)
    reserved_C = _as_numbers(np.array((palette.getpalette() or [])[: 3 * num_reserved], dtype=np.uint8).reshape(-1, 3))
    number_HW = _as_numbers(np.asarray(frame))
    order = np.argsort(reserved_C)
    place_HW = np.clip(np.searchsorted(reserved_C, number_HW, sorter=order), 0, num_reserved - 1)
    exact_HW = order[place_HW]
    is_exact_HW = reserved_C[exact_HW] == number_HW
    index_HW[is_exact_HW] = exact_HW[is_exact_HW]
    fixed = Image.fromarray(index_HW, mode="P")
    fixed.putpalette(palette.getpalette() or [])
    return fixed


def _as_numbers(rgb: np.ndarray) -> np.ndarray:
    """Turn colours, uint8, (..., 3), into one number each."""
    wide = rgb.astype(np.int64)
    number: np.ndarray = (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]
    return number


def _choose_palette(frames: Sequence[Image.Image], palette_K3: np.ndarray) -> tuple[Image.Image, int]:
    """Build a palette image and count its reserved colours, which stand first; the others are from the pixels of all frames."""
    reserved = [tuple(color) for color in (PAPER, INK, WRONG, IGNORED, _BAR_RGB)]
    seen = set(reserved)
    every = max(1, sum(frame.width * frame.height for frame in frames) // _SAMPLE_PX)
    pixels_P3 = np.concatenate([np.asarray(frame).reshape(-1, 3)[::every] for frame in frames])
    used = set().union(*(np.unique(_as_numbers(np.asarray(frame))).tolist() for frame in frames))
    for color, number in zip(palette_K3.tolist(), _as_numbers(palette_K3).tolist(), strict=True):
        if number in used and tuple(color) not in seen and len(reserved) < _MAX_RESERVED:
            reserved.append(tuple(color))
            seen.add(tuple(color))
    side = int(np.ceil(np.sqrt(len(pixels_P3))))
    padded_P3 = np.resize(pixels_P3, (side * side, 3)).reshape(side, side, 3)
    num_other = _NUM_COLORS - len(reserved)
    others = Image.fromarray(padded_P3).quantize(num_other, method=Image.Quantize.MEDIANCUT).getpalette() or []
    values = [part for color in reserved for part in color] + others[: 3 * num_other]
    values += [0] * (3 * _NUM_COLORS - len(values))
    palette = Image.new("P", (1, 1))
    palette.putpalette(values)
    return palette, len(reserved)
