"""LZ4 frames by compiled code; samples of two of them, as packing at the batch's size makes them, in one call for it all.

Step by step such a sample is six short calls, each of which gives up the interpreter's lock and must get it back.

Axis letters: H height, W width, C channels (R, G, B).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from unetfast.data.indexrow import IndexRow
from unetfast.data.sample import IMAGE_CODECS, MASK_CODECS
from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.masklookup import MAX_KERNEL_SIZE
from unetfast.loader.scratch import scratch_array

_LZ4_IMAGE, LZ4_MASK = IMAGE_CODECS.index("lz4"), MASK_CODECS.index("lz4")
_DTYPES: dict[int, type[np.generic]] = {1: np.uint8, 8: np.uint8, 16: np.uint16}  # of stored masks, by bits of a pixel


class Done(IntEnum):
    """How much of a sample is done; the compiled code returns these numbers."""

    NOTHING = 0
    MASK_AND_DECODE = 1
    ALL = 2


def is_packed(row: IndexRow) -> bool:
    """Say whether image and mask are LZ4 frames."""
    return row.image_codec == _LZ4_IMAGE and row.mask_codec == LZ4_MASK


def load_packed(
    row: IndexRow,
    image_data: bytes | memoryview,
    mask_data: bytes | memoryview,
    rgb_HWC: np.ndarray,
    warp: tuple[np.ndarray, np.ndarray] | None,
    lookup: tuple[np.ndarray, np.ndarray, int, np.ndarray],
) -> Done:
    """Inflate image and mask, look the mask up, and warp the image.

    Args:
        row: of the index; `is_packed` is true of it.
        image_data: the image's member.
        mask_data: the mask's member.
        rgb_HWC: receives the image as it is stored, uint8, contiguous.
        warp: matrix and result of `pixels.warp_image`; None: the image is not warped.
        lookup: matrix, crop box (int64, (4,)), `ignore_index` and result of `masklookup.gather_mask`.

    Returns:
        NOTHING: there is no compiled code, or a frame is damaged or of a kind that is not ours; buffers hold anything.
        MASK_AND_DECODE: the warp is left to do. ALL: it is done, or none was asked for.
    """
    mask_matrix, box, ignore_index, out_HW = lookup
    kernel = find_kernel("packed", out_HW.dtype).call
    stored_HW = _take_buffer(row, out_HW.dtype)
    if kernel is None or stored_HW is None:
        return Done.NOTHING
    image_matrix, out_HWC = warp or (mask_matrix, rgb_HWC)
    members = np.frombuffer(image_data, np.uint8), np.frombuffer(mask_data, np.uint8)
    done = kernel(
        *members,
        *(rgb_HWC, warp is not None, image_matrix, out_HWC),
        *(stored_HW, row.mask_bits == 1, mask_matrix, box, ignore_index, out_HW),
    )
    return Done(done)


def inflate_mask(row: IndexRow, data: bytes | memoryview) -> np.ndarray | None:
    """Inflate a mask as it is stored, by compiled code.

    Args:
        row: of the index; its mask is an LZ4 frame.
        data: the mask's member.

    Returns:
        Class ids, uint8 or uint16, (H, W), or rows of bits, uint8, (H, B); valid until this thread inflates the next one. None
        where `load_packed` would have done nothing.
    """
    inflate, stored = find_kernel("lz4").call, _DTYPES.get(row.mask_bits, np.uint8)
    stored_HW = _take_buffer(row, np.dtype(stored))
    if inflate is None or stored_HW is None or not inflate(np.frombuffer(data, np.uint8), stored_HW.reshape(-1).view(np.uint8)):
        return None
    return stored_HW


def _take_buffer(row: IndexRow, dtype: np.dtype[Any]) -> np.ndarray | None:
    """Return memory for a mask as it is stored; None for one that compiled code does not know."""
    stored = _DTYPES.get(row.mask_bits)
    if stored is None or dtype != stored or not 0 < row.height * row.width < MAX_KERNEL_SIZE:
        return None
    width = (row.width + 7) // 8 if row.mask_bits == 1 else row.width
    return scratch_array("stored", (row.height, width), stored)
