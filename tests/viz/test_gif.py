"""The progress GIF, read back by Pillow: frames, times, colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from unetfast.viz.gif import FRAME_MS, LAST_MS, MAX_FRAMES, MAX_WIDTH_PX, draw_progress_gif, spread

PALETTE_K3 = np.array([[0, 0, 0], [254, 255, 255], [120, 120, 120], [121, 120, 120], [3, 200, 77]], dtype=np.uint8)


def picture(seed: int, *, size: tuple[int, int] = (160, 90)) -> Image.Image:
    """A noisy photograph above, a flat mask of all classes below."""
    rng = np.random.default_rng(seed)
    photo_HWC = rng.integers(0, 256, (size[1] // 2, size[0], 3), dtype=np.uint8)
    mask_HW = (np.arange(size[0]) * len(PALETTE_K3) // size[0])[None].repeat(size[1] - size[1] // 2, axis=0)
    return Image.fromarray(np.concatenate([photo_HWC, PALETTE_K3[mask_HW]]))


def read(data: bytes) -> tuple[list[Image.Image], list[int]]:
    with Image.open(io.BytesIO(data)) as gif:
        assert gif.format == "GIF"
        assert gif.info["loop"] == 0
        frames = [(frame.convert("RGB"), int(frame.info["duration"])) for frame in ImageSequence.Iterator(gif)]
    return [frame for frame, _ in frames], [duration for _, duration in frames]


def test_every_picture_is_a_frame_and_the_last_is_held() -> None:
    frames, durations = read(draw_progress_gif([(f"epoch {k}", picture(k)) for k in range(4)], PALETTE_K3))
    assert durations == [FRAME_MS, FRAME_MS, FRAME_MS, LAST_MS]
    assert len({frame.size for frame in frames}) == 1
    assert frames[0].width == 160


def test_colours_of_classes_stand_exactly_in_every_frame_though_others_are_near() -> None:
    frames, _ = read(draw_progress_gif([("a", picture(1)), ("b", picture(2))], PALETTE_K3))
    for frame in frames:
        row_W3 = np.asarray(frame)[-1]
        wanted = (np.arange(160) * len(PALETTE_K3) // 160)[:, None]
        np.testing.assert_array_equal(row_W3, PALETTE_K3[wanted[:, 0]])


def test_the_title_is_drawn_and_differs_from_frame_to_frame() -> None:
    same = picture(0)
    frames, _ = read(draw_progress_gif([("before training", same), ("epoch 7", same)], PALETTE_K3))
    top = frames[0].height - same.height
    assert top > 15
    heads = [np.asarray(frame)[: top - 4] for frame in frames]
    assert all((head < 80).any() for head in heads)
    assert (heads[0] != heads[1]).any()


def test_pictures_of_several_sizes_share_a_canvas_and_wide_ones_are_reduced() -> None:
    frames, _ = read(draw_progress_gif([("a", picture(0, size=(2000, 300))), ("b", picture(1, size=(1500, 500)))], PALETTE_K3))
    assert {frame.width for frame in frames} == {MAX_WIDTH_PX}
    assert {frame.height for frame in frames} == {frames[0].height}
    assert frames[0].height > 250


def test_a_single_picture_is_a_gif_too() -> None:
    frames, _ = read(draw_progress_gif([("before training", picture(0))], PALETTE_K3))
    assert len(frames) == 1


def test_many_pictures_are_thinned_with_first_and_last_kept() -> None:
    assert spread(3, MAX_FRAMES) == [0, 1, 2]
    chosen = spread(1000, MAX_FRAMES)
    assert len(chosen) == len(set(chosen)) == MAX_FRAMES
    assert (chosen[0], chosen[-1]) == (0, 999)


def test_without_a_picture_there_is_no_gif() -> None:
    with pytest.raises(ValueError, match="no picture"):
        draw_progress_gif([], PALETTE_K3)
