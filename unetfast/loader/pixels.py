"""Pixels of the CPU backend: one sample's members and numbers -> its rows of a batch.

What each step means stands in augment.py; here is how it is done fast on a CPU: a JPEG is decoded at 1/2, 1/4 or 1/8 where the
crop is much larger than the target, buffers are reused, and every step releases the GIL.

Axis letters: H height, W width, C channels (R, G, B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import cv2
import numpy as np

from unetfast.data.codecs import decode_image
from unetfast.data.indexrow import IndexRow
from unetfast.data.reader import SplitReader
from unetfast.errors import CorruptShardError
from unetfast.loader.jpegfile import decode_jpeg
from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.plainresize import resize_by_libraries
from unetfast.loader.scratch import scratch_array

# how many decoded pixels, at least, one target pixel must still average, per axis, after a scaled JPEG decode
MIN_REDUCTION = {"exact": 4.0, "fast": 1.0, "full": math.inf}
# within one percent counts: Carvana's 1918 columns at 1/2 are 3.996 for each of 240
_SLACK = 0.99
_JPEG_REDUCTIONS = (8, 4, 2)  # the scaled inverse transforms that libjpeg-turbo has in SIMD


def choose_jpeg_reduction(
    crop_hw: tuple[int, int], target_hw: tuple[int, int], decode: Literal["exact", "fast", "full"]
) -> int:
    """Return by what a JPEG may be reduced while it is decoded: 8, 4, 2 or 1.

    Args:
        crop_hw: height and width of the crop box, stored pixels.
        target_hw: height and width of the batch, pixels.
        decode: "exact" leaves a reduction of 4 or more to the antialiased resize, "fast" leaves 1 or more, "full" all of it.
    """
    least = min(crop_hw[0] / target_hw[0], crop_hw[1] / target_hw[1])
    return next((reduction for reduction in _JPEG_REDUCTIONS if least / reduction >= _SLACK * MIN_REDUCTION[decode]), 1)


def decode_sample(
    reader: SplitReader,
    sample_id: int,
    reduction: int,
    data: bytes | memoryview | None = None,
    row: IndexRow | None = None,
) -> np.ndarray:
    """Read and decode a sample's image, a JPEG at 1/reduction of its size; see `decode_reduced`.

    Args:
        reader: the split.
        sample_id: of the sample.
        reduction: 1, 2, 4 or 8; 1 unless the image is a JPEG.
        data: the member, where it is read already.
        row: of the index, where it is read already.

    Raises:
        CorruptShardError: it cannot be read or decoded; names key, shard and offset.
    """
    row = row or reader.row(sample_id)
    if data is None:
        data = reader.read_image(sample_id)
    try:
        return decode_reduced(data, row.image_codec_name, (row.height, row.width), reduction)
    except ValueError as error:
        raise CorruptShardError(reader.describe(sample_id, "image"), f"cannot be decoded ({error})") from None


def decode_reduced(data: bytes | memoryview, codec: str, hw: tuple[int, int], reduction: int) -> np.ndarray:
    """Decode an image member, a JPEG at 1/reduction of its size.

    Pixel (i, j) of the result covers stored pixels from (i, j) * reduction on; sizes are rounded up, so the last row and column
    may reach past the image.

    Args:
        data: the member's bytes.
        codec: "jpeg", "png" or "lz4".
        hw: stored height and width, pixels.
        reduction: 1, 2, 4 or 8; 1 unless the codec is "jpeg".

    Returns:
        RGB, uint8, (ceil(H / reduction), ceil(W / reduction), 3); a JPEG's stays valid until this thread decodes the next one.

    Raises:
        ValueError: the bytes are damaged, or hold another size.
    """
    if codec == "jpeg":
        return decode_jpeg(data, hw, reduction)
    return decode_image(data, codec, height=hw[0], width=hw[1])


def resize_box(rgb_HWC: np.ndarray, box_yxyx: Sequence[float] | np.ndarray, out_HWC: np.ndarray) -> None:
    """Resize a box with an antialiasing triangle filter; what lies around the box is seen by its border pixels.

    Compiled where numba is installed; without it by libraries (`plainresize`), whose levels may be one higher or lower.

    Args:
        rgb_HWC: uint8, contiguous, (H, W, 3).
        box_yxyx: top, left, bottom, right in pixels of `rgb_HWC`; may lie between pixels.
        out_HWC: receives the result, uint8, contiguous, (target height, target width, 3).

    Raises:
        ValueError: compiled code is given a box that is empty, or not inside the image.
    """
    resize = find_kernel("resize").call
    if resize is None:
        resize_by_libraries(rgb_HWC, box_yxyx, out_HWC)
    else:
        top, left, bottom, right = (float(edge) for edge in box_yxyx)
        resize(rgb_HWC.reshape(len(rgb_HWC), -1), top, left, bottom, right, out_HWC.reshape(len(out_HWC), -1))


def flip_image(rgb_HWC: np.ndarray, hflip: bool, vflip: bool, out_HWC: np.ndarray) -> None:
    """Mirror an image left to right, top to bottom, or both, into another array."""
    cv2.flip(rgb_HWC, -1 if hflip and vflip else int(hflip), dst=out_HWC)


def warp_image(rgb_HWC: np.ndarray, matrix: np.ndarray, out_HWC: np.ndarray) -> None:
    """Sample an image bilinearly at matrix @ (x, y, 1) of each pixel's centre; 0 outside.

    Compiled where numba and the processor allow it; else by OpenCV, which gives the same values.

    Args:
        rgb_HWC: uint8, contiguous, (H, W, 3).
        matrix: from positions in `out_HWC` to positions in `rgb_HWC`, whole numbers at pixel centres, float64, (2, 3).
        out_HWC: receives the result, uint8, contiguous, another array.
    """
    warp = find_kernel("warp").call
    if warp is None or not warp(rgb_HWC, matrix, out_HWC):
        warp_by_opencv(rgb_HWC, matrix, out_HWC)


def warp_by_opencv(rgb_HWC: np.ndarray, matrix: np.ndarray, out_HWC: np.ndarray) -> None:
    """Do what `warp_image` does; four channels take half the time that OpenCV needs for three, to the same values."""
    height, width = out_HWC.shape[:2]
    rgbx_HWC = scratch_array("rgbx", (*rgb_HWC.shape[:2], 4), np.uint8)
    warped_HWC = scratch_array("warped", (height, width, 4), np.uint8)
    cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2RGBA, dst=rgbx_HWC)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cv2.warpAffine(
        rgbx_HWC, matrix, (width, height), dst=warped_HWC, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )
    cv2.cvtColor(warped_HWC, cv2.COLOR_RGBA2RGB, dst=out_HWC)


def transform_color(rgb_HWC: np.ndarray, matrix: np.ndarray) -> None:
    """Apply a matrix to (R, G, B, 1) of each pixel in place, rounded half up and clipped.

    Args:
        rgb_HWC: uint8, changed in place.
        matrix: (3, 4).
    """
    shifted = matrix.astype(np.float32)
    shifted[:, 3] += 0.5
    levels, values = (scratch_array(name, rgb_HWC.shape, np.float32) for name in ("levels", "values"))
    np.copyto(levels, rgb_HWC)
    cv2.transform(levels, shifted, dst=values)
    np.clip(values, 0, 255, out=values)  # from here on, to cut off the fraction is to round half up
    np.copyto(rgb_HWC, values, casting="unsafe")
