"""A baseline JPEG -> pixels in one call without the interpreter's lock: the same numbers as libjpeg-turbo, in less time.

The steps stand in jpegheader.py (segments), jpegbits.py (coefficients), jpegblocks.py (samples) and jpegcolor.py (pixels). A
file that is not of the common kind, or in which anything is not as it should be, is refused without a word: `jpegfile.py` then
asks libjpeg-turbo, which decodes it or says what is wrong. So no damaged file passes here that would not pass there.

Axis letters: H height, W width, C channels (R, G, B).
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

from unetfast.loader.kernels.compiled import Many, array, compile_kernel, part
from unetfast.loader.kernels.jpegbits import (
    LANES,
    LONG,
    MAX_STEPS,
    NUM_LONGEST,
    PEEK_BITS,
    decode_span,
    fill_table,
    remove_stuffing,
)
from unetfast.loader.kernels.jpegblocks import GROUP, clear_group, transform1, transform2, transform4, transform8
from unetfast.loader.kernels.jpegcolor import STRIDE, copy_row, double_row, smooth_row, smooth_rows, write_colors, write_grey
from unetfast.loader.kernels.jpegheader import (
    AC_IDS,
    CODES,
    DC_IDS,
    INTERVAL,
    NUM_COMPONENTS,
    NUM_FACTS,
    QUANT_IDS,
    QUANTS,
    SCAN,
    SPREAD_X,
    SPREAD_Y,
    read_header,
)

_RST0, _EOI = 0xD0, 0xD9
_FULL, _HALF_WIDTH, _COPIED_WIDTH, _HALF_SIZE = range(4)
STREAM_ROOM = 256  # bytes behind the file's size: a block that is not one may be read so far past the end
NUM_TABLES, SPEC_BYTES = 8, 16 + 256  # of codes; numbers of codes by length, and symbols
# the place, row by row, of each zigzag place: odd diagonals run down, even ones up
_ORDER = np.array(sorted(range(64), key=lambda at: (at // 8 + at % 8, at if (at // 8 + at % 8) % 2 else -at)), dtype=np.int64)
_SLOTS = np.full(MAX_STEPS, 64 * LANES, dtype=np.uintp)
_SLOTS[:64] = _ORDER * LANES


def build_kernel() -> Callable[..., bool]:
    """Compile `_decode`, or load what an earlier process has compiled; takes what `_decode` takes."""
    hw, byte = numba.types.UniTuple(numba.int64, 2), numba.uint8
    tables = (array(numba.uint64, 1), array(byte, 1), array(numba.int32, 1), array(numba.int32, 1), array(byte, 2))
    memory = numba.types.Tuple((array(byte, 1), array(byte, 1), *tables))
    return compile_kernel(_decode, numba.boolean(array(byte, 1, readonly=True), hw, numba.int64, memory, array(byte, 3)))


def make_tables() -> Many:
    """Return memory for tables of codes, to be used by one thread: what a file's codes share with the last one's stays.

    Returns:
        What `decode_span` looks up, four arrays of NUM_TABLES tables each; and what they were made of, uint8,
        (NUM_TABLES, SPEC_BYTES).
    """
    return (
        np.full(NUM_TABLES << PEEK_BITS, LONG, np.uint64),
        np.zeros(NUM_TABLES * 256, np.uint8),
        np.zeros(NUM_TABLES * NUM_LONGEST, np.int32),
        np.zeros(NUM_TABLES * NUM_LONGEST, np.int32),
        np.full((NUM_TABLES, SPEC_BYTES), 255, np.uint8),
    )


def count_plane_bytes(hw: tuple[int, int]) -> int:
    """Return how many bytes the planes of an image take at most, three of whole groups of blocks: a multiple of 4."""
    pitch = -(-hw[1] // (8 * LANES)) * 8 * LANES + 8 * LANES
    return 3 * pitch * (-(-hw[0] // 16) * 16)


@part
def _fill_tables(data: np.ndarray, facts: np.ndarray, tables: Many) -> bool:
    """Fill the tables of codes that are other than the last file's."""
    pairs, symbols, largest, offsets, specs = tables
    for number in range(NUM_TABLES):
        at = facts[CODES + number]
        if at == 0:
            continue
        size = 16
        for length in range(16):
            size += np.int64(data[at + length])
        if size == 16:  # no code at all
            return False
        is_known, spec = True, specs[number]
        for place in range(size):
            is_known &= spec[place] == data[at + place]
        if is_known:
            continue
        spec[:16] = 0  # until the table is one
        own_pairs, own_symbols = pairs.reshape((NUM_TABLES, -1))[number], symbols.reshape((NUM_TABLES, -1))[number]
        own_largest, own_offsets = largest.reshape((NUM_TABLES, -1))[number], offsets.reshape((NUM_TABLES, -1))[number]
        if not fill_table(data[at:], number < 4, own_pairs, own_symbols, own_largest, own_offsets):
            return False
        spec[:size] = data[at : at + size]
    return True


@part
def _prepare(data: np.ndarray, facts: np.ndarray, quants: np.ndarray, blocks: np.ndarray, layout: np.ndarray) -> None:
    """Fill the tables of quantisation, and say of what blocks an MCU is; see `decode_span`."""
    count = 0
    for component in range(facts[NUM_COMPONENTS]):
        at = facts[QUANTS + facts[QUANT_IDS + component]]
        for place in range(64):
            begin = _ORDER[place] * LANES
            quants[component, begin : begin + LANES] = data[at + place]
        num_x, num_y = (facts[SPREAD_X], facts[SPREAD_Y]) if component == 0 else (1, 1)
        for y in range(num_y):
            for x in range(num_x):
                blocks[count, 0], blocks[count, 1] = component, facts[DC_IDS + component]
                blocks[count, 2], blocks[count, 3] = facts[AC_IDS + component], layout[component, 0] + y * layout[component, 1]
                blocks[count, 4], blocks[count, 5] = x, num_x
                count += 1


@part
def _lay_out(facts: np.ndarray, num_mcu: tuple[int, int], side: int, layout: np.ndarray) -> int:
    """Say where each component's groups and samples lie.

    Args:
        facts: of the header.
        num_mcu: rows and columns of MCUs.
        side: of a block of the first component, samples.
        layout: receives first group, groups of a row of blocks, rows of blocks of an MCU, side of a block, first sample,
            samples of a row: int64, (3, 6).

    Returns:
        The number of groups.
    """
    num_groups = num_samples = 0
    for component in range(facts[NUM_COMPONENTS]):
        is_small = component > 0 and facts[SPREAD_X] * facts[SPREAD_Y] == 4
        num_x, num_y = (facts[SPREAD_X], facts[SPREAD_Y]) if component == 0 else (1, 1)
        row_groups = (num_mcu[1] * num_x + LANES - 1) // LANES
        own_side = min(2 * side, 8) if is_small else side
        layout[component, 0], layout[component, 1], layout[component, 2] = num_groups, row_groups, num_y
        layout[component, 3], layout[component, 4], layout[component, 5] = own_side, num_samples, row_groups * LANES * own_side
        num_groups += row_groups * num_y
        num_samples += row_groups * LANES * own_side * num_y * own_side * num_mcu[0]
    return num_groups


@part
def _transform_row(
    row: int,
    count: int,
    layout: np.ndarray,
    quants: np.ndarray,
    coefs: np.ndarray,
    ends: np.ndarray,
    work: np.ndarray,
    planes: Many,
) -> None:
    """Turn the coefficients of a row of MCUs into samples, and clear them."""
    bytes_, halves, words = planes
    for component in range(count):
        side, pitch = layout[component, 3], layout[component, 5]
        for line in range(layout[component, 2]):
            top = (row * layout[component, 2] + line) * side
            for number in range(layout[component, 1]):
                group = layout[component, 0] + line * layout[component, 1] + number
                first, end, quant = np.uintp(group * GROUP), ends[group], quants[component]
                place = layout[component, 4] + top * pitch + number * LANES * side
                if side == 8:
                    transform8(coefs, first, end, quant, work, words, np.uintp(place // 4), np.uintp(pitch // 4))
                elif side == 4:
                    transform4(coefs, first, end, quant, work, words, np.uintp(place // 4), np.uintp(pitch // 4))
                elif side == 2:
                    transform2(coefs, first, quant, work, halves, np.uintp(place // 2), np.uintp(pitch // 2))
                else:
                    transform1(coefs, first, quant, bytes_, np.uintp(place))
                clear_group(coefs, first, end, _SLOTS)
                ends[group] = 0


@part
def _has_ended(state: np.ndarray, num_bytes: int) -> bool:
    """Say whether the last bits were read, but for those that fill up the last byte."""
    unread = num_bytes * 8 - (state[2] * 8 - state[1])
    return 0 <= unread < 8


@part
def _decode_samples(
    data: np.ndarray,
    facts: np.ndarray,
    num_mcu: tuple[int, int],
    layout: np.ndarray,
    num_groups: int,
    stream: np.ndarray,
    tables: Many,
    planes: Many,
) -> bool:
    """Decode all MCUs to planes of samples."""
    quants, blocks = np.empty((3, 64 * LANES), np.int16), np.empty((6, 6), np.int64)
    _prepare(data, facts, quants, blocks, layout)
    count = facts[NUM_COMPONENTS]
    num_blocks = facts[SPREAD_X] * facts[SPREAD_Y] + count - 1
    flat_blocks = blocks.reshape(-1)[: 6 * num_blocks]
    coefs, ends, work = np.zeros(num_groups * GROUP, np.int16), np.zeros(num_groups, np.int64), np.empty(64 * LANES, np.int16)
    state = np.zeros(6, np.int64)
    num_bytes, place = remove_stuffing(data, facts[SCAN], stream)
    left, num_restarts = facts[INTERVAL], 0
    for row in range(num_mcu[0]):
        column = 0
        while column < num_mcu[1]:
            if facts[INTERVAL] and left == 0:
                if not _has_ended(state, num_bytes) or place + 2 > len(data) or data[place + 1] != _RST0 + (num_restarts & 7):
                    return False
                num_bytes, place = remove_stuffing(data, place + 2, stream)
                state[:], left, num_restarts = 0, facts[INTERVAL], num_restarts + 1
            stop = min(num_mcu[1], column + left) if facts[INTERVAL] else num_mcu[1]
            if not decode_span(state, stream, num_bytes, (column, stop), flat_blocks, tables, _SLOTS, coefs, ends):
                return False
            left -= stop - column
            column = stop
        _transform_row(row, count, layout, quants, coefs, ends, work, planes)
    return _has_ended(state, num_bytes) and place + 2 <= len(data) and data[place + 1] == _EOI


@part
def _take_chroma(
    samples: np.ndarray, places: np.ndarray, row: int, size: tuple[int, int], halves: int, sums: Many, outs: Many
) -> None:
    """Take a row of both chroma components, a number a pixel.

    Args:
        samples: of all components.
        places: each component's first sample, and its samples a row, int64, (2, 2).
        row: of pixels.
        size: samples of a component: rows and columns.
        halves: _FULL, _HALF_WIDTH, _COPIED_WIDTH or _HALF_SIZE: how its samples lie to pixels.
        sums: working memory of `smooth_rows`.
        outs: receive the numbers, int16.
    """
    blue, red, pitch = places[0, 0], places[1, 0], places[0, 1]
    if halves == _HALF_SIZE:
        near = row >> 1
        far = min(max(near + (1 if row & 1 else -1), 0), size[0] - 1)
        nears = (np.uintp(blue + near * pitch), np.uintp(red + near * pitch))
        smooth_rows(samples, nears, (np.uintp(blue + far * pitch), np.uintp(red + far * pitch)), size[1], sums, outs)
        return
    for place, out_W in ((blue + row * pitch, outs[0]), (red + row * pitch, outs[1])):
        if halves == _HALF_WIDTH:
            smooth_row(samples, np.uintp(place), size[1], out_W)
        elif halves == _COPIED_WIDTH:
            double_row(samples, np.uintp(place), 2 * size[1], out_W)
        else:
            copy_row(samples, np.uintp(place), 2 * size[1], out_W)


@part
def _write_pixels(facts: np.ndarray, layout: np.ndarray, reduction: int, samples: np.ndarray, out_HWC: np.ndarray) -> bool:
    """Turn planes of samples into pixels."""
    height, width = out_HWC.shape[0], out_HWC.shape[1]
    pitch, row_bytes, out = layout[0, 5], 3 * width, out_HWC.reshape(-1)
    if facts[NUM_COMPONENTS] == 1:
        for row in range(height):
            write_grey(samples, np.uintp(row * pitch), width, out, np.uintp(row * row_bytes))
        return True
    halves = _FULL
    if layout[1, 3] == layout[0, 3]:  # else the chroma's blocks were reduced less, to as many samples
        halves = _HALF_SIZE if facts[SPREAD_Y] == 2 else _HALF_WIDTH if facts[SPREAD_X] == 2 else _FULL
    size = ((height + 1) // 2, (width + 1) // 2)
    if reduction == 8 and halves == _HALF_WIDTH:
        halves = _COPIED_WIDTH
    elif halves != _FULL and size[1] < 3:
        return False
    wide = (width + 2 * STRIDE) // STRIDE * STRIDE
    rows, places = np.empty(3 * wide, np.uint8), layout[1:, 4:].copy()
    sums, outs = (
        (np.empty(wide, np.int16), np.empty(wide, np.int16)),
        (np.empty(2 * wide, np.int16), np.empty(2 * wide, np.int16)),
    )
    for row in range(height):
        _take_chroma(samples, places, row, size, halves, sums, outs)
        write_colors(samples, np.uintp(row * pitch), width, outs[0], outs[1], rows, out, np.uintp(row * row_bytes))
    return True


def _decode(data: np.ndarray, hw: tuple[int, int], reduction: int, memory: Many, out_HWC: np.ndarray) -> bool:
    """Decode a JPEG at 1/reduction of its size.

    Args:
        data: the file, uint8, (n,).
        hw: height and width that it must have, pixels.
        reduction: 1, 2, 4 or 8.
        memory: to work in: uint8, (n + STREAM_ROOM,) or more; uint8, (`count_plane_bytes(hw)`,) or more, a multiple of 4; and
            what `make_tables` gives.
        out_HWC: receives RGB, uint8, contiguous, (ceil(H / reduction), ceil(W / reduction), 3).

    Returns:
        Whether it did; where not, it is not a file of the common kind, or something is wrong with it.
    """
    stream, samples, pairs, symbols, largest, offsets, specs = memory
    size = ((hw[0] + reduction - 1) // reduction, (hw[1] + reduction - 1) // reduction, 3)
    if reduction not in (1, 2, 4, 8) or out_HWC.shape != size or len(stream) < len(data) + STREAM_ROOM:
        return False
    facts = np.zeros(NUM_FACTS, np.int64)
    if not read_header(data, hw, facts):
        return False
    if max(hw) < 8:  # a smaller scale may give the same size, and is the one that simplejpeg then takes
        return False
    x, y = 8 * facts[SPREAD_X], 8 * facts[SPREAD_Y]
    num_mcu = ((hw[0] + y - 1) // y, (hw[1] + x - 1) // x)
    layout = np.zeros((3, 6), np.int64)
    num_groups = _lay_out(facts, num_mcu, 8 // reduction, layout)
    if not _fill_tables(data, facts, (pairs, symbols, largest, offsets, specs)):
        return False
    tables, planes = (pairs, symbols, largest, offsets), (samples, samples.view(np.uint16), samples.view(np.uint32))
    if not _decode_samples(data, facts, num_mcu, layout, num_groups, stream, tables, planes):
        return False
    return _write_pixels(facts, layout, reduction, samples, out_HWC)
