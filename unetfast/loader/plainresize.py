"""The antialiased resize by torch and Pillow.

It is how a whole image is resized for a prediction, where an exported graph gives the same bytes, and what the CPU loader does
without numba.

Axis letters: H height, W width, C channels (R, G, B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from PIL import Image

from unetfast.loader.scratch import scratch_array


def resize_by_libraries(rgb_HWC: np.ndarray, box_yxyx: Sequence[float] | np.ndarray, out_HWC: np.ndarray) -> None:
    """Resize a box with an antialiasing triangle filter; what lies around the box is seen by its border pixels.

    A box that is the whole image is resized by torch alone.

    Args:
        rgb_HWC: uint8, contiguous, (H, W, 3).
        box_yxyx: top, left, bottom, right in pixels of `rgb_HWC`; may lie between pixels, and is fastest where top and left do
            not.
        out_HWC: receives the result, uint8, contiguous, (target height, target width, 3).
    """
    top, left, bottom, right = (float(edge) for edge in box_yxyx)
    out_height, out_width = out_HWC.shape[:2]
    if (bottom - top, right - left) == (out_height, out_width) and top.is_integer() and left.is_integer():
        out_HWC[...] = rgb_HWC[int(top) : int(bottom), int(left) : int(right)]
    elif top.is_integer() and left.is_integer():
        whole_HWC = rgb_HWC[int(top) : math.ceil(bottom), int(left) : math.ceil(right)]
        _resize_whole(whole_HWC, (out_height / (bottom - top), out_width / (right - left)), out_HWC)
        _resize_borders(rgb_HWC, (top, left, bottom, right), out_HWC)
    else:
        _resize_part(rgb_HWC, (top, left, bottom, right), out_HWC)


def _resize_whole(rgb_HWC: np.ndarray, scales: tuple[float, float], out_HWC: np.ndarray) -> None:
    """Resize from the top left corner by given scales: torch's uint8 kernel, several times as fast as Pillow's."""
    readable_HWC = rgb_HWC
    if not rgb_HWC.flags.c_contiguous:  # torch would copy it too, and takes four times as long for that
        readable_HWC = scratch_array("whole", rgb_HWC.shape, np.uint8)
        np.copyto(readable_HWC, rgb_HWC)
    elif not rgb_HWC.flags.writeable:
        readable_HWC = np.asarray(_ReadOnly(rgb_HWC))
    source, result = (torch.from_numpy(part).permute(2, 0, 1)[None] for part in (readable_HWC, out_HWC))
    torch.ops.aten._upsample_bilinear2d_aa.out(source, list(out_HWC.shape[:2]), False, *scales, out=result)


def _resize_borders(rgb_HWC: np.ndarray, box: tuple[float, float, float, float], out_HWC: np.ndarray) -> None:
    """Do the border pixels again that see past the box into the image, which `_resize_whole` was not given."""
    top, left, bottom, right = box
    (height, width), (out_height, out_width) = rgb_HWC.shape[:2], out_HWC.shape[:2]
    step_y, step_x = (bottom - top) / out_height, (right - left) / out_width
    # the filter reaches one target pixel or one stored pixel, whichever is larger
    num_y, num_x = min(math.ceil(max(1, 1 / step_y)), out_height), min(math.ceil(max(1, 1 / step_x)), out_width)
    if top > 0:
        _resize_part(rgb_HWC, (top, left, top + num_y * step_y, right), out_HWC[:num_y])
    if math.ceil(bottom) < height:
        _resize_part(rgb_HWC, (bottom - num_y * step_y, left, bottom, right), out_HWC[-num_y:])
    if left > 0:
        _resize_part(rgb_HWC, (top, left, bottom, left + num_x * step_x), out_HWC[:, :num_x])
    if math.ceil(right) < width:
        _resize_part(rgb_HWC, (top, right - num_x * step_x, bottom, right), out_HWC[:, -num_x:])


class _ReadOnly:
    """Lends the memory of a read-only array to torch, which warns of such arrays because it could write to them."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        interface = array.__array_interface__
        self.__array_interface__ = {**interface, "data": (interface["data"][0], False)}


def _resize_part(rgb_HWC: np.ndarray, box: tuple[float, float, float, float], out_HWC: np.ndarray) -> None:
    """Resize any box; Pillow's filter is the same, and takes boxes between pixels.

    Pillow keeps four bytes a pixel, and reads memory that has them without a copy of its own.
    """
    top, left, bottom, right = box
    (height, width), (out_height, out_width) = rgb_HWC.shape[:2], out_HWC.shape[:2]
    # only what the filter can reach is handed over
    reach_y, reach_x = max((bottom - top) / out_height, 1) + 1, max((right - left) / out_width, 1) + 1
    first_y, first_x = max(int(top - reach_y), 0), max(int(left - reach_x), 0)
    last_y, last_x = min(int(bottom + reach_y) + 1, height), min(int(right + reach_x) + 1, width)
    part_hw = (last_y - first_y, last_x - first_x)
    rgbx_HWC = scratch_array("part", (*part_hw, 4), np.uint8)
    cv2.cvtColor(rgb_HWC[first_y:last_y, first_x:last_x], cv2.COLOR_RGB2RGBA, dst=rgbx_HWC)
    part = Image.frombuffer("RGBX", part_hw[::-1], rgbx_HWC, "raw", "RGBX", 0, 1)
    shifted = (left - first_x, top - first_y, right - first_x, bottom - first_y)
    out_HWC[...] = np.asarray(part.resize((out_width, out_height), Image.Resampling.BILINEAR, box=shifted))[..., :3]
