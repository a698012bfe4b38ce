"""Legends: every name whole where it can be, nothing past the edges."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unetfast.viz.legend import draw_legend, font_size_for, min_legend_width
from unetfast.viz.palette import INK, PAPER

COLORS = [(int(value) % 256, 40, 200) for value in range(0, 150 * 7, 7)]


def edges_are_paper(picture: Image.Image) -> bool:
    pixels = np.asarray(picture)
    edges = [pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]]
    return all((edge == PAPER).all() for edge in edges)


@pytest.mark.parametrize("num_classes", [1, 2, 49, 150])
@pytest.mark.parametrize("width", [160, 240, 980, 1918])
def test_nothing_is_clipped_at_the_edges(num_classes: int, width: int) -> None:
    names = [f"class number {place}" for place in range(num_classes)]
    legend = draw_legend(names, COLORS[:num_classes], width_px=width)
    assert legend.width == width
    assert edges_are_paper(legend)


def test_every_color_has_a_patch() -> None:
    legend = np.asarray(draw_legend([f"c{place}" for place in range(20)], COLORS[:20], width_px=240))
    seen = set(map(tuple, legend.reshape(-1, 3).tolist()))
    assert set(COLORS[:20]) <= seen


@pytest.mark.parametrize("color", [(255, 255, 255), (0, 0, 0)])
def test_white_and_black_patches_have_a_rim(color: tuple[int, int, int]) -> None:
    legend = np.asarray(draw_legend([""], [color], width_px=60, font_px=12))
    assert (legend == INK).all(axis=2).sum() >= 4 * 12


def test_text_grows_with_the_picture_but_stays_readable() -> None:
    assert font_size_for(10) == font_size_for(240) == 11
    assert font_size_for(1918) > 25


def test_an_overlong_name_does_not_make_a_giant_page() -> None:
    assert min_legend_width(["x" * 500], 11) == 30 * 11
    assert edges_are_paper(draw_legend(["x" * 500], [(9, 9, 9)], width_px=100))


def test_no_class_gives_no_legend() -> None:
    assert draw_legend([], [], width_px=100).size == (100, 0)


def test_names_and_colors_must_pair_up() -> None:
    with pytest.raises(ValueError, match="2 names for 1 colours"):
        draw_legend(["a", "b"], [(0, 0, 0)], width_px=100)
