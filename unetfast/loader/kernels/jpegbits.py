"""Entropy-coded bytes of a baseline JPEG -> coefficients (ITU-T T.81, annexes B, C and F).

What makes it fast: eight bytes of the stream at once in a 64-bit window, and a table that gives two coefficients, values and
all, for the next eleven bits. Whatever is not as it should be ends the decoding; libjpeg-turbo then has the last word.

Coefficients of sixteen neighbouring blocks lie side by side: (group, position in the block, lane), so that the inverse
transform is the same arithmetic on sixteen blocks at once.
"""

from __future__ import annotations

import numpy as np

from unetfast.loader.kernels.compiled import Int, load_u64, part, store_u64, swap_bytes

LANES = 16  # blocks of a group
SLOTS = 65  # positions of a group's blocks: 64, and one that takes what lies behind a block's end
PEEK_BITS = 11
# a table's entry: total length in bits 0..5, LONG, steps to the first and the second coefficient in bits 8..15 and 16..23,
# length of the first in bits 24..31, their values in 32..47 and 48..63; where a value is longer than the table sees, LONG, the
# code's length in bits 0..5 and its symbol in bits 8..15; where the code is, LONG alone
LONG = np.uint64(1 << 6)
_END = 128  # steps that stand for "no more coefficients in this block"
MAX_STEPS = 64 + 2 * _END + 1  # how far positions may count before the end is seen

NUM_LONGEST = 17  # entries of the list that finds long codes: one a length, 0..16

_PEEK = np.uint64(64 - PEEK_BITS)
_0, _1, _2, _3, _4, _5, _63 = (np.uint64(value) for value in (0, 1, 2, 3, 4, 5, 63))
_TABLE = np.uint64(PEEK_BITS)
_FULL = np.uint64(56)  # bits that are in the window after a refill, at least
_ONES, _TOPS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_LAST = np.uintp(63)


@part
def fill_table(
    spec: np.ndarray, is_dc: bool, pairs: np.ndarray, symbols: np.ndarray, largest: np.ndarray, offsets: np.ndarray
) -> bool:
    """Turn a table of a DHT segment into what `decode_span` looks up.

    Args:
        spec: 16 numbers of codes, by length, then their symbols, uint8.
        is_dc: whether it is of DC coefficients.
        pairs: receives the entries, uint64, (2 ** PEEK_BITS,).
        symbols: receives the symbols in the order of codes, uint8, (256,).
        largest: receives the largest code of each length, left-aligned to 16 bits, and -1 where there is none, int32, (17,).
        offsets: receives what leads from a code of that length to its symbol's place, int32, (17,).

    Returns:
        Whether the table is one.
    """
    code = first = 0
    pairs[:] = LONG
    for length in range(1, 17):
        count = np.int64(spec[length - 1])
        largest[length] = -1
        if count:
            if code + count >= 1 << length or first + count > 256:
                return False
            offsets[length] = first - code
            largest[length] = ((code + count) << (16 - length)) - 1
        for symbol_place in range(first, first + count):
            symbol = np.int64(spec[16 + symbol_place])
            symbols[symbol_place] = symbol
            if is_dc and symbol > 11:
                return False
            if length <= PEEK_BITS:
                _fill_code(code, length, symbol, is_dc, pairs)
            code += 1
        first += count
        code <<= 1
    if not is_dc:
        _join_pairs(pairs)
    return True


@part
def _fill_code(code: Int, length: Int, symbol: Int, is_dc: bool, pairs: np.ndarray) -> None:
    """Set the entries that begin with a code."""
    size = symbol if is_dc else symbol & 15
    run = 0 if is_dc else symbol >> 4
    begin, rest = code << (PEEK_BITS - length), PEEK_BITS - length
    for bits in range(1 << rest):
        if size > rest:
            pairs[begin + bits] = LONG | np.uint64(length | symbol << 8)
            continue
        total, steps, value = length + size, run + 1, 0
        if size:
            value = (bits >> (rest - size)) & ((1 << size) - 1)
            if not value >> (size - 1):
                value -= (1 << size) - 1
        elif not is_dc and run != 15:
            steps = _END
        entry = total | (steps << 8) | (total << 24) | ((value & 0xFFFF) << 32)
        pairs[begin + bits] = np.uint64(entry)


@part
def _join_pairs(pairs: np.ndarray) -> None:
    """Let an entry take a second coefficient where the bits hold one; shorter entries are asked before they change."""
    mask = (1 << PEEK_BITS) - 1
    for bits in range(mask, -1, -1):
        entry = pairs[bits]
        length, steps = np.int64(entry & _63), np.int64((entry >> np.uint64(8)) & np.uint64(255))
        if entry & LONG or steps >= _END:
            continue
        follower = pairs[(bits << length) & mask]
        own = np.int64((follower >> np.uint64(24)) & np.uint64(255))
        if (follower & LONG) or own == 0 or length + own > PEEK_BITS:
            continue
        steps2 = np.int64((follower >> np.uint64(8)) & np.uint64(255))
        value2 = (follower >> np.uint64(32)) & np.uint64(0xFFFF)
        head = entry & ~_63
        pairs[bits] = head | np.uint64(length + own) | np.uint64(steps2 << 16) | (value2 << np.uint64(48))


@part
def remove_stuffing(data: np.ndarray, place: Int, out: np.ndarray) -> tuple[Int, Int]:
    """Copy entropy-coded bytes up to the next marker, without the zero behind each 255, and eight zeros behind them.

    Args:
        data: the file, uint8, (n,).
        place: where to begin.
        out: receives the bytes, uint8, (n + 16,) or more.

    Returns:
        How many, and where the marker stands; that is n where there is none.
    """
    count, stop = 0, len(data)
    while place < stop:
        if place + 8 <= stop:
            word = load_u64(data, place)
            turned = ~word
            if (turned - _ONES) & ~turned & _TOPS == _0:  # no byte is 255
                store_u64(out, count, word)
                place += 8
                count += 8
                continue
        end = min(place + 8, stop)
        while place < end:
            value = data[place]
            if value == 255:
                if place + 1 >= stop or data[place + 1] != 0:
                    store_u64(out, count, _0)
                    return count, place
                place += 1
            out[count] = value
            place += 1
            count += 1
    store_u64(out, count, _0)
    return count, stop


@part
def _find_code(
    window: Int, entry: Int, symbols: np.ndarray, largest: np.ndarray, offsets: np.ndarray, table: Int
) -> tuple[Int, Int]:
    """Find the code that begins with the window's bits, for an entry that is LONG.

    Returns:
        Its length and its symbol; 0 and 0 where there is none.
    """
    known = np.int64(entry & _63)
    if known:
        return known, np.int64(entry >> np.uint64(8))
    bits = np.int64(window >> np.uint64(48))
    for length in range(PEEK_BITS + 1, 17):
        place = table * np.uintp(NUM_LONGEST) + np.uintp(length)
        if bits <= largest[place]:
            symbol_place = ((bits >> (16 - length)) + offsets[place]) & 255
            return length, np.int64(symbols[(table << np.uintp(8)) + np.uintp(symbol_place)])
    return 0, 0


@part
def _extend(window: Int, size: Int) -> Int:
    """Return the value that the window's first bits stand for; `size` is 1 or more."""
    value = np.int64(window >> np.uint64(64 - size))
    return value if value >> (size - 1) else value - (np.int64(1) << size) + 1


@part
def decode_span(
    state: np.ndarray,
    stream: np.ndarray,
    num_bytes: Int,
    columns: tuple[Int, Int],
    blocks: np.ndarray,
    tables: tuple[np.ndarray, ...],
    slots: np.ndarray,
    coefs: np.ndarray,
    ends: np.ndarray,
) -> bool:
    """Decode neighbouring MCUs of a row.

    Args:
        state: window, bits in it, place of the next byte; then the DC coefficient of each component's last block; int64, (6,).
        stream: bytes without stuffing, at least eight zeros behind the last.
        num_bytes: of it; what is read up to 256 bytes further on is of no importance.
        columns: first MCU, and the one behind the last.
        blocks: of an MCU: component, DC table, AC table, first group of its row of blocks, first block in it, blocks of an
            MCU in that row; int64, (6 * num_blocks,).
        tables: of DHT segments, as `fill_table` makes them, DC in 0..3, AC in 4..7.
        slots: position in a group of each zigzag place, in coefficients, uintp, (MAX_STEPS,).
        coefs: receives the coefficients, int16, groups of (SLOTS, LANES); zeros before.
        ends: raised to the last zigzag place of each group that holds a coefficient, int64.

    Returns:
        Whether the bits are such blocks.
    """
    window, bits, place = np.uint64(state[0]), np.uint64(state[1]), state[2]
    pairs, symbols, largest, offsets = tables
    num_blocks = np.uintp(len(blocks) // 6)
    for column in range(columns[0], columns[1]):
        for number in range(num_blocks):
            if place > num_bytes + 8:
                return False
            at = number * np.uintp(6)
            component, dc, ac = np.uintp(blocks[at]), np.uintp(blocks[at + _1]), np.uintp(blocks[at + _2])
            lane = np.uintp(column) * np.uintp(blocks[at + _5]) + np.uintp(blocks[at + _4])
            group = np.uintp(blocks[at + _3]) + (lane >> _4)
            first = group * np.uintp(SLOTS * LANES) + (lane & np.uintp(15))
            table = ac << _TABLE
            window |= swap_bytes(load_u64(stream, place)) >> bits
            place += np.int64((_63 - bits) >> _3)
            bits |= _FULL
            entry = pairs[(dc << _TABLE) + np.uintp(window >> _PEEK)]
            if entry & LONG:
                length, size = _find_code(window, entry, symbols, largest, offsets, dc)
                if length == 0 or size > 11:
                    return False
                window <<= np.uint64(length)
                bits -= np.uint64(length)
                difference = 0
                if size:
                    difference = _extend(window, size)
                    window <<= np.uint64(size)
                    bits -= np.uint64(size)
            else:
                window <<= entry & _63
                bits -= entry & _63
                difference = np.int64(entry << np.uint64(16)) >> 48
            dc_value = state[component + _3] + difference
            if dc_value > 2047 or dc_value < -2048:
                return False
            state[component + _3] = dc_value
            coefs[first] = dc_value
            at = np.uintp(0)
            while True:
                window |= swap_bytes(load_u64(stream, place)) >> bits
                place += np.int64((_63 - bits) >> _3)
                bits |= _FULL
                entry = pairs[table + np.uintp(window >> _PEEK)]
                if entry & LONG:
                    length, symbol = _find_code(window, entry, symbols, largest, offsets, ac)
                    size = symbol & 15
                    if length == 0 or size > 10:
                        return False
                    window <<= np.uint64(length)
                    bits -= np.uint64(length)
                    if size == 0:
                        at += np.uintp(16 if symbol == 0xF0 else _END)
                    else:
                        at += np.uintp((symbol >> 4) + 1)
                        coefs[first + slots[at]] = _extend(window, size)
                        window <<= np.uint64(size)
                        bits -= np.uint64(size)
                    if at >= _LAST:
                        break
                    continue
                # three entries, of PEEK_BITS bits at most each, are in the window: with one a refill this took 7 % longer
                window <<= entry & _63
                bits -= entry & _63
                at += np.uintp((entry >> np.uint64(8)) & np.uint64(255))
                both = at + np.uintp((entry >> np.uint64(16)) & np.uint64(255))
                coefs[first + slots[both]] = np.int64(entry) >> 48
                coefs[first + slots[at]] = np.int64(entry << np.uint64(16)) >> 48
                if both >= _LAST:
                    if at >= _LAST and both != at:  # the block was full: the second is of the next one
                        if at > _LAST:
                            return False
                        unread = np.uint64(place) * np.uint64(8) - bits
                        unread -= (entry & _63) - ((entry >> np.uint64(24)) & np.uint64(255))
                        place, bits = np.int64(unread >> _3) + 7, _FULL - (unread & np.uint64(7))
                        window = swap_bytes(load_u64(stream, place - 7)) << (unread & np.uint64(7))
                        both = at
                    at = both
                    break
                at = both
                entry = pairs[table + np.uintp(window >> _PEEK)]
                if entry & LONG:
                    continue
                window <<= entry & _63
                bits -= entry & _63
                at += np.uintp((entry >> np.uint64(8)) & np.uint64(255))
                both = at + np.uintp((entry >> np.uint64(16)) & np.uint64(255))
                coefs[first + slots[both]] = np.int64(entry) >> 48
                coefs[first + slots[at]] = np.int64(entry << np.uint64(16)) >> 48
                if both >= _LAST:
                    if at >= _LAST and both != at:  # the block was full: the second is of the next one
                        if at > _LAST:
                            return False
                        unread = np.uint64(place) * np.uint64(8) - bits
                        unread -= (entry & _63) - ((entry >> np.uint64(24)) & np.uint64(255))
                        place, bits = np.int64(unread >> _3) + 7, _FULL - (unread & np.uint64(7))
                        window = swap_bytes(load_u64(stream, place - 7)) << (unread & np.uint64(7))
                        both = at
                    at = both
                    break
                at = both
                entry = pairs[table + np.uintp(window >> _PEEK)]
                if entry & LONG:
                    continue
                window <<= entry & _63
                bits -= entry & _63
                at += np.uintp((entry >> np.uint64(8)) & np.uint64(255))
                both = at + np.uintp((entry >> np.uint64(16)) & np.uint64(255))
                coefs[first + slots[both]] = np.int64(entry) >> 48
                coefs[first + slots[at]] = np.int64(entry << np.uint64(16)) >> 48
                if both >= _LAST:
                    if at >= _LAST and both != at:  # the block was full: the second is of the next one
                        if at > _LAST:
                            return False
                        unread = np.uint64(place) * np.uint64(8) - bits
                        unread -= (entry & _63) - ((entry >> np.uint64(24)) & np.uint64(255))
                        place, bits = np.int64(unread >> _3) + 7, _FULL - (unread & np.uint64(7))
                        window = swap_bytes(load_u64(stream, place - 7)) << (unread & np.uint64(7))
                        both = at
                    at = both
                    break
                at = both
            if at < np.uintp(_END):
                if at != _LAST:
                    return False
            else:
                at -= np.uintp(_END)
            ends[group] = max(ends[group], np.int64(at))
    state[0], state[1], state[2] = np.int64(window), np.int64(bits), place
    return True
