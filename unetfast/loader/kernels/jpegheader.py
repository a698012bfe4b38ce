"""The segments in front of a JPEG's entropy-coded bytes (ITU-T T.81, annex B), as far as they are what nearly all files have.

Taken are baseline files in one scan: grey, or Y, Cb and Cr with the chroma at full size (4:4:4), at half width (4:2:2) or at
half width and height (4:2:0). Everything else, and every doubt, is left to libjpeg-turbo.
"""

from __future__ import annotations

import numpy as np

from unetfast.loader.kernels.compiled import Int, Many, part

# places in what `read_header` fills
NUM_COMPONENTS, SPREAD_X, SPREAD_Y, INTERVAL, SCAN = range(5)
QUANT_IDS, DC_IDS, AC_IDS = 5, 8, 11  # of three components each
QUANTS, CODES = 14, 18  # where in the file the table of each number begins; of codes, DC in 0..3 and AC in 4..7; 0: nowhere
NUM_FACTS = 26

_SOI, _EOI, _RST0, _SOS, _DQT, _DRI, _SOF0, _SOF1, _DHT = 0xD8, 0xD9, 0xD0, 0xDA, 0xDB, 0xDD, 0xC0, 0xC1, 0xC4
_APP0, _APP14, _APP15, _COM = 0xE0, 0xEE, 0xEF, 0xFE


@part
def _read_u16(data: np.ndarray, place: Int) -> Int:
    return np.int64(data[place]) << 8 | np.int64(data[place + 1])


@part
def _note_quants(data: np.ndarray, place: Int, end: Int, facts: np.ndarray) -> bool:
    while place < end:
        kind = np.int64(data[place])
        if kind > 3 or place + 65 > end:  # 16-bit steps have a 1 in the upper half
            return False
        facts[QUANTS + kind] = place + 1
        place += 65
    return place == end


@part
def _note_codes(data: np.ndarray, place: Int, end: Int, facts: np.ndarray) -> bool:
    while place < end:
        kind, number = np.int64(data[place]) >> 4, np.int64(data[place]) & 15
        if kind > 1 or number > 3 or place + 17 > end:
            return False
        count = 0
        for length in range(16):
            count += np.int64(data[place + 1 + length])
        if count > 256 or place + 17 + count > end:
            return False
        facts[CODES + 4 * kind + number] = place + 1
        place += 17 + count
    return place == end


@part
def _note_frame(data: np.ndarray, place: Int, end: Int, hw: tuple[Int, Int], ids: np.ndarray, facts: np.ndarray) -> bool:
    if end - place < 6:
        return False
    count = np.int64(data[place + 5])
    if data[place] != 8 or _read_u16(data, place + 1) != hw[0] or _read_u16(data, place + 3) != hw[1]:
        return False
    if facts[NUM_COMPONENTS] or count not in (1, 3) or end - place != 6 + 3 * count:
        return False
    for number in range(count):
        at = place + 6 + 3 * number
        spread, quant = np.int64(data[at + 1]), np.int64(data[at + 2])
        if quant > 3:
            return False
        ids[number], facts[QUANT_IDS + number] = data[at], quant
        if number == 0:
            facts[SPREAD_X], facts[SPREAD_Y] = spread >> 4, spread & 15
        elif spread != 0x11:
            return False
    facts[NUM_COMPONENTS] = count
    x, y = facts[SPREAD_X], facts[SPREAD_Y]
    return (x == 1 and y == 1) or (count == 3 and x == 2 and y in (1, 2))


@part
def _note_scan(data: np.ndarray, place: Int, end: Int, ids: np.ndarray, facts: np.ndarray) -> bool:
    count = facts[NUM_COMPONENTS]
    if count == 0 or end - place != 4 + 2 * count or data[place] != count:
        return False
    for number in range(count):
        at = place + 1 + 2 * number
        dc, ac = np.int64(data[at + 1]) >> 4, np.int64(data[at + 1]) & 15
        if data[at] != ids[number] or dc > 3 or ac > 3:
            return False
        if not (facts[CODES + dc] and facts[CODES + 4 + ac] and facts[QUANTS + facts[QUANT_IDS + number]]):
            return False
        facts[DC_IDS + number], facts[AC_IDS + number] = dc, 4 + ac
    return data[end - 3] == 0 and data[end - 2] == 63 and data[end - 1] == 0


@part
def _is_text(data: np.ndarray, place: Int, end: Int, text: Many) -> bool:
    if end - place < 5:
        return False
    found = True
    for number in range(5):
        found = found and data[place + number] == text[number]
    return found


@part
def _has_ycc(ids: np.ndarray, is_jfif: bool, adobe: Int) -> bool:
    """Say whether three components are Y, Cb and Cr, by libjpeg's rules; `adobe` is the marker's transform, -1 without one."""
    if is_jfif or adobe >= 0:
        return is_jfif or adobe == 1
    return ids[0] == 1 and ids[1] == 2 and ids[2] == 3


@part
def read_header(data: np.ndarray, hw: tuple[Int, Int], facts: np.ndarray) -> bool:
    """Read all segments up to the first entropy-coded byte.

    Args:
        data: the file, uint8, (n,).
        hw: height and width that it must have, pixels.
        facts: receives what is found, int64, (NUM_FACTS,); zeros before.

    Returns:
        Whether it is a file of the kind that is taken.
    """
    size = len(data)
    ids = np.zeros(3, np.uint8)
    is_jfif, adobe = False, -1
    if size < 4 or data[0] != 0xFF or data[1] != _SOI:
        return False
    place = 2
    while place + 4 <= size:
        marker, begin = np.int64(data[place + 1]), place + 4
        end = place + 2 + _read_u16(data, place + 2)
        if data[place] != 0xFF or end < begin or end > size:
            return False
        is_sound = True
        if marker == _DQT:
            is_sound = _note_quants(data, begin, end, facts)
        elif marker == _DHT:
            is_sound = _note_codes(data, begin, end, facts)
        elif marker in (_SOF0, _SOF1):
            is_sound = _note_frame(data, begin, end, hw, ids, facts)
        elif marker == _DRI:
            is_sound = end - begin == 2
            facts[INTERVAL] = _read_u16(data, begin) if is_sound else 0
        elif marker == _APP0:
            if end - begin >= 14 and _is_text(data, begin, end, (0x4A, 0x46, 0x49, 0x46, 0)):
                is_jfif, is_sound = True, data[begin + 5] == 1  # its version
        elif marker == _APP14 and end - begin >= 12 and _is_text(data, begin, end, (0x41, 0x64, 0x6F, 0x62, 0x65)):
            adobe = np.int64(data[begin + 11])
        elif marker == _SOS:
            facts[SCAN] = end
            return _note_scan(data, begin, end, ids, facts) and (facts[NUM_COMPONENTS] == 1 or _has_ycc(ids, is_jfif, adobe))
        elif not (_APP0 < marker <= _APP15 or marker == _COM):
            return False
        if not is_sound:
            return False
        place = end
    return False
