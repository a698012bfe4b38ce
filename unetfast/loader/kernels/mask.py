"""The mask lookup as one compiled call without the interpreter's lock, where OpenCV and numpy need about ten.

Sums are those of `masklookup`'s other path, in the same order, and none may be contracted or reordered (no
fastmath), so the classes are the same pixel for pixel.

Axis letters: H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from unetfast.loader.kernels.compiled import add32, array, compile_kernel, mul32, part

_OUTSIDE = 8  # the shift of a pixel outside of the crop box; those of bits are 0 to 7


def build_kernel(dtype: np.dtype[Any]) -> Callable[..., None]:
    """Compile `look_up` for one kind of ids, or load what an earlier process has compiled.

    Args:
        dtype: of stored and wanted ids, uint8 or uint16.

    Returns:
        The kernel; takes what `look_up` takes, all arrays contiguous.
    """
    ids = numba.from_dtype(dtype)
    stored, matrix, box = (array(kind, ndim, readonly=True) for kind, ndim in ((ids, 2), (numba.float64, 2), (numba.int64, 1)))
    return compile_kernel(_look_up_alone, numba.void(stored, numba.boolean, matrix, box, ids, array(ids, 2)))


@part
def _set_row(taken_W: np.ndarray, shift_W: np.ndarray, has_bits: bool, ignore_index: int, out_W: np.ndarray) -> None:
    if has_bits:
        for column in range(len(out_W)):
            shift = shift_W[column]
            out_W[column] = (taken_W[column] >> shift) & 1 if shift < _OUTSIDE else ignore_index
    else:
        for column in range(len(out_W)):
            out_W[column] = taken_W[column] if shift_W[column] < _OUTSIDE else ignore_index


@part
def _look_up_turned(
    stored: np.ndarray, has_bits: bool, matrix: np.ndarray, box: np.ndarray, ignore_index: int, out_HW: np.ndarray
) -> None:
    """Row by row: find the places, take what is stored there, and last set the pixels that are outside."""
    height, width = out_HW.shape
    top, left, num_rows, num_columns = box[0], box[1], np.float64(box[2] - box[0]), np.float64(box[3] - box[1])
    flat, unit = stored.reshape(-1), np.int32(3 if has_bits else 0)  # a byte holds 2 ** 3 bits
    pitch = np.int32(np.int32(stored.shape[1]) << unit)
    first = np.int32(top * pitch + left)
    place_W, shift_W, taken_W = np.empty(width, np.uint32), np.empty(width, np.uint8), np.empty(width, stored.dtype)
    x_of_column_W, y_of_column_W = np.empty(width), np.empty(width)
    for column in range(width):
        x_of_column_W[column] = (column + 0.5) * matrix[0, 0]
        y_of_column_W[column] = (column + 0.5) * matrix[1, 0]
    for row in range(height):
        x_of_row = (row + 0.5) * matrix[0, 1] + (matrix[0, 2] - left)
        y_of_row = (row + 0.5) * matrix[1, 1] + (matrix[1, 2] - top)
        for column in range(width):
            x = x_of_row + x_of_column_W[column]
            y = y_of_row + y_of_column_W[column]
            is_inside = (x >= 0) & (x < num_columns) & (y >= 0) & (y < num_rows)
            # where it is not negative, to cut off the fraction is to floor
            place = add32(add32(mul32(np.int32(y), pitch), np.int32(x)), first)
            place_W[column] = np.uint32(place >> unit) if is_inside else np.uint32(0)
            shift_W[column] = np.uint8(~place & 7) if is_inside else np.uint8(_OUTSIDE)
        for column in range(width):
            taken_W[column] = flat[place_W[column]]
        _set_row(taken_W, shift_W, has_bits, ignore_index, out_HW[row])


@part
def _is_run(place_W: np.ndarray, shift_W: np.ndarray) -> bool:
    """Say whether each place is the one after the last, and all are inside."""
    for column in range(len(place_W)):
        if shift_W[column] == _OUTSIDE or place_W[column] != place_W[0] + np.uint32(column):
            return False
    return True


@part
def _look_up_upright(
    stored: np.ndarray, has_bits: bool, matrix: np.ndarray, box: np.ndarray, ignore_index: int, out_HW: np.ndarray
) -> None:
    """Find the columns once, for they are those of every row; where they are neighbours, rows are copied."""
    height, width = out_HW.shape
    top, left, bottom, right = box[0], box[1], box[2], box[3]
    unit = np.int32(3 if has_bits else 0)
    place_W, shift_W, taken_W = np.empty(width, np.uint32), np.empty(width, np.uint8), np.empty(width, stored.dtype)
    for column in range(width):
        x = np.floor((column + 0.5) * matrix[0, 0] + matrix[0, 2])
        is_inside = (x >= left) & (x < right)
        place = np.int32(x)
        place_W[column] = np.uint32(place >> unit) if is_inside else np.uint32(0)
        shift_W[column] = np.uint8(~place & 7) if is_inside else np.uint8(_OUTSIDE)
    is_run = not has_bits and _is_run(place_W, shift_W)
    for row in range(height):
        y = np.floor((row + 0.5) * matrix[1, 1] + matrix[1, 2])
        if not top <= y < bottom:
            out_HW[row] = ignore_index
            continue
        stored_W, out_W = stored[np.int64(y)], out_HW[row]
        if is_run:
            run_W = stored_W[place_W[0] :]
            for column in range(width):
                out_W[column] = run_W[column]
        else:
            for column in range(width):
                taken_W[column] = stored_W[place_W[column]]
            _set_row(taken_W, shift_W, has_bits, ignore_index, out_W)


@part
def look_up(
    stored: np.ndarray, has_bits: bool, matrix: np.ndarray, box: np.ndarray, ignore_index: int, out_HW: np.ndarray
) -> None:
    """Do what `masklookup.gather_mask` says.

    Args:
        stored: class ids, (H, W), or rows of bits, (H, B); fewer than 2 ** 31 pixels, for places are int32.
        has_bits: whether it is bits.
        matrix: from target positions to stored ones, float64, (2, 3).
        box: top, left, bottom, right, int64, (4,).
        ignore_index: id of what lies outside of the box.
        out_HW: receives the ids.

    Raises:
        ValueError: the box is empty, or not inside the mask.
    """
    width = stored.shape[1] * 8 if has_bits else stored.shape[1]
    if not (0 <= box[0] < box[2] <= stored.shape[0] and 0 <= box[1] < box[3] <= width):
        raise ValueError("the crop box is not inside the mask")
    if matrix[0, 1] == 0 and matrix[1, 0] == 0:
        _look_up_upright(stored, has_bits, matrix, box, ignore_index, out_HW)
    else:
        _look_up_turned(stored, has_bits, matrix, box, ignore_index, out_HW)


def _look_up_alone(
    stored: np.ndarray, has_bits: bool, matrix: np.ndarray, box: np.ndarray, ignore_index: int, out_HW: np.ndarray
) -> None:
    look_up(stored, has_bits, matrix, box, ignore_index, out_HW)
