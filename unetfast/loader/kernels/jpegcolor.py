"""Samples of a JPEG's components -> RGB pixels, by the numbers of libjpeg's "fancy" upsampling (jdsample.c) and jdcolor.c.

Source of the colours: JFIF 1.02, which takes BT.601's factors over the whole range of a byte; here times 2 ** 16, with whole
parts taken out so that what is left is a 16-bit factor.
"""

from __future__ import annotations

import numpy as np

from unetfast.loader.kernels.compiled import Int, add16, high16, mul16, part, right16, sub16

# loops that write to buffers run to a multiple of this many pixels: what is over costs less than a loop's odd end
STRIDE = 64

_ONE, _TWO, _FOUR, _SEVEN, _EIGHT = (np.int16(value) for value in (1, 2, 4, 7, 8))
_CENTRE, _LOWEST = np.int16(128), np.int16(-32768)
_BY_RED, _BY_BLUE = np.int16(91881 - 65536), np.int16(116130 - 2 * 65536)
_GREEN_BY_BLUE, _GREEN_BY_RED = np.int16(-22554), np.int16(65536 - 46802)
_0, _1, _2, _3 = (np.uintp(value) for value in range(4))


@part
def _limit(value: Int) -> Int:
    return np.uint8(min(max(value, np.int16(0)), np.int16(255)))


@part
def _add_near(near: Int, far: Int) -> Int:
    """Return 3 times the nearer and once the further."""
    return add16(add16(add16(near, near), near), far)


@part
def _reduce(value: Int, half: Int, bits: Int) -> Int:
    return sub16(right16(add16(value, half), bits), _CENTRE)


@part
def copy_row(plane: np.ndarray, place: Int, width: Int, out_W: np.ndarray) -> None:
    """Take a row of a component that has a sample a pixel, less 128."""
    for column in range(np.uintp(width)):
        out_W[column] = np.int16(plane[place + column]) - np.int16(128)


@part
def double_row(plane: np.ndarray, place: Int, width: Int, out_W: np.ndarray) -> None:
    """Take a row of a component that has a sample for two pixels: two copies each, less 128."""
    for column in range(np.uintp(width)):
        out_W[column] = np.int16(plane[place + (column >> _1)]) - np.int16(128)


@part
def smooth_row(plane: np.ndarray, place: Int, num_samples: Int, out_W: np.ndarray) -> None:
    """Take a row of a component that has a sample for two pixels: 3/4 the nearer and 1/4 the further one, less 128.

    Args:
        plane: uint8, (n,).
        place: of the row's first sample.
        num_samples: of the row, 3 or more.
        out_W: receives the pixels, int16, (2 * num_samples,) or more.
    """
    last = np.uintp(num_samples - 1)
    for column in range(_1, last):
        near = np.int16(plane[place + column])
        before, after = np.int16(plane[place + column - _1]), np.int16(plane[place + column + _1])
        out_W[_2 * column] = _reduce(_add_near(near, before), _ONE, _TWO)
        out_W[_2 * column + _1] = _reduce(_add_near(near, after), _TWO, _TWO)
    for column in (_0, last):
        near = np.int16(plane[place + column])
        before, after = plane[place + max(column, _1) - _1], plane[place + min(column + _1, last)]
        out_W[_2 * column] = _reduce(_add_near(near, np.int16(before)), _ONE, _TWO)
        out_W[_2 * column + _1] = _reduce(_add_near(near, np.int16(after)), _TWO, _TWO)


@part
def smooth_rows(
    plane: np.ndarray,
    nears: tuple[Int, Int],
    fars: tuple[Int, Int],
    num_samples: Int,
    sums: tuple[np.ndarray, np.ndarray],
    outs: tuple[np.ndarray, np.ndarray],
) -> None:
    """Take a row of both components that have a sample for two by two pixels: 3/4 nearer, 1/4 further, both ways, less 128.

    Args:
        plane: uint8, (n,).
        nears: first sample of each component's nearer row.
        fars: first sample of each one's further row.
        num_samples: of a row, 3 or more.
        sums: working memory of each, int16, (2 + num_samples rounded up to STRIDE,) or more.
        outs: receive the pixels, int16, (2 * num_samples rounded up to STRIDE,) or more.
    """
    count = (np.uintp(num_samples) + np.uintp(STRIDE - 1)) // np.uintp(STRIDE) * np.uintp(STRIDE)
    sums0, sums1 = sums
    outs0, outs1 = outs
    near0, near1 = nears
    far0, far1 = fars
    for column in range(count):
        sums0[column + _1] = _add_near(np.int16(plane[near0 + column]), np.int16(plane[far0 + column]))
        sums1[column + _1] = _add_near(np.int16(plane[near1 + column]), np.int16(plane[far1 + column]))
    last = np.uintp(num_samples)
    sums0[_0], sums0[last + _1] = sums0[_1], sums0[last]
    sums1[_0], sums1[last + _1] = sums1[_1], sums1[last]
    for column in range(count):
        here0, here1 = sums0[column + _1], sums1[column + _1]
        outs0[_2 * column] = _reduce(_add_near(here0, sums0[column]), _EIGHT, _FOUR)
        outs0[_2 * column + _1] = _reduce(_add_near(here0, sums0[column + _2]), _SEVEN, _FOUR)
        outs1[_2 * column] = _reduce(_add_near(here1, sums1[column]), _EIGHT, _FOUR)
        outs1[_2 * column + _1] = _reduce(_add_near(here1, sums1[column + _2]), _SEVEN, _FOUR)


@part
def write_grey(plane: np.ndarray, place: Int, width: Int, out: np.ndarray, begin: Int) -> None:
    """Write a row of grey pixels; see `write_colors`."""
    for column in range(np.uintp(width)):
        level = plane[place + column]
        at = begin + _3 * column
        out[at], out[at + _1], out[at + _2] = level, level, level


@part
def write_colors(
    plane: np.ndarray,
    place: Int,
    width: Int,
    blues: np.ndarray,
    reds: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
    begin: Int,
) -> None:
    """Write a row of pixels.

    Args:
        plane: of the luma, uint8, (n,).
        place: of the row's first sample in it.
        width: pixels.
        blues: Cb of each pixel less 128, int16, (width rounded up to STRIDE,) or more.
        reds: Cr likewise.
        rows: working memory, uint8, (3 times width rounded up to STRIDE,) or more.
        out: receives R, G, B of each pixel, uint8, (n,).
        begin: of the row in `out`.
    """
    count = (np.uintp(width) + np.uintp(STRIDE - 1)) // np.uintp(STRIDE) * np.uintp(STRIDE)
    for column in range(count):
        level, blue, red = np.int16(plane[place + column]), blues[column], reds[column]
        to_red = add16(red, right16(add16(high16(add16(red, red), _BY_RED), _ONE), _ONE))
        twice = add16(blue, blue)
        to_blue = add16(twice, right16(add16(high16(twice, _BY_BLUE), _ONE), _ONE))
        # the sum of two products of 32 bits and a half, in pieces of 16: upper halves, and what the lower ones carry over
        one, other = mul16(blue, _GREEN_BY_BLUE), mul16(red, _GREEN_BY_RED)
        low, high = add16(one, other), add16(high16(blue, _GREEN_BY_BLUE), high16(red, _GREEN_BY_RED))
        carried = _ONE if add16(low, _LOWEST) < add16(one, _LOWEST) else np.int16(0)
        rounded = _ONE if low < np.int16(0) else np.int16(0)
        to_green = sub16(add16(high, add16(carried, rounded)), red)
        rows[column] = _limit(add16(level, to_red))
        rows[count + column] = _limit(add16(level, to_green))
        rows[_2 * count + column] = _limit(add16(level, to_blue))
    for column in range(np.uintp(width)):
        at = begin + _3 * column
        out[at], out[at + _1], out[at + _2] = rows[column], rows[count + column], rows[_2 * count + column]
