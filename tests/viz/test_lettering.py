"""Text in pictures: a font that has the characters, or their codes, and one line that says so; never boxes."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw

from unetfast.viz import lettering
from unetfast.viz.legend import draw_legend, min_legend_width
from unetfast.viz.lettering import fit_text, letter, load_font, spell

FONTS = Path(get_data_path()) / "fonts" / "ttf"
CAT, CAR = "\u732b", "\U0001f697"


@pytest.fixture(autouse=True)
def only_fonts_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is installed on the machine has no part in these tests, and what was told before is forgotten."""
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    for cached in (lettering._list_fonts, lettering._find_font):
        cached.cache_clear()
    lettering._told.clear()
    yield
    for cached in (lettering._list_fonts, lettering._find_font):
        cached.cache_clear()
    lettering._told.clear()


def find_mark_of(font: str) -> str:
    """Find a letter or symbol that a font has and DejaVu Sans lacks."""
    codes = set(FT2Font(str(FONTS / font)).get_charmap()) - set(FT2Font(str(FONTS / "DejaVuSans.ttf")).get_charmap())
    return min(chr(code) for code in codes if unicodedata.category(chr(code)) in ("Lo", "Lu", "Sm", "So"))


@pytest.mark.parametrize("text", ["car", "café", "Straße", "δρόμος", "дорога", "سيارة", "מכונית", "αβ → ∞ ♥"])
def test_what_the_usual_font_has_stays(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert letter(text, 14) == (text, load_font(14))
    assert spell(text) == text
    assert not caplog.records


def test_a_font_that_has_the_characters_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    mark = find_mark_of("STIXGeneral.ttf")
    text, font = letter(f"road {mark}", 20)
    assert text == f"road {mark}"
    assert font.path != load_font(20).path
    assert ord(mark) in FT2Font(str(font.path)).get_charmap()
    assert not caplog.records
    page = Image.new("L", (60, 40))
    ImageDraw.Draw(page).text((5, 5), mark, fill=255, font=font)
    assert page.getbbox() is not None


def test_what_no_font_has_becomes_codes_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="unetfast.viz"):
        assert letter(f"{CAT} cat {CAR}", 14) == ("<732B> cat <1F697>", load_font(14))
        assert letter(CAR, 14)[0] == spell(CAR) == "<1F697>"
        assert fit_text(f"{CAT} road", load_font(14), 500) == "<732B> road"
    (record,) = caplog.records
    message = record.getMessage()
    assert "such as U+732B (CJK UNIFIED IDEOGRAPH-732B)" in message
    assert "fonts-noto-cjk" in message
    assert "\n" not in message
    assert message.isascii()  # a log in any encoding takes it


def test_signs_to_the_typesetter_are_left_out() -> None:
    assert letter("a\U000e0100b\U000e0041", 14)[0] == "ab"  # a variation selector and a tag, which no font here has
    assert letter("two\nlines\tof \x1b text", 14)[0] == "two lines of  text"


@pytest.mark.parametrize("text", ["\ud800x", "\U000e0041", "\U0010ffff", "", " ", "\x00"])
def test_odd_text_is_no_error(text: str) -> None:
    drawn, font = letter(text, 14)
    assert not any(0xD800 <= ord(mark) <= 0xDFFF for mark in drawn)
    assert font.getlength(drawn) >= 0


def test_fonts_of_boxes_are_never_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """matplotlib carries one that has a glyph for every character: a box."""
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(tmp_path / "gone.ttf"), str(broken)])
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font at all")
    assert letter(CAT, 14)[0] == "<732B>"
    paths = lettering._list_fonts()
    assert str(broken) in paths
    assert str(FONTS / "STIXGeneral.ttf") in paths
    assert not any("lastresort" in path.lower() for path in paths)


def test_a_legend_of_such_names_is_whole() -> None:
    names = [f"{CAT}{CAT}", f"{CAR} car", "road", "\U0001f468\u200d\U0001f469"]
    colors = [(255, 0, 0), (0, 160, 0), (0, 0, 255), (90, 90, 90)]
    width = min_legend_width(names, 14)
    legend = draw_legend(names, colors, width_px=width, font_px=14)
    pixels = np.asarray(legend)
    assert (pixels[:, -2:] == 255).all()  # nothing clipped
    # the same picture as of the codes themselves
    codes = ["<732B><732B>", "<1F697> car", "road", "<1F468><1F469>"]
    assert width == min_legend_width(codes, 14)
    assert np.array_equal(pixels, np.asarray(draw_legend(codes, colors, width_px=width, font_px=14)))


def test_text_is_shortened_to_the_width() -> None:
    font = load_font(12)
    short = fit_text(f"a name that is long {CAT}{CAT}", font, 80)
    assert short.endswith("…")
    assert font.getlength(short) <= 80
