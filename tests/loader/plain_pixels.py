"""The CPU backend's steps in their plainest form, each a call or two of the library that defines it.

The loader's own steps are written for speed; what they give must be this, bit for bit, on whatever machine the tests run.

Axis letters: H height, W width, C channels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image
from plain_resize import resize_in_integers

from unetfast.data.codecs import decode_image
from unetfast.loader.augment import Augmentation
from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.pixels import choose_jpeg_reduction


def render_image(
    data: bytes, codec: str, hw: tuple[int, int], numbers: Augmentation, row: int, target_hw: tuple[int, int], decode: str
) -> np.ndarray:
    """Make a sample's image from its member's bytes, uint8, (H, W, 3)."""
    top, left, bottom, right = numbers.crop_yxyx[row].tolist()
    reduction = choose_jpeg_reduction((bottom - top, right - left), target_hw, decode) if codec == "jpeg" else 1
    if codec == "jpeg":
        rgb = simplejpeg.decode_jpeg(data, "RGB", min_height=-(-hw[0] // reduction), min_width=-(-hw[1] // reduction))
    else:
        rgb = decode_image(data, codec, height=hw[0], width=hw[1])
    image = np.empty((*target_hw, 3), dtype=np.uint8)
    resize(rgb, numbers.crop_yxyx[row] / reduction, image)
    hflip, vflip = bool(numbers.hflip[row]), bool(numbers.vflip[row])
    if numbers.has_warp[row]:
        image = warp(image, flip_matrix(numbers.warp_matrix[row], hflip, vflip, target_hw))
    else:
        image = image[:: -1 if vflip else 1, :: -1 if hflip else 1]
    return change_color(image, numbers.color_matrix[row]) if numbers.has_color[row] else np.ascontiguousarray(image)


def resize(rgb_HWC: np.ndarray, box_yxyx: np.ndarray, out_HWC: np.ndarray) -> None:
    """Resize as compiled code does it, or as libraries do where there is none."""
    (resize_by_libraries if find_kernel("resize").problem else resize_in_integers)(rgb_HWC, box_yxyx, out_HWC)


def resize_by_libraries(rgb_HWC: np.ndarray, box_yxyx: np.ndarray, out_HWC: np.ndarray) -> None:
    """Resize the inside by torch, and what sees past the box, or a box between pixels, by Pillow."""
    top, left, bottom, right = (float(edge) for edge in box_yxyx)
    out_height, out_width = out_HWC.shape[:2]
    if not (top.is_integer() and left.is_integer()):
        _resize_part(rgb_HWC, (top, left, bottom, right), out_HWC)
        return
    inside = torch.from_numpy(rgb_HWC[int(top) : math.ceil(bottom), int(left) : math.ceil(right)].copy()).permute(2, 0, 1)[None]
    if (bottom - top, right - left) == (out_height, out_width):
        out_HWC[...] = inside[0].permute(1, 2, 0).numpy()
        return
    scales = (out_height / (bottom - top), out_width / (right - left))
    result = torch.ops.aten._upsample_bilinear2d_aa(inside, [out_height, out_width], False, *scales)
    out_HWC[...] = result[0].permute(1, 2, 0).numpy()
    step_y, step_x = (bottom - top) / out_height, (right - left) / out_width
    num_y, num_x = min(math.ceil(max(1, 1 / step_y)), out_height), min(math.ceil(max(1, 1 / step_x)), out_width)
    if top > 0:
        _resize_part(rgb_HWC, (top, left, top + num_y * step_y, right), out_HWC[:num_y])
    if math.ceil(bottom) < rgb_HWC.shape[0]:
        _resize_part(rgb_HWC, (bottom - num_y * step_y, left, bottom, right), out_HWC[-num_y:])
    if left > 0:
        _resize_part(rgb_HWC, (top, left, bottom, left + num_x * step_x), out_HWC[:, :num_x])
    if math.ceil(right) < rgb_HWC.shape[1]:
        _resize_part(rgb_HWC, (top, right - num_x * step_x, bottom, right), out_HWC[:, -num_x:])


def _resize_part(rgb_HWC: np.ndarray, box: tuple[float, float, float, float], out_HWC: np.ndarray) -> None:
    """Resize by Pillow, from three channels, with only what the filter can reach."""
    top, left, bottom, right = box
    (height, width), (out_height, out_width) = rgb_HWC.shape[:2], out_HWC.shape[:2]
    reach_y, reach_x = max((bottom - top) / out_height, 1) + 1, max((right - left) / out_width, 1) + 1
    first_y, first_x = max(int(top - reach_y), 0), max(int(left - reach_x), 0)
    last_y, last_x = min(int(bottom + reach_y) + 1, height), min(int(right + reach_x) + 1, width)
    part = Image.fromarray(rgb_HWC[first_y:last_y, first_x:last_x].copy())
    shifted = (left - first_x, top - first_y, right - first_x, bottom - first_y)
    out_HWC[...] = np.asarray(part.resize((out_width, out_height), Image.Resampling.BILINEAR, box=shifted))


def flip_matrix(matrix: np.ndarray, hflip: bool, vflip: bool, hw: tuple[int, int]) -> np.ndarray:
    """Let a map (2, 3) into a flipped image of size `hw` lead into the unflipped one."""
    flipped = matrix.copy()
    if hflip:
        flipped[0] = -flipped[0]
        flipped[0, 2] += hw[1]
    if vflip:
        flipped[1] = -flipped[1]
        flipped[1, 2] += hw[0]
    return flipped


def warp(rgb_HWC: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Warp three channels by OpenCV, 0 outside."""
    centred = matrix.copy()
    centred[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    return cv2.warpAffine(rgb_HWC, centred, rgb_HWC.shape[1::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)


def change_color(rgb_HWC: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    shifted = matrix.astype(np.float32)
    shifted[:, 3] += 0.5
    return np.clip(cv2.transform(rgb_HWC.astype(np.float32), shifted), 0, 255).astype(np.uint8)


def look_up_mask(
    mask_HW: np.ndarray, matrix: np.ndarray, crop_yxyx: np.ndarray, ignore_index: int, target_hw: tuple[int, int]
) -> np.ndarray:
    """Look up floor(matrix @ (x, y, 1)) in float64: row's part plus column's part; `ignore_index` outside the box."""
    (x_by_x, x_by_y, x_shift), (y_by_x, y_by_y, y_shift) = matrix
    top, left, bottom, right = crop_yxyx
    x_centres, y_centres = np.arange(target_hw[1]) + 0.5, np.arange(target_hw[0]) + 0.5
    if x_by_y == 0 and y_by_x == 0:
        x, y = np.meshgrid(np.floor(x_centres * x_by_x + x_shift) - left, np.floor(y_centres * y_by_y + y_shift) - top)
    else:
        x = np.floor(np.add.outer(y_centres * x_by_y + (x_shift - left), x_centres * x_by_x))
        y = np.floor(np.add.outer(y_centres * y_by_y + (y_shift - top), x_centres * y_by_x))
    inside = (x >= 0) & (x < right - left) & (y >= 0) & (y < bottom - top)
    found = np.full(target_hw, ignore_index, dtype=mask_HW.dtype)
    found[inside] = mask_HW[top:bottom, left:right][y[inside].astype(int), x[inside].astype(int)]
    return found
