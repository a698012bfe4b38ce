"""What a pixel is, said again in plain float64 numpy: slow, without one line of the loader's pixel code."""

from __future__ import annotations

import numpy as np

# what a filter's weights beyond the image's edge become; the one thing that the backends do differently
BEYOND = {"cpu": "left out", "dali": "edge"}


def resize_box(
    image: np.ndarray, box: tuple[int, int, int, int], target_hw: tuple[int, int], beyond: str = "left out"
) -> np.ndarray:
    """Antialiased (triangle) resize of a box (top, left, bottom, right) to float64.

    Weights beyond the image are "left out", and the others enlarged, or fall on the pixel at its "edge".
    """
    top, left, bottom, right = (int(edge) for edge in box)
    by_rows = _weights(image.shape[0], top, bottom, target_hw[0], beyond)
    by_columns = _weights(image.shape[1], left, right, target_hw[1], beyond)
    return np.einsum("yh,hwc,xw->yxc", by_rows, image.astype(np.float64), by_columns, optimize=True)


def _weights(size: int, start: float, stop: float, target: int, beyond: str) -> np.ndarray:
    scale = (stop - start) / target
    centres = start + (np.arange(target) + 0.5) * scale
    reach = int(scale) + 2
    places = np.arange(-reach, size + reach)
    weights = np.maximum(0, 1 - np.abs(places[None, :] + 0.5 - centres[:, None]) / max(scale, 1))
    inside = weights[:, reach:-reach].copy()
    if beyond == "edge":
        inside[:, 0] += weights[:, :reach].sum(axis=1)
        inside[:, -1] += weights[:, -reach:].sum(axis=1)
    return inside / inside.sum(axis=1, keepdims=True)


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bilinear lookup at matrix @ (x, y, 1) of each pixel's centre; 0 outside."""
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    source_x, source_y = (row[0] * x + row[1] * y + row[2] - 0.5 for row in matrix)
    padded = np.pad(image, ((1, 2), (1, 2), (0, 0)))
    x, y = np.clip(source_x, -1, width) + 1, np.clip(source_y, -1, height) + 1
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right_part, lower_part = (x - left)[..., None], (y - top)[..., None]
    upper = padded[top, left] * (1 - right_part) + padded[top, left + 1] * right_part
    lower = padded[top + 1, left] * (1 - right_part) + padded[top + 1, left + 1] * right_part
    return upper * (1 - lower_part) + lower * lower_part


def render_image(image: np.ndarray, numbers: object, row: int, target_hw: tuple[int, int], backend: str) -> np.ndarray:
    """All steps on one image, without rounding in between, with a backend's rule for the image's edge; uint8."""
    result = resize_box(image, numbers.crop_yxyx[row], target_hw, BEYOND[backend])
    result = result[:: -1 if numbers.vflip[row] else 1, :: -1 if numbers.hflip[row] else 1]
    if numbers.has_warp[row]:
        result = warp(result, numbers.warp_matrix[row])
    matrix = numbers.color_matrix[row]
    result = result @ matrix[:, :3].T + matrix[:, 3]
    return np.floor(np.clip(result, 0, 255) + 0.5).clip(0, 255).astype(np.uint8)


def render_mask(mask: np.ndarray, numbers: object, row: int, target_hw: tuple[int, int], ignore_index: int) -> np.ndarray:
    """The nearest lookup, pixel by pixel."""
    top, left, bottom, right = numbers.crop_yxyx[row]
    result = np.full(target_hw, ignore_index, dtype=mask.dtype)
    for i in range(target_hw[0]):
        for j in range(target_hw[1]):
            x, y = numbers.mask_matrix[row] @ (j + 0.5, i + 0.5, 1.0)
            if left <= np.floor(x) < right and top <= np.floor(y) < bottom:
                result[i, j] = mask[int(np.floor(y)), int(np.floor(x))]
    return result


def psnr(one: np.ndarray, two: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 images, decibels."""
    error = np.mean((one.astype(np.float64) - two.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
