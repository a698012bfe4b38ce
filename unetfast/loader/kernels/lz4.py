"""One of our LZ4 frames, inflated from where it lies in memory to where its content is wanted.

codecs.py writes frames of independent blocks of 64 KiB that declare their size and have no checksum but the header's. Only such
frames are taken here, and only where each block ends as the format says it must; of anything else the caller hears that it was
not done, and asks the lz4 package, which inflates other frames too and says what is wrong with damaged ones. What is taken here
that package takes too, with the same content.

Format of frames and blocks: https://github.com/lz4/lz4/tree/dev/doc
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from unetfast.loader.kernels.compiled import array, compile_kernel, copy_16, load_u16, load_u64, part, store_u64

Whole = Any  # a number of numba's or numpy's, 64 bits unless it says otherwise

_BLOCK_BYTES = 65536  # content of every block but the last
_STORED = 1 << 31  # in a block's size
# magic, then flags (version 1, independent blocks, content size follows) and the code of 64 KiB
_START = 0x4068_184D_2204
_HEADER_BYTES, _MARK_BYTES = 15, 4

# how a block ends: behind the last match 5 or more literals, and it begins 12 or more bytes before the end of the content
_LAST_LITERALS, _LAST_MATCH = 5, 12
# what follows literals that are not the last ones: an offset, a token, and the last literals
_AFTER_LITERALS = 2 + 1 + _LAST_LITERALS
_FULL = 15  # a length that goes on in the bytes that follow
# with so much before both ends, more may be copied than is asked for, and an offset read behind it
_ROOM = 64
_LONG = 64  # matches, bytes, that are worth a look at their pattern

# an offset below 8 is a pattern in a word: its bytes, the factor that repeats them, and a multiple of the offset that reaches
# back a whole word; 8 stands for all larger offsets, which need none of that
_PATTERN = np.array([(1 << 8 * offset) - 1 for offset in range(9)], dtype=np.uint64)
_REPEATS = np.array([0] + [sum(1 << 8 * byte for byte in range(0, 8, offset)) for offset in range(1, 9)], dtype=np.uint64)
_REACH = np.array([0] + [offset * (7 // offset + 1) for offset in range(1, 9)], dtype=np.uint8)

_PRIME_1, _PRIME_2, _PRIME_3 = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77), np.uint32(0xC2B2AE3D)
_PRIME_4, _PRIME_5 = np.uint32(0x27D4EB2F), np.uint32(0x165667B1)


def build_kernel() -> Callable[..., bool]:
    """Compile `inflate_frame` alone, or load what an earlier process has compiled; the kernel takes what it takes."""
    frame, content = array(numba.uint8, 1, readonly=True), array(numba.uint8, 1)
    return compile_kernel(_inflate_alone, numba.boolean(frame, content))


@part
def inflate_frame(data: np.ndarray, out: np.ndarray) -> bool:
    """Inflate one frame; nothing outside of the two arrays is read or written.

    Args:
        data: the frame and nothing behind it, uint8, contiguous, (n,).
        out: receives the content, which must fill it, uint8, contiguous, (m,).

    Returns:
        Whether it was done; else `out` holds anything.
    """
    stop, place, first = len(data), _HEADER_BYTES, 0
    if stop < _HEADER_BYTES + _MARK_BYTES or not _is_header(data, len(out)):
        return False
    while first < len(out):
        if stop - place < 4:
            return False
        word = _load_u32(data, place)
        size, end = word % _STORED, min(first + _BLOCK_BYTES, len(out))
        place += 4
        if size > min(_BLOCK_BYTES, stop - place):
            return False
        if word >= _STORED:
            if size != end - first:
                return False
            _copy(data, place, out, first, size)
        elif not _inflate_block(data, place, place + size, out, first, end):
            return False
        place += size
        first = end
    return stop - place == _MARK_BYTES and _load_u32(data, place) == 0


@part
def _load_u32(data: np.ndarray, place: Whole) -> Whole:
    return load_u16(data, place) | load_u16(data, place + 2) << 16


@part
def _is_header(data: np.ndarray, num_bytes: Whole) -> bool:
    """Say whether a frame begins as codecs.py writes it: first bytes, size, and a byte of their hash."""
    if load_u64(data, 0) % np.uint64(1 << 48) != np.uint64(_START) or load_u64(data, 6) != np.uint64(num_bytes):
        return False
    return bool(data[_HEADER_BYTES - 1] == (_hash_header(data) >> np.uint32(8)) % np.uint32(256))


@part
def _turn(value: Whole, num_bits: Whole) -> Whole:
    return np.uint32(value << np.uint32(num_bits)) | np.uint32(value >> np.uint32(32 - num_bits))


@part
def _hash_header(data: np.ndarray) -> Whole:
    """Hash the ten bytes behind the magic by XXH32 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md)."""
    value = np.uint32(_PRIME_5 + np.uint32(10))
    for place in (4, 8):
        value = np.uint32(value + np.uint32(_load_u32(data, place)) * _PRIME_3)
        value = np.uint32(_turn(value, 17) * _PRIME_4)
    for place in (12, 13):
        value = np.uint32(value + np.uint32(data[place]) * _PRIME_5)
        value = np.uint32(_turn(value, 11) * _PRIME_1)
    value = np.uint32((value ^ (value >> np.uint32(15))) * _PRIME_2)
    value = np.uint32((value ^ (value >> np.uint32(13))) * _PRIME_3)
    return np.uint32(value ^ (value >> np.uint32(16)))


@part
def _inflate_block(data: np.ndarray, place: Whole, stop: Whole, out: np.ndarray, first: Whole, end: Whole) -> bool:
    """Inflate the block in data[place:stop] to out[first:end], which it must fill.

    Fewer bytes written beyond what is asked for are worth more than fewer instructions: a load of bytes that two earlier stores
    wrote waits until they are in the cache.
    """
    at = first
    while place < stop:
        token: Whole = np.int64(data[np.uintp(place)])
        place += 1
        count = token >> 4
        if count < _FULL and stop - place >= _ROOM and end - at >= _ROOM:
            copy_16(data, place, out, at)
        else:
            if count == _FULL:
                count, place = _add_length(data, place, stop, count)
                if count < 0:
                    return False
            if count == stop - place:  # the last ones
                if count != end - at:
                    return False
                _copy(data, place, out, at, count)
                return True
            if count > stop - place - _AFTER_LITERALS or count > end - at - _LAST_MATCH:
                return False
            if min(stop - place, end - at) >= count + _ROOM:
                _copy_roughly(data, place, out, at, count)
            else:
                _copy(data, place, out, at, count)
        place += count
        at += count
        offset = load_u16(data, place)
        place += 2
        count = token & _FULL
        if count == _FULL:
            count, place = _add_length(data, place, stop - _LAST_LITERALS, count)
            if count < 0:
                return False
        count += 4
        if offset == 0 or offset > at - first or count > end - at - _LAST_LITERALS:
            return False
        if count >= _LONG or end - at < count + _ROOM:
            _repeat(out, at, offset, count)
        else:
            _repeat_roughly(out, at, offset, count)
        at += count
    return False


@part
def _add_length(data: np.ndarray, place: Whole, stop: Whole, count: Whole) -> tuple[Whole, Whole]:
    """Add the bytes in which a full length goes on; returns the sum, -1 where they reach `stop`, and the place behind them."""
    more: Whole = 255
    while more == 255:
        if place >= stop:
            return -1, place
        more = np.int64(data[np.uintp(place)])
        place += 1
        count += more
    return count, place


@part
def _copy(data: np.ndarray, place: Whole, out: np.ndarray, at: Whole, count: Whole) -> None:
    """Copy `count` bytes from one array to another, and nothing beyond."""
    if count < 16:
        for step in range(count):
            out[np.uintp(at + step)] = data[np.uintp(place + step)]
        return
    for step in range(0, count - 15, 16):
        copy_16(data, place + step, out, at + step)
    copy_16(data, place + count - 16, out, at + count - 16)


@part
def _copy_roughly(data: np.ndarray, place: Whole, out: np.ndarray, at: Whole, count: Whole) -> None:
    """Do what `_copy` does, and copy up to 32 bytes beyond."""
    step = 0
    while True:
        copy_16(data, place + step, out, at + step)
        copy_16(data, place + step + 16, out, at + step + 16)
        step += 32
        if step >= count:
            return


@part
def _repeat(out: np.ndarray, at: Whole, offset: Whole, count: Whole) -> None:
    """Copy `count` bytes from `offset` before `at` to `at`, and nothing beyond; they may be what was just written."""
    reach: Whole = max(offset, np.int64(_REACH[np.uintp(min(offset, 8))]))
    step = 0
    while step < min(reach - offset, count):
        out[np.uintp(at + step)] = out[np.uintp(at + step - offset)]
        step += 1
    if reach >= 16:
        while step + 16 <= count:
            copy_16(out, at + step - reach, out, at + step)
            step += 16
    elif reach == 8 and step + 8 <= count:
        word = load_u64(out, at + step - 8)
        while step + 16 <= count:
            store_u64(out, at + step, word)
            store_u64(out, at + step + 8, word)
            step += 16
    while step + 8 <= count:
        store_u64(out, at + step, load_u64(out, at + step - reach))
        step += 8
    while step < count:
        out[np.uintp(at + step)] = out[np.uintp(at + step - offset)]
        step += 1


@part
def _repeat_roughly(out: np.ndarray, at: Whole, offset: Whole, count: Whole) -> None:
    """Do what `_repeat` does, and write up to 16 bytes beyond."""
    near = np.uintp(min(offset, 8))
    store_u64(out, at, (load_u64(out, at - offset) & _PATTERN[near]) * _REPEATS[near])
    reach: Whole = max(offset, np.int64(_REACH[near]))
    store_u64(out, at + 8, load_u64(out, at + 8 - reach))
    step = 16
    while step < count:
        store_u64(out, at + step, load_u64(out, at + step - reach))
        step += 8


def _inflate_alone(data: np.ndarray, out: np.ndarray) -> bool:
    return inflate_frame(data, out)
