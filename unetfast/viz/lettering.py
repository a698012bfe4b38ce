"""Text in pictures: fonts, and what becomes of characters that the usual one cannot draw.

Pictures are lettered in DejaVu Sans, which comes with matplotlib and knows Latin, Greek, Cyrillic, Arabic and Hebrew letters.
Chinese, Japanese and Korean names, emoji and many other scripts it does not have, and a font draws what it lacks as an empty
box without a word. So: a line with such characters is drawn in the one installed font that has most of them; what that font
lacks is written as codes, `<732B>`, which no two characters share; and the first time it is said, in one line on the log.
"""

from __future__ import annotations

import logging
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

_logger = logging.getLogger("unetfast.viz")
# fonts that have a glyph for everything, and it is a box or nothing
_NO_LETTERS = ("lastresort", "adobeblank", "notdef")
# cuts that are taken only where no plain one will do
_STYLED = ("bold", "italic", "oblique", "black", "light", "thin", "condensed", "mono", "serif")
MAX_SEARCHED_FONTS = 400  # a millisecond or two each
_told: set[str] = set()


@cache
def load_font(size_px: int) -> ImageFont.FreeTypeFont:
    """Load DejaVu Sans."""
    return ImageFont.truetype(_usual_path(), size_px)


def letter(text: str, size_px: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Prepare a line of text for drawing: the text as it can be drawn, and the font that draws it.

    Line breaks become spaces. Characters that no font here draws become codes; the log has a line about the first of them.

    Args:
        text: any text, also in scripts that the usual font lacks.
        size_px: text height, pixels.
    """
    text = _flatten(text)
    font = load_font(size_px)
    missing = _find_missing(text, _usual_path())
    if missing and (path := _find_font(missing)):
        other = ImageFont.truetype(path, size_px)
        if len(_find_missing(text, path)) < len(missing):
            font = other
    return _spell(text, str(font.path)), font


def spell(text: str) -> str:
    """Write a text as DejaVu Sans can draw it, for labels that are drawn in no other font; see `letter`."""
    return _spell(_flatten(text), _usual_path())


def fit_text(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> str:
    """Shorten a line with an ellipsis until it is at most `width_px` wide; line breaks become spaces, what is lacking codes."""
    text = _spell(_flatten(text), str(font.path))
    if font.getlength(text) <= width_px:
        return text
    ellipsis = "…" if ord("…") in _codes_of(str(font.path)) else "..."
    while text and font.getlength(text + ellipsis) > width_px:
        text = text[:-1]
    return text.rstrip() + ellipsis


def _flatten(text: str) -> str:
    return " ".join(text.split())


def _spell(text: str, path: str) -> str:
    """Write what a font lacks as codes, and leave out what is no ink in any font."""
    has = np.isin(np.array([ord(mark) for mark in text], dtype=np.int64), _codes_of(path))
    if has.all():
        return text
    drawn, missing = "", []
    for mark, found in zip(text, has, strict=True):
        if found:
            drawn += mark
        elif not _is_invisible(mark):
            drawn += f"<{ord(mark):04X}>"
            missing.append(mark)
    if missing:
        _tell(missing[0])
    return drawn


def _tell(mark: str) -> None:
    """Say what is done with a character that no font draws; of all such ones, the first is told."""
    if not _told:
        _told.add(mark)
        _logger.warning(
            "no font here has all characters of a name, such as U+%04X (%s): what is lacking is written as codes, such as "
            "<%04X>, in pictures; to have it drawn, install a font (packages fonts-noto-cjk, fonts-noto-core, fonts-symbola)",
            ord(mark),
            unicodedata.name(mark, "no character"),
            ord(mark),
        )


def _find_missing(text: str, path: str) -> str:
    """List the characters of a text that a font lacks, each once, in order; not those that are no ink in any font."""
    wanted = [mark for mark in dict.fromkeys(text) if not _is_invisible(mark)]
    has = np.isin(np.array([ord(mark) for mark in wanted], dtype=np.int64), _codes_of(path))
    return "".join(mark for mark, found in zip(wanted, has, strict=True) if not found)


def _is_invisible(mark: str) -> bool:
    """Whether a character is a sign to the typesetter alone: joiners, directions, variation selectors."""
    return unicodedata.category(mark) in ("Cf", "Cc") or 0xFE00 <= ord(mark) <= 0xFE0F or 0xE0100 <= ord(mark) <= 0xE01EF


def _usual_path() -> str:
    import matplotlib as mpl  # takes a fifth of a second; only pictures with text need it

    return str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def _codes_of(path: str) -> np.ndarray:
    """Read which characters a font has, int64; none where it cannot be read or scaled, as fonts of coloured bitmaps cannot."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 16)
        return np.array(sorted(FT2Font(path).get_charmap()), dtype=np.int64)
    except (OSError, RuntimeError, ValueError):
        return np.zeros(0, dtype=np.int64)


@cache
def _find_font(missing: str) -> str | None:
    """Find the installed font that draws most of some characters; None where none draws any."""
    best, most = None, 0
    for path in _list_fonts():
        has = len(missing) - len(_find_missing(missing, path))
        if has > most and (drawn := _count_drawn(missing, path)) > most:
            best, most = path, drawn
            if most == len(missing):
                break
    return best


def _count_drawn(marks: str, path: str) -> int:
    """Count the characters for which a font leaves ink: fonts of coloured layers have glyphs that are empty for us."""
    font = ImageFont.truetype(path, 16)
    lacking = set(_find_missing(marks, path))
    return sum(mark not in lacking and font.getmask(mark).getbbox() is not None for mark in marks)


@cache
def _list_fonts() -> tuple[str, ...]:
    """List the fonts of this machine and of matplotlib, plain cuts first."""
    from matplotlib.font_manager import findSystemFonts

    own = sorted(str(path) for path in Path(_usual_path()).parent.glob("*.ttf"))
    paths = [path for path in [*own, *sorted(findSystemFonts())] if not any(word in path.lower() for word in _NO_LETTERS)]
    paths.sort(key=lambda path: sum(word in Path(path).name.lower() for word in _STYLED))
    return tuple(paths[:MAX_SEARCHED_FONTS])
