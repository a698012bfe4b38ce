"""One LZ4 frame of a shard -> the raw LZ4 blocks in it, for a GPU that inflates them in parallel; nothing is inflated here.

A frame is a header, blocks with their sizes in front, an end mark (https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md).
codecs.py writes frames of independent blocks that each hold 64 KiB of content; the last one may hold less. A block that does
not shrink is stored as it is, and comes out of here as an LZ4 block of literals alone.
"""

from __future__ import annotations

import struct

import numpy as np
import xxhash

BLOCK_BYTES = 65536  # content of every block but the last

_MAGIC = b"\x04\x22\x4d\x18"
_END_MARK = 0
_STORED = 1 << 31  # in a block's size
_64_KIB = 4  # code of the block size in the header
# bits of the header's first byte
_INDEPENDENT, _BLOCK_CHECKSUM, _CONTENT_SIZE, _CONTENT_CHECKSUM, _RESERVED, _DICTIONARY = 32, 16, 8, 4, 2, 1


def split_frame(data: bytes, num_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a frame into its blocks.

    The header's and the blocks' own checksums are tested where the frame has them. Not tested is the checksum of the content,
    which wants the content, nor that a block holds as much as it should: an inflater may see only that it does not hold more.

    Args:
        data: one frame, and nothing behind it.
        num_bytes: its content's size, expected.

    Returns:
        All blocks back to back, uint8 (n,), and the size of each, int32 (ceil(num_bytes / BLOCK_BYTES),). Inflated one by one,
        they give BLOCK_BYTES each, the last one the rest.

    Raises:
        ValueError: the frame is damaged, holds another size, or is not one of independent blocks of 64 KiB.
    """
    flags, place = _read_header(data, num_bytes)
    pieces: list[bytes | memoryview] = []
    sizes: list[int] = []
    view = memoryview(data)
    remaining = num_bytes
    while remaining > 0:
        (word,) = struct.unpack_from("<I", data, _check_end(data, place, 4))
        size = word & ~_STORED
        if not 0 < size <= BLOCK_BYTES:
            raise ValueError(f"LZ4 frame: block {len(sizes)} is of {size} bytes, expected 1 to {BLOCK_BYTES}")
        block = view[place + 4 : _check_end(data, place + 4, size) + size]
        place += 4 + size
        if flags & _BLOCK_CHECKSUM:
            (checksum,) = struct.unpack_from("<I", data, _check_end(data, place, 4))
            if checksum != xxhash.xxh32_intdigest(block):
                raise ValueError(f"LZ4 frame: the checksum of block {len(sizes)} differs")
            place += 4
        head = b""
        if word & _STORED:
            if size != min(remaining, BLOCK_BYTES):
                raise ValueError(f"LZ4 frame: block {len(sizes)} stores {size} bytes, expected {min(remaining, BLOCK_BYTES)}")
            head = _begin_literals(size)
        pieces += [head, block]
        sizes.append(len(head) + size)
        remaining -= BLOCK_BYTES
    _check_tail(data, place, flags)
    return np.frombuffer(bytearray().join(pieces), dtype=np.uint8), np.array(sizes, dtype=np.int32)


def _read_header(data: bytes, num_bytes: int) -> tuple[int, int]:
    """Test a frame's header; return its flags and the place of the first block."""
    if data[:4] != _MAGIC:
        raise ValueError("not an LZ4 frame")
    flags, sizes = data[_check_end(data, 4, 2)], data[5]
    if flags >> 6 != 1 or flags & _RESERVED or sizes & 0x8F:
        raise ValueError(f"LZ4 frame: header {flags:02x} {sizes:02x} is of an unknown version")
    if not flags & _INDEPENDENT or sizes >> 4 != _64_KIB or flags & _DICTIONARY:
        raise ValueError("LZ4 frame: not of independent blocks of 64 KiB")
    if not flags & _CONTENT_SIZE:
        raise ValueError("LZ4 frame declares no size")
    (declared,) = struct.unpack_from("<Q", data, _check_end(data, 6, 8))
    if declared != num_bytes:
        raise ValueError(f"LZ4 frame declares {declared} bytes, expected {num_bytes}")
    if data[_check_end(data, 14, 1)] != xxhash.xxh32_intdigest(data[4:14]) >> 8 & 0xFF:
        raise ValueError("LZ4 frame: the checksum of the header differs")
    return flags, 15


def _begin_literals(size: int) -> bytes:
    """Write what stands in front of `size` bytes to make them an LZ4 block of literals alone."""
    if size < 15:
        return bytes([size << 4])
    num_full, rest = divmod(size - 15, 255)
    return b"\xf0" + b"\xff" * num_full + bytes([rest])


def _check_tail(data: bytes, place: int, flags: int) -> None:
    """Test that the end mark, and the content's checksum where there is one, are the last bytes."""
    (word,) = struct.unpack_from("<I", data, _check_end(data, place, 4))
    if word != _END_MARK:
        raise ValueError("LZ4 frame holds more blocks than its size asks for")
    place += 4 + (4 if flags & _CONTENT_CHECKSUM else 0)
    if len(data) != place:
        raise ValueError(f"LZ4 frame is of {len(data)} bytes, expected {place}")


def _check_end(data: bytes, place: int, num_bytes: int) -> int:
    """Return `place`, if `num_bytes` follow it."""
    if place + num_bytes > len(data):
        raise ValueError(f"LZ4 frame ends after {len(data)} bytes, in the middle of it")
    return place
