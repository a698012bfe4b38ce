"""A sample of two LZ4 frames as one compiled call: image inflated and warped into its batch, mask inflated and looked up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from unetfast.loader.kernels.compiled import array, compile_kernel
from unetfast.loader.kernels.lz4 import inflate_frame
from unetfast.loader.kernels.mask import look_up
from unetfast.loader.kernels.warp import check_opencv, warp


def build_kernel(dtype: np.dtype[Any]) -> Callable[..., int]:
    """Compile `_load` for one kind of ids, or load what an earlier process has compiled.

    Args:
        dtype: of stored and wanted ids, uint8 or uint16.

    Returns:
        The kernel; takes what `_load` takes, all arrays contiguous.

    Raises:
        NoKernelError: as in warp.py.
    """
    check_opencv()
    ids, byte = numba.from_dtype(dtype), numba.uint8
    member, matrix = array(byte, 1, readonly=True), array(numba.float64, 2, readonly=True)
    image, box = array(byte, 3), array(numba.int64, 1, readonly=True)
    mask = (array(ids, 2), numba.boolean, matrix, box, ids, array(ids, 2))
    return compile_kernel(_load, numba.int64(member, member, image, numba.boolean, matrix, image, *mask))


def _load(
    image_data: np.ndarray,
    mask_data: np.ndarray,
    rgb_HWC: np.ndarray,
    has_warp: bool,
    image_matrix: np.ndarray,
    out_HWC: np.ndarray,
    stored: np.ndarray,
    has_bits: bool,
    mask_matrix: np.ndarray,
    box: np.ndarray,
    ignore_index: int,
    out_HW: np.ndarray,
) -> int:
    """Inflate both, look up the mask, and warp the image where it is to be warped.

    Args:
        image_data: an LZ4 frame, uint8, (n,).
        mask_data: likewise.
        rgb_HWC: receives the image as it is stored.
        has_warp: whether it is warped.
        image_matrix: as `warp` has it; not used without a warp.
        out_HWC: receives the warped image; not used without a warp.
        stored: receives the mask as it is stored: class ids, (H, W), or rows of bits, uint8, (H, B).
        has_bits: whether it is bits.
        mask_matrix: as `look_up` has it, and so are `box`, `ignore_index` and `out_HW`.
        box: top, left, bottom, right, int64, (4,).
        ignore_index: id of what lies outside of the box.
        out_HW: receives the ids.

    Returns:
        The number of a `packed.Done`.
    """
    if not inflate_frame(mask_data, stored.reshape(-1).view(np.uint8)) or not inflate_frame(image_data, rgb_HWC.reshape(-1)):
        return 0
    look_up(stored, has_bits, mask_matrix, box, ignore_index, out_HW)
    return 2 if not has_warp or warp(rgb_HWC, image_matrix, out_HWC) else 1
