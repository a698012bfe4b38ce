"""Masks of the CPU backend: the stored class at floor(matrix @ (x, y, 1)) of each target pixel's centre.

The floor is that of float64 sums, added as (what the row gives) + (what the column gives), and every path here computes just
these sums: a mask does not depend on the path taken. With numba it is one compiled call (kernels/mask.py), three to seven times
as fast as OpenCV and numpy, which do it where numba is not. Masks of one bit a pixel are looked up in their bits: to unpack a
car at 1918x1280 would cost more than the lookup of all its target pixels.

Axis letters: H height, W width, B bytes of a row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.scratch import scratch_array

# OpenCV's maps hold places as int16
_MAX_PLACE = (1 << 15) - 2
# with fewer stored pixels than so many a target pixel, to unpack them costs less than to look for each pixel's bit
_UNPACK_BELOW = 16
# places in the kernel are 31 bits, of pixels that may be bits
MAX_KERNEL_SIZE = 1 << 28
_NOTHING = np.empty(0)  # an argument of OpenCV that is not used


class StoredMask(NamedTuple):
    """A mask as it was packed, inflated.

    Args:
        stored: class ids, uint8 or uint16, (H, W); or rows of bits, most significant first, uint8, (H, B).
        packed_width: of a mask of bits, pixels; 0 for one of ids.
    """

    stored: np.ndarray
    packed_width: int = 0

    @property
    def is_packed(self) -> bool:
        return self.packed_width > 0

    def unpack(self) -> np.ndarray:
        """Return the class ids, (H, W)."""
        return np.unpackbits(self.stored, axis=1, count=self.packed_width) if self.is_packed else self.stored


def gather_mask(
    stored: np.ndarray,
    matrix: np.ndarray,
    crop_yxyx: Sequence[int] | np.ndarray,
    ignore_index: int,
    out_HW: np.ndarray,
    *,
    is_packed: bool = False,
) -> None:
    """Look up the class at floor(matrix @ (x, y, 1)) of each pixel's centre; `ignore_index` outside the crop box.

    Args:
        stored: class ids, uint8 or uint16, contiguous, (H, W); or, where packed, rows of bits, most significant first, uint8,
            (H, B).
        matrix: from target positions to stored ones, whole numbers at pixel edges, float64, (2, 3).
        crop_yxyx: top, left, bottom, right, inside the mask, whole pixels.
        ignore_index: id of what lies outside.
        out_HW: receives the ids; contiguous, of the ids' dtype.
        is_packed: whether `stored` holds bits.
    """
    look_up = find_kernel("mask", out_HW.dtype).call
    if look_up is None or stored.size >= MAX_KERNEL_SIZE:
        gather_by_opencv(stored, matrix, crop_yxyx, ignore_index, out_HW, is_packed=is_packed)
    else:
        look_up(stored, is_packed, matrix, np.asarray(crop_yxyx, dtype=np.int64), ignore_index, out_HW)


def gather_by_opencv(
    stored: np.ndarray,
    matrix: np.ndarray,
    crop_yxyx: Sequence[int] | np.ndarray,
    ignore_index: int,
    out_HW: np.ndarray,
    *,
    is_packed: bool = False,
) -> None:
    """Do what `gather_mask` does, without numba."""
    (x_by_x, x_by_y, x_shift), (y_by_x, y_by_y, y_shift) = matrix.tolist()
    top, left, bottom, right = box = tuple(int(edge) for edge in crop_yxyx)
    height, width = out_HW.shape
    if x_by_y == 0 and y_by_x == 0:
        rows, columns = _places(height, y_by_y, y_shift), _places(width, x_by_x, x_shift)
        _gather_upright(stored, rows, columns, box, ignore_index, out_HW, is_packed)
        return
    # what rows and columns give, inside the factors of the product that adds them
    row_factor, column_factor = np.ones((height, 3)), np.zeros((3, width, 2))
    by_row, by_column = row_factor[:, :2], column_factor[2]
    by_row[:, 0], by_column[:, 0] = _centres(height) * x_by_y + (x_shift - left), _centres(width) * x_by_x
    by_row[:, 1], by_column[:, 1] = _centres(height) * y_by_y + (y_shift - top), _centres(width) * y_by_x
    fits = max(bottom - top, right - left) <= _MAX_PLACE and _fit_map(by_row, by_column)
    if is_packed:
        bits_HB, first_bit = stored[top:bottom, left // 8 : -(-right // 8)], left % 8
        size_hw = (bottom - top, right - left)
        if fits and math.prod(size_hw) >= _UNPACK_BELOW * out_HW.size:
            _gather_bits(bits_HB, _find_places(row_factor, column_factor), first_bit, size_hw, ignore_index, out_HW)
            return
        ids_HW = np.unpackbits(bits_HB, axis=1)[:, first_bit : first_bit + right - left]
    else:
        ids_HW = stored[top:bottom, left:right]
    if fits:
        _remap(ids_HW, _find_places(row_factor, column_factor), ignore_index, out_HW)
    else:
        _gather_far(ids_HW, by_row, by_column, ignore_index, out_HW)


def _places(count: int, by_place: float, shift: float) -> np.ndarray:
    """Find the stored row (or column) of each target row (or column), int64, (count,)."""
    return np.asarray(np.floor(_centres(count) * by_place + shift), dtype=np.int64)


@functools.lru_cache(maxsize=64)
def _centres(count: int) -> np.ndarray:
    """Return 0.5, 1.5, ..., read-only, float64, (count,)."""
    centres = np.arange(count) + 0.5
    centres.flags.writeable = False
    return centres


def _gather_upright(
    stored: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    crop_yxyx: tuple[int, ...],
    ignore_index: int,
    out_HW: np.ndarray,
    is_packed: bool,
) -> None:
    """Take whole rows, then whole columns: these are copies of memory, where pixels one by one would be lookups."""
    top, left, bottom, right = crop_yxyx
    rows_out, rows = _hold_inside(rows, top, bottom)
    columns_out, columns = _hold_inside(columns, left, right)
    if is_packed:
        first_byte = left // 8
        taken = np.unpackbits(stored[:, first_byte : -(-right // 8)][rows], axis=1)
        columns = columns - 8 * first_byte
    else:
        taken, columns = stored[:, left:right][rows], columns - left
    step = int(columns[-1] > columns[0]) * 2 - 1
    if len(columns) > 1 and bool((np.diff(columns) == step).all()):
        first, stop = int(columns[0]), int(columns[-1]) + step
        out_HW[...] = taken[:, first : None if stop < 0 else stop : step]
    else:
        cv2.transpose(cv2.transpose(taken)[columns], dst=out_HW)
    if rows_out is not None:
        out_HW[rows_out] = ignore_index
    if columns_out is not None:
        out_HW[:, columns_out] = ignore_index


def _hold_inside(places: np.ndarray, start: int, stop: int) -> tuple[np.ndarray | None, np.ndarray]:
    """Say which places lie outside [start, stop), None for none, and move those to its nearest edge."""
    first, last = sorted((int(places[0]), int(places[-1])))  # places rise or fall
    if first >= start and last < stop:
        return None, places
    return (places < start) | (places >= stop), np.clip(places, start, stop - 1)


def _fit_map(by_row: np.ndarray, by_column: np.ndarray) -> bool:
    """Say whether all positions fit into a map's int16; a sum of two lines has its extremes in the corners."""
    rows, columns = (by_row[0].tolist(), by_row[-1].tolist()), (by_column[0].tolist(), by_column[-1].tolist())
    return all(abs(row[axis] + column[axis]) < _MAX_PLACE for row in rows for column in columns for axis in (0, 1))


def _find_places(row_factor: np.ndarray, column_factor: np.ndarray) -> np.ndarray:
    """Floor all sums of a row's and a column's part: x, y, int16, (H, W, 2); valid until this thread's next call.

    The sums are a matrix product with ones and zeros beside them: every product is exact and one addition rounds, as in a plain
    sum, but it takes a third of the time in which numpy adds rows and columns.

    Args:
        row_factor: x, y of each row's part, and 1, float64, (H, 3).
        column_factor: 0 twice, then x and y of each column's part, float64, (3, W, 2); changed.
    """
    height, width = len(row_factor), column_factor.shape[1]
    column_factor[0, :, 0] = column_factor[1, :, 1] = 1.0
    positions = scratch_array("positions", (height, 2 * width), np.float64)
    cv2.gemm(row_factor, column_factor.reshape(3, -1), 1.0, _NOTHING, 0.0, dst=positions)
    places = scratch_array("places", (height, width, 2), np.int16)
    np.copyto(places.reshape(height, -1), np.floor(positions, out=positions), casting="unsafe")
    return places


def _remap(stored: np.ndarray, places: np.ndarray, outside: int, out_HW: np.ndarray) -> None:
    """Take stored[y, x] of each pixel; `outside` where there is none."""
    cv2.remap(
        stored, places, _NOTHING, cv2.INTER_NEAREST, dst=out_HW, borderMode=cv2.BORDER_CONSTANT, borderValue=float(outside)
    )


def _gather_bits(
    rows_HB: np.ndarray, places: np.ndarray, first_bit: int, size_hw: tuple[int, int], ignore_index: int, out_HW: np.ndarray
) -> None:
    """Look up the bytes that hold the bits, then take each its bit.

    Args:
        rows_HB: the bytes of the crop box.
        places: x, y in the box, int16, (H, W, 2); changed.
        first_bit: of the box in its first bytes.
        size_hw: of the box, pixels.
        ignore_index: id of what lies outside it.
        out_HW: receives the ids.
    """
    hw = out_HW.shape
    pairs = places.view(np.int32)[..., 0]  # y in the upper half, x in the lower one
    x = np.bitwise_and(pairs, 0xFFFF, out=scratch_array("x", hw, np.int32))
    # seen as unsigned, what lies before the box lies behind it too
    outside = np.greater_equal(x, size_hw[1], out=scratch_array("outside", hw, np.bool_))
    outside_y = scratch_array("outside_y", hw, np.bool_)
    outside |= np.greater_equal(pairs.view(np.uint32), size_hw[0] << 16, out=outside_y)
    if first_bit:
        x += first_bit
    bits = scratch_array("bits", hw, np.uint8)
    np.copyto(bits, x, casting="unsafe")
    np.bitwise_and(np.invert(bits, out=bits), 7, out=bits)
    x >>= 3
    pairs &= -0x10000
    pairs |= x
    _remap(rows_HB, places, 0, out_HW)
    out_HW >>= bits
    out_HW &= 1
    np.copyto(out_HW, ignore_index, where=outside)


def _gather_far(mask_HW: np.ndarray, by_row: np.ndarray, by_column: np.ndarray, ignore_index: int, out_HW: np.ndarray) -> None:
    """Look up where places do not fit into a map."""
    x, y = (np.floor(np.add.outer(by_row[:, axis], by_column[:, axis])) for axis in (0, 1))
    inside = (x >= 0) & (x < mask_HW.shape[1]) & (y >= 0) & (y < mask_HW.shape[0])
    out_HW[...] = ignore_index
    out_HW[inside] = mask_HW[y[inside].astype(np.int64), x[inside].astype(np.int64)]
