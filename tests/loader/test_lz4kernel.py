"""The compiled LZ4 decoder: what it takes the lz4 package takes too, to the same bytes, and it stays inside of its arrays."""

from __future__ import annotations

import struct
from collections.abc import Callable

import lz4.block
import lz4.frame
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from loader_shards import make_image

from unetfast.data.codecs import encode_image, encode_mask, inflate_bits
from unetfast.loader.kernels.find import find_kernel

pytest.importorskip("numba")

GUARD = 64
SETTINGS = {"block_size": lz4.frame.BLOCKSIZE_MAX64KB, "block_linked": False, "store_size": True}
LARGER_BLOCKS = SETTINGS | {"block_size": lz4.frame.BLOCKSIZE_MAX1MB}
BLOCK_BYTES = 65536


def inflate(frame: bytes, num_bytes: int) -> bytes | None:
    """Inflate a frame between bytes that must stay as they are; None where it was refused."""
    kernel = find_kernel("lz4")
    assert kernel.call is not None, kernel.problem
    found = []
    for around in (0x00, 0xFF):  # what lies behind the frame must make no difference either
        data = np.full(len(frame) + 2 * GUARD, around, np.uint8)
        data[GUARD : GUARD + len(frame)] = np.frombuffer(frame, np.uint8)
        out = np.full(num_bytes + 2 * GUARD, 0xA5, np.uint8)
        done = kernel.call(data[GUARD : GUARD + len(frame)], out[GUARD : GUARD + num_bytes])
        assert (out[:GUARD] == 0xA5).all()
        assert (out[GUARD + num_bytes :] == 0xA5).all()
        found.append(out[GUARD : GUARD + num_bytes].tobytes() if done else None)
    assert found[0] == found[1]
    return found[0]


def inflate_by_library(frame: bytes, num_bytes: int) -> bytes | None:
    try:
        context = lz4.frame.create_decompression_context()
        content, num_read, complete = lz4.frame.decompress_chunk(context, frame, max_length=num_bytes)
    except RuntimeError:
        return None
    return content if complete and num_read == len(frame) and len(content) == num_bytes else None


def compress(content: bytes, level: int = 0) -> bytes:
    return lz4.frame.compress(content, compression_level=level, **SETTINGS)


def make_content(kind: str, num_bytes: int) -> bytes:
    """Return bytes that are all the same, random, periodic (the kind is the period), or some of each."""
    rng = np.random.default_rng(num_bytes)
    if kind == "zeros":
        return bytes(num_bytes)
    if kind == "noise":
        return rng.bytes(num_bytes)
    if kind == "mixed":
        runs = [rng.bytes(int(size)) if size % 2 else bytes([size % 256]) * int(size) for size in rng.integers(1, 300, 1500)]
        return (b"".join(runs) * (1 + num_bytes // 100_000))[:num_bytes]
    return (rng.bytes(int(kind)) * (num_bytes // int(kind) + 1))[:num_bytes]


KINDS = ["zeros", "noise", "mixed", *map(str, range(1, 21))]


@pytest.mark.parametrize("level", [0, 9])
@pytest.mark.parametrize("kind", KINDS)
def test_contents_of_all_sizes_come_back(kind: str, level: int) -> None:
    sizes = [*range(1, 140), *range(140, 700, 37), 65535, 65536, 65537, 65536 + 12, 131_072, 200_000]
    for num_bytes in sizes:
        content = make_content(kind, num_bytes)
        assert inflate(compress(content, level), num_bytes) == content, num_bytes


def test_nothing_is_no_frame_of_ours() -> None:
    assert inflate(b"", 0) is None
    assert inflate(b"", 10) is None
    assert inflate(compress(b""), 0) in (None, b"")


@pytest.mark.parametrize("hw", [(160, 240), (37, 53), (255, 257)])
def test_images_and_masks_as_they_are_packed(hw: tuple[int, int]) -> None:
    rgb_HWC = make_image(*hw, 0)
    assert inflate(encode_image(rgb_HWC, "lz4"), rgb_HWC.nbytes) == rgb_HWC.tobytes()
    mask_HW = rgb_HWC[..., 0] // 100
    assert inflate(encode_mask(mask_HW, "lz4", 8), mask_HW.nbytes) == mask_HW.tobytes()
    wide_HW = mask_HW.astype(np.uint16) * 300
    assert inflate(encode_mask(wide_HW, "lz4", 16), wide_HW.nbytes) == wide_HW.tobytes()
    frame = encode_mask(mask_HW // 2, "lz4", 1)
    bits_HB = inflate_bits(frame, height=hw[0], width=hw[1])
    assert inflate(frame, bits_HB.nbytes) == bits_HB.tobytes()


def build_frame(blocks: list[bytes], num_bytes: int, *, head: bytes = b"\x68\x40", mark: bytes = bytes(4)) -> bytes:
    """Write a frame by hand, with a right checksum in its header.

    Args:
        blocks: each with its size in front.
        num_bytes: that it declares.
        head: flags and code of the block size.
        mark: at its end.
    """
    head += struct.pack("<Q", num_bytes)
    return b"\x04\x22\x4d\x18" + head + bytes([xxhash.xxh32_intdigest(head) >> 8 & 255]) + b"".join(blocks) + mark


def block(data: bytes, *, stored: bool = False) -> bytes:
    return struct.pack("<I", len(data) | (1 << 31 if stored else 0)) + data


def test_a_frame_by_hand_is_taken() -> None:
    sequence = b"\x44abcd\x04\x00" + b"\x80" + b"vwxyzvwx"  # abcd, eight bytes from four before, the last literals
    assert inflate(build_frame([block(sequence)], 20), 20) == b"abcd" * 3 + b"vwxyzvwx"
    assert inflate(build_frame([block(b"abc", stored=True)], 3), 3) == b"abc"


# four bytes, a match of eight from `offset` before, last literals
def with_offset(offset: int) -> bytes:
    return b"\x44abcd" + struct.pack("<H", offset) + b"\x80vwxyzvwx"


LITERALS = b"\xf0\x05" + b"0123456789abcdefghij"  # twenty
REFUSED: dict[str, tuple[Callable[[], bytes], int]] = {
    "another magic": (lambda: b"PK" + compress(b"a" * 50)[2:], 50),
    "checksum of the header": (lambda: compress(b"a" * 50)[:14] + b"\x00" + compress(b"a" * 50)[15:], 50),
    "another size": (lambda: compress(b"a" * 50), 51),
    "linked blocks": (lambda: lz4.frame.compress(bytes(200_000), **SETTINGS | {"block_linked": True}), 200_000),
    "larger blocks": (lambda: lz4.frame.compress(bytes(200_000), **LARGER_BLOCKS), 200_000),
    "checksum of the content": (lambda: lz4.frame.compress(b"a" * 50, content_checksum=True, **SETTINGS), 50),
    "checksum of a block": (lambda: lz4.frame.compress(b"a" * 50, block_checksum=True, **SETTINGS), 50),
    "no size": (lambda: lz4.frame.compress(b"a" * 50, **SETTINGS | {"store_size": False}), 50),
    "a stored block too short": (lambda: build_frame([block(b"abc", stored=True)], 4), 4),
    "a stored block too long": (lambda: build_frame([block(b"abcde", stored=True)], 4), 4),
    "a block behind the end": (lambda: build_frame([struct.pack("<I", 500) + b"abc"], 300), 300),
    "a block of 64 KiB and more": (lambda: build_frame([block(bytes(70_000))], 65536), 65536),
    "an empty block": (lambda: build_frame([block(b"")], 4), 4),
    "no end mark": (lambda: compress(b"a" * 50)[:-4], 50),
    "another end mark": (lambda: compress(b"a" * 50)[:-4] + b"\1\0\0\0", 50),
    "something behind": (lambda: compress(b"a" * 50) + b"\0", 50),
    "one block too many": (lambda: build_frame([block(b"\x30abc"), block(b"\x30abc")], 3), 3),
    "an offset of nothing": (lambda: build_frame([block(with_offset(0))], 20), 20),
    "an offset before the begin": (lambda: build_frame([block(with_offset(5))], 20), 20),
    "an offset before the block": (
        lambda: build_frame([block(b"a" * 65536, stored=True), block(with_offset(9))], 65556),
        65556,
    ),
    "literals behind the block": (lambda: build_frame([block(b"\xf0\x05abc")], 20), 20),
    "literals behind the content": (lambda: build_frame([block(LITERALS)], 19), 19),
    "a length that does not end": (lambda: build_frame([block(b"\xf0" + b"\xff" * 20)], 500), 500),
    "a match length that does not end": (lambda: build_frame([block(b"\x4fabcd\1\0" + b"\xff" * 20)], 500), 500),
    "a match behind the content": (lambda: build_frame([block(b"\x4fabcd\1\0\xff\xff\0\x80vwxyzvwx")], 40), 40),
    "a match at the end": (lambda: build_frame([block(b"\x44abcd\4\0")], 12), 12),
    "a match without its offset": (lambda: build_frame([block(b"\x44abcd\4")], 12), 12),
    "too few last literals": (lambda: build_frame([block(b"\x44abcd\4\0\x40vwxy")], 16), 16),
    "content that ends too soon": (lambda: build_frame([block(b"\x44abcd\4\0\x80vwxyzvwx")], 30), 30),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_irregular_is_refused(case: str) -> None:
    make, num_bytes = REFUSED[case]
    assert inflate(make(), num_bytes) is None


def check_agreement(frame: bytes, num_bytes: int) -> bool:
    """Say whether a frame was taken; if so the library must give the same."""
    found = inflate(frame, num_bytes)
    if found is not None:
        assert found == inflate_by_library(frame, num_bytes)
    return found is not None


@pytest.mark.parametrize("seed", range(6))
def test_damaged_frames_are_taken_only_where_the_library_takes_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_taken = 0
    for number in range(400):
        content = make_content(KINDS[int(rng.integers(len(KINDS)))], int(rng.integers(1, 3000)))
        frame = bytearray(compress(content, 9 if number % 2 else 0))
        for _ in range(int(rng.integers(1, 4))):
            place = int(rng.integers(15, len(frame)))  # behind the header, whose every change shows in its checksum
            frame[place] = int(rng.integers(256)) if rng.random() < 0.7 else frame[place] ^ 1 << int(rng.integers(8))
        if rng.random() < 0.2:
            del frame[int(rng.integers(15, len(frame))) :]
        num_taken += check_agreement(bytes(frame), len(content))
    assert 20 < num_taken < 400  # a changed literal is no damage that LZ4 could see


@given(data=st.binary(max_size=400), num_bytes=st.integers(1, 3000))
def test_any_bytes_as_a_block(data: bytes, num_bytes: int) -> None:
    check_agreement(build_frame([block(data)], num_bytes), num_bytes)


@given(
    sequences=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(0, 300)), max_size=30),
    last=st.integers(0, 30),
)
def test_any_sequences(sequences: list[tuple[int, int, int]], last: int) -> None:
    """Literals, offset and length of matches in any order, well formed or not; the content's size is what they add up to."""
    data, size = b"", 0
    for count, offset, length in sequences:
        data += write_length(count, length) + bytes(range(count)) + struct.pack("<H", offset) + write_rest(length)
        size += count + length + 4
    data += write_length(last, 0) + bytes(range(100, 100 + last))
    size += last
    if 0 < size <= BLOCK_BYTES:
        check_agreement(build_frame([block(data)], size), size)


def write_length(count: int, length: int) -> bytes:
    return bytes([min(count, 15) << 4 | min(length, 15)]) + write_rest(count)


def write_rest(length: int) -> bytes:
    return b"" if length < 15 else b"\xff" * ((length - 15) // 255) + bytes([(length - 15) % 255])


def test_well_formed_sequences_are_taken() -> None:
    """What the last test may be said to try is not always refused."""
    content = b"".join(bytes([number]) * (number % 40 + 4) for number in range(200))
    data = lz4.block.compress(content, store_size=False)
    assert inflate(build_frame([block(data)], len(content)), len(content)) == content
