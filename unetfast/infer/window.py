"""Where the windows of a large image lie, and how much each counts: geometry alone, no pixel.

Windows stand on a grid, rows times columns, so a window's weight at a pixel is a weight of its row times a weight of its
column, and both are normalised for themselves: over all windows they add up to 1 at every pixel, and nothing is to be divided
at the end. Where one window covers the image its weight is 1 everywhere: the blend is the net's own answer, bit for bit.

Axis legend: H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from unetfast.errors import UserError

SIGMA_SHARE = 1 / 8  # of the window, as nnU-Net (Isensee et al. 2021) has it
MAX_OVERLAP = 0.9
SCALE_RANGE = (0.01, 16.0)


@dataclass(frozen=True, slots=True)
class Windows:
    """How images are cut.

    Args:
        size_hw: height and width of a window, pixels of the scaled image: what the net is given.
        overlap: share of a window that the next one covers again, 0 to `MAX_OVERLAP`.
        scale: size of what the windows are cut from over the size of the image; 1 is the image's own resolution.
    """

    size_hw: tuple[int, int]
    overlap: float = 0.5
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Grid:
    """The windows of one image; rows and columns are those of the scaled image.

    Args:
        size_hw: the image's own height and width, pixels.
        scaled_hw: height and width of the scaled image.
        window_hw: height and width of a window; never more than `scaled_hw`.
        tops: first row of each row of windows.
        lefts: first column of each column of windows.
        row_weights: weight of each row of windows at each of its rows, float32, (len(tops), window height).
        column_weights: likewise, float32, (len(lefts), window width).
    """

    size_hw: tuple[int, int]
    scaled_hw: tuple[int, int]
    window_hw: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    row_weights: np.ndarray
    column_weights: np.ndarray

    @property
    def num_windows(self) -> int:
        return len(self.tops) * len(self.lefts)


def parse_windows(text: str, *, training_hw: tuple[int, int], overlap: float, scale: float) -> Windows | None:
    """Read what `--window`, `--overlap` and `--scale` say.

    Args:
        text: "off" (None is returned), "auto" (windows of the training size) or HEIGHTxWIDTH.
        training_hw: size of a training batch, pixels.
        overlap: 0 to `MAX_OVERLAP`.
        scale: see `Windows`.

    Raises:
        UserError: anything else, or an overlap or scale without windows.
    """
    if text == "off":
        if (overlap, scale) != (0.5, 1.0):
            raise UserError("--overlap and --scale are for windows: give --window auto or --window HEIGHTxWIDTH too")
        return None
    if not 0 <= overlap <= MAX_OVERLAP:
        raise UserError(f"--overlap {overlap:g}: give a share from 0 to {MAX_OVERLAP:g}, such as 0.5")
    low, high = SCALE_RANGE
    if not low <= scale <= high:
        raise UserError(f"--scale {scale:g}: give a factor from {low:g} to {high:g}; 1 is the image's own resolution")
    if text == "auto":
        return Windows(training_hw, overlap, scale)
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0):
        raise UserError(f"--window {text}: give auto, off or HEIGHTxWIDTH in pixels, such as 512x512")
    return Windows((int(height), int(width)), overlap, scale)


def lay_grid(size_hw: tuple[int, int], windows: Windows) -> Grid:
    """Place the windows of an image of this height and width, pixels.

    They are spread evenly from edge to edge, with at least the overlap that is asked for (but for rounding to whole pixels).
    A scaled image smaller than a window is one window of its own size.
    """
    height, width = (max(1, round(side * windows.scale)) for side in size_hw)
    window_height, window_width = min(windows.size_hw[0], height), min(windows.size_hw[1], width)
    tops = place_windows(height, window_height, windows.overlap)
    lefts = place_windows(width, window_width, windows.overlap)
    return Grid(
        size_hw=size_hw,
        scaled_hw=(height, width),
        window_hw=(window_height, window_width),
        tops=tops,
        lefts=lefts,
        row_weights=blend_weights(tops, window_height, height),
        column_weights=blend_weights(lefts, window_width, width),
    )


def place_windows(length: int, window: int, overlap: float) -> tuple[int, ...]:
    """First pixel of each window along one axis: as few as the overlap allows, the first at 0, the last at the far edge.

    Args:
        length: of the axis, pixels.
        window: at most `length`, pixels.
        overlap: share of a window that the next one covers again.
    """
    step = max(1.0, window * (1 - overlap))
    num = math.ceil(round((length - window) / step, 9)) + 1
    return tuple(round(place * (length - window) / max(num - 1, 1)) for place in range(num))


def blend_weights(starts: tuple[int, ...], window: int, length: int) -> np.ndarray:
    """Weight of each window at each of its pixels along one axis: a Gaussian about its centre over the sum of all windows.

    Args:
        starts: first pixel of each window.
        window: pixels.
        length: of the axis, pixels.

    Returns:
        float32, (len(starts), window); adds up to 1 at every pixel of the axis.
    """
    sigma = window * SIGMA_SHARE
    distance = np.arange(window) - (window - 1) / 2
    gauss = np.exp(-0.5 * (distance / sigma) ** 2)
    total = np.zeros(length)
    for start in starts:
        total[start : start + window] += gauss
    return np.stack([gauss / total[start : start + window] for start in starts]).astype(np.float32)
