"""The antialiased resize of the CPU loader as one compiled call.

The triangle filter of Pillow and torch: its half width is one source pixel or one target pixel, whichever is larger, and
weights are normalised over the pixels inside the image. Down the columns first: eight rows of the result at a time are blended
from rows of the source, turned so that what they have in one column lies together, and blended along the rows.

Between the two, levels are kept in 16 bits, as 256ths. Weights are 65536ths, each the difference of two rounded sums, so that
they add up to one; products are cut off at 256ths, and half a 256th for each is added. The result is rounded once, half up. It
differs from that of exact sums at less than 1 value in 100; torch's and Pillow's, which are rounded to bytes in between, at 9
to 21. Pixels are integer arithmetic, and weights float64 in one order, so every machine gives the same bytes.

Reductions by more than 15, and boxes of less than 22 columns, go through plain loops with wider numbers.

Axis letters: H height, B bytes of a row, three for each pixel.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from unetfast.loader.kernels import lanes
from unetfast.loader.kernels.compiled import array, compile_kernel, part

_ONE = 65536
_FINE_ONE = 1 << 24  # of the plain loops
_MAX_TAPS = 32  # with more, what is cut off from products could come near to half a level
_CHUNK = _COLUMN = lanes.NUM_BYTES  # what is blended at once of a source row, and of eight rows' column
_HALF_LEVEL = 128
_EVEN = 1 << 16 | 1  # times a number: that number in both halves of 32 bits


def build_kernel() -> Callable[..., None]:
    """Compile `_resize`, or load what an earlier process has compiled.

    Returns:
        The kernel; takes what `_resize` takes, all arrays contiguous.
    """
    source, result = array(numba.uint8, 2, readonly=True), array(numba.uint8, 2)
    return compile_kernel(_resize, numba.void(source, *[numba.float64] * 4, result))


@part
def _count_taps(edge: float, far_edge: float, num_target: int) -> int:
    """Return how many source pixels one target pixel sees at most."""
    return int(2.0 * max((far_edge - edge) / num_target, 1.0)) + 1


@part
def _weigh(edge: float, far_edge: float, num_source: int, is_fine: bool, seen: np.ndarray, weights: np.ndarray) -> int:
    """Find which source pixels each target pixel sees along one axis, and how much of each.

    Args:
        edge: where the box begins, source pixels.
        far_edge: where it ends.
        num_source: pixels of the source.
        is_fine: whether weights are for the plain loops, where they add up to `_FINE_ONE`; if not, to `_ONE`, each is in both
            halves, and one that is all of them is cut off to 65535.
        seen: receives the first pixel that each sees, and how many, (pixels of the target, 2).
        weights: receives the weights, then zeros, uint32, (pixels of the target, taps).

    Returns:
        How many source pixels one sees at most.
    """
    num_target, num_taps = weights.shape
    scale = (far_edge - edge) / num_target
    reach = max(scale, 1.0)
    per_pixel, one = 1.0 / reach, np.float64(_FINE_ONE if is_fine else _ONE)
    sums = np.empty(num_taps, np.float64)
    most = 0
    for place in range(num_target):
        centre = edge + (place + 0.5) * scale
        start = max(int(centre - reach + 0.5), 0)
        total, away = 0.0, start + 0.5 - centre
        for tap in range(num_taps):
            level = max(1.0 - abs(away + tap) * per_pixel, 0.0)
            total += level if start + tap < num_source else 0.0
            sums[tap] = total
        share, taken = one / total, 0
        for tap in range(num_taps):
            rounded = int(sums[tap] * share + 0.5)
            weight = rounded - taken
            weights[place, tap] = np.uint32(weight if is_fine else min(weight, _ONE - 1) * _EVEN)
            taken = rounded
        count = min(min(int(centre + reach + 0.5), num_source) - start, num_taps)
        seen[place, 0], seen[place, 1] = start, count
        most = max(most, count)
    return most


@part
def _blend_rows(
    source: np.ndarray,
    place: int,
    stride: int,
    count: int,
    weights: np.ndarray,
    y: int,
    blended: np.ndarray,
    row: int,
    num: int,
) -> None:
    """Blend one row of the result from `num` bytes of each source row: a chunk at least; the last may overlap its neighbour."""
    num_cut = 0
    for tap in range(count):
        num_cut += weights[y, tap] & 255 != 0
    begin = lanes.splat(np.uint32((num_cut + 1) // 2 * _EVEN))
    out_place = row * 2 * blended.shape[1]
    for byte in range(0, num, _CHUNK):
        shift = min(byte, num - _CHUNK)
        at = place + shift
        first, last = begin, begin
        for tap in range(count):
            weight = weights[y, np.uintp(tap)]
            first = lanes.add_product(first, lanes.load_first_levels(source, at), weight)
            last = lanes.add_product(last, lanes.load_last_levels(source, at), weight)
            at += stride
        lanes.store_both(blended, out_place + 2 * shift, first, last)


@part
def _blend_rows_plainly(
    source: np.ndarray, first_y: int, first: int, count: int, weights: np.ndarray, y: int, sums: np.ndarray
) -> None:
    """Blend one row of the result from any number of rows of any width: sums in 65536ths of 256ths, and half a 256th."""
    for byte in range(len(sums)):
        sums[byte] = _ONE // 2
    for tap in range(count):
        weight, from_y = weights[y, tap], first_y + tap
        for byte in range(len(sums)):
            sums[byte] += weight * np.uint32(source[from_y, np.uintp(first + byte)])


@part
def _blend_columns(
    columns: np.ndarray, begin_place: int, first: int, seen: np.ndarray, most: int, weights: np.ndarray, levels: np.ndarray
) -> None:
    """Blend all columns of eight rows of the result: levels, and a fourth byte for each pixel."""
    begin = lanes.splat(np.uint32((_HALF_LEVEL + (most + 1) // 2) * _EVEN))
    for column in range(len(seen)):
        total, at = begin, begin_place + (seen[column, 0] - first) * _COLUMN
        for tap in range(most):
            total = lanes.add_product(total, lanes.load(columns, at), weights[column, np.uintp(tap)])
            at += _COLUMN
        lanes.store_levels(levels, column * 32, total)


@part
def _write_rows(levels: np.ndarray, num_rows: int, first_row: int, out: np.ndarray) -> None:
    """Write rows of the result from eight rows' levels."""
    width, whole = len(levels), 0
    if num_rows == lanes.ROWS:
        whole = width // 8 * 8
        for column in range(0, whole, 8):
            place = first_row * out.shape[1] + 3 * column
            lanes.turn_levels_back(levels, column * 32, out, place, out.shape[1])
    for row in range(num_rows):
        for column in range(whole, width):
            for channel in range(3):
                out[first_row + row, 3 * column + channel] = levels[column, row, channel]


@part
def _blend_columns_plainly(
    blended: np.ndarray, row: int, first: int, seen: np.ndarray, weights: np.ndarray, out: np.ndarray, y: int
) -> None:
    """Blend all columns of one row of the result, each from any number of columns."""
    for column in range(len(seen)):
        for channel in range(3):
            total, place = np.uint64(_HALF_LEVEL * _FINE_ONE), 3 * (seen[column, 0] - first) + channel
            for tap in range(seen[column, 1]):
                total += np.uint64(weights[column, tap]) * np.uint64(blended[row, place + 3 * tap])
            out[y, 3 * column + channel] = np.uint8(total >> np.uint64(32))


def _resize(source_HB: np.ndarray, top: float, left: float, bottom: float, right: float, out_HB: np.ndarray) -> None:
    """Resize a box; what lies around it is seen by its border pixels.

    Args:
        source_HB: rows of pixels, uint8.
        top: edge of the box, pixels; may lie between two, like the other edges.
        left: edge.
        bottom: edge.
        right: edge.
        out_HB: receives the result, uint8.

    Raises:
        ValueError: the box is empty, or not inside the image.
    """
    (height, stride), (out_height, out_stride) = source_HB.shape, out_HB.shape
    width, out_width = stride // 3, out_stride // 3
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError("the box is not inside the image")
    if out_height < 1 or out_width < 1:
        return
    num_y, num_x = _count_taps(top, bottom, out_height), _count_taps(left, right, out_width)
    seen_y, weights_y = np.empty((out_height, 2), np.int64), np.empty((out_height, num_y), np.uint32)
    seen_x, weights_x = np.empty((out_width, 2), np.int64), np.empty((out_width, num_x), np.uint32)
    is_fine_x = num_x > _MAX_TAPS
    most_x = _weigh(left, right, width, is_fine_x, seen_x, weights_x)
    first_x = seen_x[0, 0]
    num_columns = seen_x[out_width - 1, 0] + seen_x[out_width - 1, 1] - first_x
    num_bytes = 3 * num_columns
    is_fine_y = num_y > _MAX_TAPS or num_bytes < _CHUNK
    _weigh(top, bottom, height, is_fine_y, seen_y, weights_y)

    # rows of the result before their columns are blended; what lies behind their end is read and has no weight
    blended = np.empty((lanes.ROWS, num_bytes + _CHUNK), np.uint16)
    columns = np.empty((num_columns + most_x + 2) * _COLUMN, np.uint8)
    begin = -int(columns.ctypes.data) & (_COLUMN - 1)  # where a line of the processor's cache begins
    levels = np.empty((out_width, lanes.ROWS, 4), np.uint8)
    sums = np.empty(num_bytes if is_fine_y else 0, np.uint32)
    num_rows = min(lanes.ROWS, out_height)
    for next_row in range(0, out_height, lanes.ROWS):
        first_row = min(next_row, out_height - num_rows)
        for row in range(num_rows):
            y = first_row + row
            start, count = seen_y[y, 0], seen_y[y, 1]
            if is_fine_y:
                _blend_rows_plainly(source_HB, start, 3 * first_x, count, weights_y, y, sums)
                for byte in range(num_bytes):
                    blended[row, byte] = sums[byte] >> np.uint32(16)
            else:
                _blend_rows(source_HB, start * stride + 3 * first_x, stride, count, weights_y, y, blended, row, num_bytes)
            if is_fine_x:
                _blend_columns_plainly(blended, row, first_x, seen_x, weights_x, out_HB, y)
        if not is_fine_x:
            for column in range(0, num_columns, 2):
                lanes.turn_two_columns(blended, 2 * blended.shape[1], column * 6, columns, begin + column * _COLUMN)
            _blend_columns(columns, begin, first_x, seen_x, most_x, weights_x, levels)
            _write_rows(levels, num_rows, first_row, out_HB)
