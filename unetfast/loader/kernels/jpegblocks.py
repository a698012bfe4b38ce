"""Coefficients of a JPEG -> samples: the inverse transforms of libjpeg's jidctint.c and jidctred.c, to the same numbers.

Sixteen blocks at once, see jpegbits.py: the loops over lanes are plain arithmetic on neighbours, which the compiler turns into
vector instructions. All sums are 32 bits, as those of libjpeg.

Source of the algorithm: C. Loeffler, A. Ligtenberg and G. Moschytz, "Practical fast 1-D DCT algorithms with 11
multiplications", ICASSP 1989; the constants are the paper's times 2 ** 13.
"""

from __future__ import annotations

import numpy as np

from unetfast.loader.kernels.compiled import Int, Many, add32, left32, mul32, part, right32, sub32
from unetfast.loader.kernels.jpegbits import LANES, SLOTS

GROUP = SLOTS * LANES  # coefficients of a group
_BITS, _PASS1_BITS = np.int32(13), np.int32(2)  # of the constants, and of what the first pass leaves behind the point

# even part: what coefficients 2 and 6 give to rows 0 and 7 (the sign turned: 3 and 4), and to rows 1 and 6 (2 and 5)
_E0_2, _E0_6 = np.int32(4433 + 6270), np.int32(4433)
_E1_2, _E1_6 = np.int32(4433), np.int32(4433 - 15137)
# odd part: what coefficients 1, 3, 5 and 7 give to rows 0 to 3, added (and to rows 7 to 4, subtracted)
_O0_1, _O0_3, _O0_5, _O0_7 = (np.int32(value) for value in (12299 - 7373 + 9633 - 3196, 9633, 9633 - 3196, 9633 - 7373))
_O1_1, _O1_3, _O1_5, _O1_7 = (np.int32(value) for value in (9633, 25172 - 20995 + 9633 - 16069, 9633 - 20995, 9633 - 16069))
_O2_1, _O2_3, _O2_5, _O2_7 = (np.int32(value) for value in (9633 - 3196, 9633 - 20995, 16819 - 20995 + 9633 - 3196, 9633))
_O3_1, _O3_3, _O3_5, _O3_7 = (np.int32(value) for value in (9633 - 7373, 9633 - 16069, 9633, 2446 - 7373 + 9633 - 16069))
_SHIFT1, _SHIFT2 = np.int32(_BITS - _PASS1_BITS), np.int32(_BITS + _PASS1_BITS + 3)
_HALF1, _HALF2 = np.int32(1 << 10), np.int32((1 << 17) + (128 << 18))  # the second with the 128 that samples are raised by
_LOW_END = 9  # the last zigzag place of the first four diagonals, which lie in four rows and columns
_0, _1, _2, _3, _4, _5, _6, _7, _8 = (np.uintp(value) for value in range(9))
_LANES, _ROW = np.uintp(LANES), np.uintp(8 * LANES)


@part
def _dequant(coef: Int, step: Int) -> Int:
    """Return the product, of which libjpeg-turbo keeps 16 bits."""
    return np.int32(np.int16(mul32(np.int32(coef), np.int32(step))))


@part
def _limit(value: Int) -> Int:
    return np.uint32(min(max(value, np.int32(0)), np.int32(255)))


@part
def _sum2(a: Int, by_a: Int, b: Int, by_b: Int) -> Int:
    return add32(mul32(a, by_a), mul32(b, by_b))


@part
def _sum4(a: Int, by_a: Int, b: Int, by_b: Int, c: Int, by_c: Int, d: Int, by_d: Int) -> Int:
    return add32(_sum2(a, by_a, b, by_b), _sum2(c, by_c, d, by_d))


@part
def _finish(evens: Many, odds: Many, shift: Int) -> Many:
    even0, even1, even2, even3 = evens
    odd0, odd1, odd2, odd3 = odds
    return (
        right32(add32(even0, odd0), shift),
        right32(add32(even1, odd1), shift),
        right32(add32(even2, odd2), shift),
        right32(add32(even3, odd3), shift),
        right32(sub32(even3, odd3), shift),
        right32(sub32(even2, odd2), shift),
        right32(sub32(even1, odd1), shift),
        right32(sub32(even0, odd0), shift),
    )


@part
def _transform(ins: Many, half: Int, shift: Int) -> Many:
    """Transform eight numbers of at most 16 bits."""
    in0, in1, in2, in3, in4, in5, in6, in7 = ins
    plus, minus = add32(left32(add32(in0, in4), _BITS), half), add32(left32(sub32(in0, in4), _BITS), half)
    low, high = _sum2(in2, _E0_2, in6, _E0_6), _sum2(in2, _E1_2, in6, _E1_6)
    odds = (
        _sum4(in1, _O0_1, in3, _O0_3, in5, _O0_5, in7, _O0_7),
        _sum4(in1, _O1_1, in3, _O1_3, in5, _O1_5, in7, _O1_7),
        _sum4(in1, _O2_1, in3, _O2_3, in5, _O2_5, in7, _O2_7),
        _sum4(in1, _O3_1, in3, _O3_3, in5, _O3_5, in7, _O3_7),
    )
    return _finish((add32(plus, low), add32(minus, high), sub32(minus, high), sub32(plus, low)), odds, shift)


@part
def _transform_low(ins: Many, half: Int, shift: Int) -> Many:
    """Do what `_transform` does where the last four of the eight numbers are 0."""
    in0, in1, in2, in3 = ins
    flat = add32(left32(in0, _BITS), half)
    low, high = mul32(in2, _E0_2), mul32(in2, _E1_2)
    odds = (
        _sum2(in1, _O0_1, in3, _O0_3),
        _sum2(in1, _O1_1, in3, _O1_3),
        _sum2(in1, _O2_1, in3, _O2_3),
        _sum2(in1, _O3_1, in3, _O3_3),
    )
    return _finish((add32(flat, low), add32(flat, high), sub32(flat, high), sub32(flat, low)), odds, shift)


@part
def _store_column(outs: Many, work: np.ndarray, to: Int) -> None:
    work[to] = outs[0]
    work[to + _ROW] = outs[1]
    work[to + _2 * _ROW] = outs[2]
    work[to + _3 * _ROW] = outs[3]
    work[to + _4 * _ROW] = outs[4]
    work[to + _5 * _ROW] = outs[5]
    work[to + _6 * _ROW] = outs[6]
    work[to + _7 * _ROW] = outs[7]


@part
def _store_row(outs: Many, plane: np.ndarray, to: Int) -> None:
    left = _limit(outs[0]) | _limit(outs[1]) << np.uint32(8) | _limit(outs[2]) << np.uint32(16)
    right = _limit(outs[4]) | _limit(outs[5]) << np.uint32(8) | _limit(outs[6]) << np.uint32(16)
    plane[to] = np.uint32(left | _limit(outs[3]) << np.uint32(24))
    plane[to + _1] = np.uint32(right | _limit(outs[7]) << np.uint32(24))


@part
def _all_at_8(
    coefs: np.ndarray, first: Int, quant: np.ndarray, work: np.ndarray, plane: np.ndarray, place: Int, pitch: Int
) -> None:
    for to in range(_ROW):
        at = first + to
        ins = (
            _dequant(coefs[at], quant[to]),
            _dequant(coefs[at + _ROW], quant[to + _ROW]),
            _dequant(coefs[at + _2 * _ROW], quant[to + _2 * _ROW]),
            _dequant(coefs[at + _3 * _ROW], quant[to + _3 * _ROW]),
            _dequant(coefs[at + _4 * _ROW], quant[to + _4 * _ROW]),
            _dequant(coefs[at + _5 * _ROW], quant[to + _5 * _ROW]),
            _dequant(coefs[at + _6 * _ROW], quant[to + _6 * _ROW]),
            _dequant(coefs[at + _7 * _ROW], quant[to + _7 * _ROW]),
        )
        _store_column(_transform(ins, _HALF1, _SHIFT1), work, to)
    for row in range(_8):
        to = place + row * pitch
        for lane in range(_LANES):
            at = row * _ROW + lane
            ins = (
                np.int32(work[at]),
                np.int32(work[at + _LANES]),
                np.int32(work[at + _2 * _LANES]),
                np.int32(work[at + _3 * _LANES]),
                np.int32(work[at + _4 * _LANES]),
                np.int32(work[at + _5 * _LANES]),
                np.int32(work[at + _6 * _LANES]),
                np.int32(work[at + _7 * _LANES]),
            )
            _store_row(_transform(ins, _HALF2, _SHIFT2), plane, to + _2 * lane)


@part
def _low_at_8(
    coefs: np.ndarray, first: Int, quant: np.ndarray, work: np.ndarray, plane: np.ndarray, place: Int, pitch: Int
) -> None:
    """Do what `_all_at_8` does where all coefficients but those of four rows and four columns are 0."""
    for to in range(_4 * _LANES):
        at = first + to
        ins = (
            _dequant(coefs[at], quant[to]),
            _dequant(coefs[at + _ROW], quant[to + _ROW]),
            _dequant(coefs[at + _2 * _ROW], quant[to + _2 * _ROW]),
            _dequant(coefs[at + _3 * _ROW], quant[to + _3 * _ROW]),
        )
        _store_column(_transform_low(ins, _HALF1, _SHIFT1), work, to)
    for row in range(_8):
        to = place + row * pitch
        for lane in range(_LANES):
            at = row * _ROW + lane
            ins = (
                np.int32(work[at]),
                np.int32(work[at + _LANES]),
                np.int32(work[at + _2 * _LANES]),
                np.int32(work[at + _3 * _LANES]),
            )
            _store_row(_transform_low(ins, _HALF2, _SHIFT2), plane, to + _2 * lane)


@part
def _flat_at_8(coefs: np.ndarray, first: Int, step: Int, plane: np.ndarray, place: Int, pitch: Int) -> None:
    """Do what `_all_at_8` does where all coefficients but the first are 0."""
    for lane in range(_LANES):
        level = _limit(np.int32(np.int32(np.int16(coefs[first + lane] * step) + (4 + (128 << 3))) >> np.int32(3)))
        word = np.uint32(level * np.uint32(0x01010101))
        plane[place + _2 * lane] = word
        plane[place + _2 * lane + _1] = word
    for row in range(_1, _8):
        for column in range(_2 * _LANES):
            plane[place + row * pitch + column] = plane[place + column]


@part
def transform8(
    coefs: np.ndarray, first: Int, end: Int, quant: np.ndarray, work: np.ndarray, plane: np.ndarray, place: Int, pitch: Int
) -> None:
    """Turn a group of blocks into 8 rows of 16 x 8 samples.

    Args:
        coefs: int16, (n,).
        first: of the group in `coefs`.
        end: the last zigzag place of the group that may hold a coefficient.
        quant: quantisation steps, row by row, each LANES times, int16, (64 * LANES,).
        work: int16, (8 * 8 * LANES,).
        plane: receives the samples, four in a word, uint32, (n,).
        place: of the first one, words.
        pitch: of a row, words.
    """
    if end == 0:
        _flat_at_8(coefs, first, quant[_0], plane, place, pitch)
    elif end <= _LOW_END:
        _low_at_8(coefs, first, quant, work, plane, place, pitch)
    else:
        _all_at_8(coefs, first, quant, work, plane, place, pitch)


@part
def _transform4(ins: Many, half: Int, shift: Int) -> Many:
    """Transform eight numbers to four; the fifth has no part in it."""
    in0, in1, in2, in3, in5, in6, in7 = ins
    flat = add32(left32(in0, np.int32(14)), half)
    low = _sum2(in2, np.int32(15137), in6, np.int32(-6270))
    plus, minus = add32(flat, low), sub32(flat, low)
    inner = _sum4(in7, np.int32(-1730), in5, np.int32(11893), in3, np.int32(-17799), in1, np.int32(8697))
    outer = _sum4(in7, np.int32(-4176), in5, np.int32(-4926), in3, np.int32(7373), in1, np.int32(20995))
    return (
        right32(add32(plus, outer), shift),
        right32(add32(minus, inner), shift),
        right32(sub32(minus, inner), shift),
        right32(sub32(plus, outer), shift),
    )


@part
def transform4(
    coefs: np.ndarray, first: Int, end: Int, quant: np.ndarray, work: np.ndarray, plane: np.ndarray, place: Int, pitch: Int
) -> None:
    """Turn a group into 4 rows of 16 x 4 samples, each for two by two pixels; see `transform8`."""
    half1, shift1 = np.int32(1 << 11), np.int32(12)
    half2, shift2 = np.int32((1 << 18) + (128 << 19)), np.int32(19)
    is_low, zero = end <= _LOW_END, np.int32(0)
    # the fifth column has no part in it, and is transformed all the same
    for to in range(_4 * _LANES if is_low else _ROW):
        at = first + to
        in0, in1 = _dequant(coefs[at], quant[to]), _dequant(coefs[at + _ROW], quant[to + _ROW])
        in2 = _dequant(coefs[at + _2 * _ROW], quant[to + _2 * _ROW])
        in3 = _dequant(coefs[at + _3 * _ROW], quant[to + _3 * _ROW])
        if is_low:
            outs = _transform4((in0, in1, in2, in3, zero, zero, zero), half1, shift1)
        else:
            in5 = _dequant(coefs[at + _5 * _ROW], quant[to + _5 * _ROW])
            in6 = _dequant(coefs[at + _6 * _ROW], quant[to + _6 * _ROW])
            in7 = _dequant(coefs[at + _7 * _ROW], quant[to + _7 * _ROW])
            outs = _transform4((in0, in1, in2, in3, in5, in6, in7), half1, shift1)
        work[to] = outs[0]
        work[to + _ROW] = outs[1]
        work[to + _2 * _ROW] = outs[2]
        work[to + _3 * _ROW] = outs[3]
    for row in range(_4):
        to = place + row * pitch
        for lane in range(_LANES):
            at = row * _ROW + lane
            in0, in1, in2, in3 = (
                work[at],
                np.int32(work[at + _LANES]),
                np.int32(work[at + _2 * _LANES]),
                np.int32(work[at + _3 * _LANES]),
            )
            if is_low:
                outs = _transform4((in0, in1, in2, in3, zero, zero, zero), half2, shift2)
            else:
                in5, in6, in7 = work[at + _5 * _LANES], np.int32(work[at + _6 * _LANES]), np.int32(work[at + _7 * _LANES])
                outs = _transform4((in0, in1, in2, in3, in5, in6, in7), half2, shift2)
            left = _limit(outs[0]) | _limit(outs[1]) << np.uint32(8) | _limit(outs[2]) << np.uint32(16)
            plane[to + lane] = np.uint32(left | _limit(outs[3]) << np.uint32(24))


@part
def _transform2(in0: Int, in1: Int, in3: Int, in5: Int, in7: Int, half: Int, shift: Int) -> tuple[Int, Int]:
    """Transform eight numbers to two; the third, fifth and seventh have no part in it."""
    flat = add32(left32(in0, np.int32(15)), half)
    odd = _sum4(in7, np.int32(-5906), in5, np.int32(6967), in3, np.int32(-10426), in1, np.int32(29692))
    return right32(add32(flat, odd), shift), right32(sub32(flat, odd), shift)


@part
def transform2(
    coefs: np.ndarray, first: Int, quant: np.ndarray, work: np.ndarray, plane: np.ndarray, place: Int, pitch: Int
) -> None:
    """Turn a group into 2 rows of 16 x 2 samples, each for four by four pixels; see `transform8`.

    Args:
        plane: two samples in a word, uint16, (n,).
    """
    half1, shift1 = np.int32(1 << 12), np.int32(13)
    half2, shift2 = np.int32((1 << 19) + (128 << 20)), np.int32(20)
    for to in range(_ROW):
        at = first + to
        in0, in1 = _dequant(coefs[at], quant[to]), _dequant(coefs[at + _ROW], quant[to + _ROW])
        in3 = _dequant(coefs[at + _3 * _ROW], quant[to + _3 * _ROW])
        in5 = _dequant(coefs[at + _5 * _ROW], quant[to + _5 * _ROW])
        in7 = _dequant(coefs[at + _7 * _ROW], quant[to + _7 * _ROW])
        work[to], work[to + _ROW] = _transform2(in0, in1, in3, in5, in7, half1, shift1)
    for row in range(_2):
        to = place + row * pitch
        for lane in range(_LANES):
            at = row * _ROW + lane
            in0, in1, in3 = work[at], np.int32(work[at + _LANES]), np.int32(work[at + _3 * _LANES])
            in5, in7 = work[at + _5 * _LANES], np.int32(work[at + _7 * _LANES])
            left, right = _transform2(in0, in1, in3, in5, in7, half2, shift2)
            plane[to + lane] = np.uint16(_limit(left) | _limit(right) << np.uint32(8))


@part
def transform1(coefs: np.ndarray, first: Int, quant: np.ndarray, plane: np.ndarray, place: Int) -> None:
    """Turn a group into 16 samples, each for a block; see `transform8`.

    Args:
        plane: uint8, (n,).
    """
    step = quant[_0]
    for lane in range(_LANES):
        value = np.int32(np.int32(np.int16(coefs[first + lane] * step)) + np.int32(4 + (128 << 3)))
        plane[place + lane] = np.uint8(_limit(np.int32(value >> np.int32(3))))


@part
def clear_group(coefs: np.ndarray, first: Int, end: Int, slots: np.ndarray) -> None:
    """Set the places of a group to 0 that may hold something else; see `transform8`, and `jpegbits.decode_span` for slots."""
    for number in range(np.uintp(end) + _1):
        at = first + slots[number]
        for lane in range(_LANES):
            coefs[at + lane] = 0
