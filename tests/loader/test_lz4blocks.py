"""Frames cut into blocks: each block, inflated alone, gives its part of the content; damaged and foreign frames are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import lz4.block
import lz4.frame
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from loader_shards import make_image

from unetfast.data.codecs import encode_image, encode_mask
from unetfast.data.reader import open_shards
from unetfast.data.sample import MASK_CODECS
from unetfast.loader.lz4blocks import BLOCK_BYTES, split_frame

SETTINGS = {"block_size": lz4.frame.BLOCKSIZE_MAX64KB, "block_linked": False, "store_size": True}


def inflate(blocks: np.ndarray, sizes: np.ndarray, num_bytes: int) -> bytes:
    """Inflate block by block with LZ4's own decoder, which is told how much each must hold."""
    ends = np.cumsum(sizes)
    content = [
        lz4.block.decompress(
            blocks[end - size : end].tobytes(), uncompressed_size=min(BLOCK_BYTES, num_bytes - number * BLOCK_BYTES)
        )
        for number, (end, size) in enumerate(zip(ends, sizes, strict=True))
    ]
    assert all(len(block) == BLOCK_BYTES for block in content[:-1])
    return b"".join(content)


def check_content(frame: bytes, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    blocks, sizes = split_frame(frame, len(content))
    assert (blocks.dtype, blocks.ndim) == (np.uint8, 1)
    assert (sizes.dtype, sizes.shape) == (np.int32, (-(-len(content) // BLOCK_BYTES),))
    assert sizes.sum() == len(blocks)
    assert inflate(blocks, sizes, len(content)) == content
    return blocks, sizes


def noise(num_bytes: int) -> bytes:
    return np.random.default_rng(num_bytes).bytes(num_bytes)


@pytest.mark.parametrize("kind", ["zeros", "noise", "half"])
@pytest.mark.parametrize("num_bytes", [1, 14, 15, 16, 269, 270, 271, 65535, 65536, 65537, 131072, 300_001])
def test_blocks_give_the_content_back(kind: str, num_bytes: int) -> None:
    content = {
        "zeros": bytes(num_bytes),
        "noise": noise(num_bytes),
        "half": (noise(num_bytes // 2 + 1) + bytes(num_bytes))[:num_bytes],
    }[kind]
    for level in (0, 9):
        check_content(lz4.frame.compress(content, compression_level=level, **SETTINGS), content)


def test_stored_blocks_become_literals() -> None:
    content = noise(3 * BLOCK_BYTES)
    frame = lz4.frame.compress(content, **SETTINGS)
    assert struct.unpack_from("<I", frame, 15)[0] == 1 << 31 | BLOCK_BYTES  # it is stored
    _, sizes = check_content(frame, content)
    assert sizes.tolist() == [BLOCK_BYTES + 2 + (BLOCK_BYTES - 15) // 255] * 3


@pytest.mark.parametrize("block_checksum", [False, True])
@pytest.mark.parametrize("content_checksum", [False, True])
def test_checksums_are_no_part_of_the_blocks(block_checksum: bool, content_checksum: bool) -> None:
    content = bytes(BLOCK_BYTES) + noise(BLOCK_BYTES) + bytes(100)
    plain = split_frame(lz4.frame.compress(content, **SETTINGS), len(content))
    frame = lz4.frame.compress(content, block_checksum=block_checksum, content_checksum=content_checksum, **SETTINGS)
    for found, expected in zip(check_content(frame, content), plain, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("hw", "mask_bits"), [((1280, 1918), 1), ((1280, 1918), 8), ((512, 683), 8), ((512, 683), 16)])
def test_masks_as_they_are_packed(hw: tuple[int, int], mask_bits: int) -> None:
    coarse = np.random.default_rng(0).integers(0, 1 << min(mask_bits, 9), (hw[0] // 40 + 1, hw[1] // 40 + 1))
    mask_HW = coarse.repeat(40, axis=0).repeat(40, axis=1)[: hw[0], : hw[1]].astype(np.uint16 if mask_bits == 16 else np.uint8)
    content = np.packbits(mask_HW, axis=1) if mask_bits == 1 else mask_HW
    check_content(encode_mask(mask_HW, "lz4", mask_bits), content.tobytes())


def test_images_as_they_are_packed() -> None:
    rgb_HWC = make_image(213, 320, 0)
    check_content(encode_image(rgb_HWC, "lz4"), rgb_HWC.tobytes())


def test_masks_of_a_shard_folder(shards: Path) -> None:
    with open_shards(shards).split("train") as reader:
        sample_ids = np.flatnonzero(reader.rows["mask_codec"] == MASK_CODECS.index("lz4"))
        assert len(sample_ids)
        for sample_id in sample_ids.tolist():
            mask_HW = reader.decode_mask(sample_id)
            check_content(reader.read_mask(sample_id), mask_HW.tobytes())


@given(
    parts=st.lists(st.tuples(st.integers(1, 70_000), st.booleans()), min_size=1, max_size=4),
    level=st.sampled_from([0, 3, 9]),
    block_checksum=st.booleans(),
    content_checksum=st.booleans(),
)
def test_any_content(parts: list[tuple[int, bool]], level: int, block_checksum: bool, content_checksum: bool) -> None:
    content = b"".join(noise(size) if random else bytes([size % 256]) * size for size, random in parts)
    frame = lz4.frame.compress(
        content, compression_level=level, block_checksum=block_checksum, content_checksum=content_checksum, **SETTINGS
    )
    check_content(frame, content)


@given(data=st.data())
def test_any_changed_byte_is_seen_where_blocks_have_checksums(data: st.DataObject) -> None:
    content = bytes(BLOCK_BYTES) + noise(200)
    frame = bytearray(lz4.frame.compress(content, block_checksum=True, **SETTINGS))
    place = data.draw(st.integers(0, len(frame) - 1))
    frame[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="LZ4 frame"):
        split_frame(bytes(frame), len(content))


CONTENT = bytes(BLOCK_BYTES) + noise(200)
FRAME = lz4.frame.compress(CONTENT, **SETTINGS)


def with_header(flags: int, sizes: int = 0x40) -> bytes:
    """Change the header's first two bytes, with a right checksum."""
    head = bytes([flags, sizes]) + FRAME[6:14]
    return FRAME[:4] + head + bytes([xxhash.xxh32_intdigest(head) >> 8 & 0xFF]) + FRAME[15:]


def with_word(place: int, word: int) -> bytes:
    return FRAME[:place] + struct.pack("<I", word) + FRAME[place + 4 :]


SECOND = 15 + 4 + struct.unpack_from("<I", FRAME, 15)[0]  # place of the second block's size; its 200 bytes are stored

WRONG: dict[str, tuple[Callable[[], bytes], str]] = {
    "other file": (lambda: b"PK\x03\x04" + FRAME[4:], "not an LZ4 frame"),
    "empty": (lambda: b"", "not an LZ4 frame"),
    "legacy frame": (lambda: b"\x02\x21\x4c\x18" + FRAME[4:], "not an LZ4 frame"),
    "version 2": (lambda: with_header(0xA8), "header a8 40 is of an unknown version"),
    "reserved bit": (lambda: with_header(0x6A), "header 6a 40 is of an unknown version"),
    "reserved bit of the sizes": (lambda: with_header(0x68, 0x41), "header 68 41 is of an unknown version"),
    "linked blocks": (lambda: lz4.frame.compress(CONTENT, **SETTINGS | {"block_linked": True}), "independent blocks of 64 KiB"),
    "larger blocks": (
        lambda: lz4.frame.compress(CONTENT, **SETTINGS | {"block_size": lz4.frame.BLOCKSIZE_MAX256KB}),
        "independent blocks of 64 KiB",
    ),
    "dictionary": (lambda: with_header(0x69), "independent blocks of 64 KiB"),
    "no size": (lambda: lz4.frame.compress(CONTENT, **SETTINGS | {"store_size": False}), "declares no size"),
    "other size": (lambda: lz4.frame.compress(CONTENT + b"a", **SETTINGS), "declares 65737 bytes, expected 65736"),
    "header checksum": (lambda: FRAME[:14] + bytes([FRAME[14] ^ 1]) + FRAME[15:], "checksum of the header differs"),
    "block too large": (lambda: with_word(15, BLOCK_BYTES + 1), "block 0 is of 65537 bytes, expected 1 to 65536"),
    "block missing": (lambda: FRAME[:SECOND] + bytes(4), "block 1 is of 0 bytes"),
    "stored block of another size": (lambda: with_word(SECOND, 1 << 31 | 199), "block 1 stores 199 bytes, expected 200"),
    "cut in the header": (lambda: FRAME[:10], "ends after 10 bytes"),
    "cut before the flags": (lambda: FRAME[:4], "ends after 4 bytes"),
    "cut behind the header": (lambda: FRAME[:15], "ends after 15 bytes"),
    "cut in a block": (lambda: FRAME[:100], "ends after 100 bytes"),
    "cut before the end mark": (lambda: FRAME[:-4], f"ends after {len(FRAME) - 4} bytes"),
    "one block too many": (lambda: FRAME[:-4] + FRAME[15:], "more blocks than its size asks for"),
    "something behind": (lambda: FRAME + b"\0", f"is of {len(FRAME) + 1} bytes, expected {len(FRAME)}"),
    "two frames": (lambda: FRAME + FRAME, f"is of {2 * len(FRAME)} bytes, expected {len(FRAME)}"),
    "content checksum missing": (
        lambda: lz4.frame.compress(CONTENT, content_checksum=True, **SETTINGS)[:-4],
        f"is of {len(FRAME)} bytes, expected {len(FRAME) + 4}",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        split_frame(make(), len(CONTENT))


def test_a_changed_block_is_seen_by_its_checksum() -> None:
    frame = bytearray(lz4.frame.compress(CONTENT, block_checksum=True, **SETTINGS))
    frame[20] ^= 1
    with pytest.raises(ValueError, match="checksum of block 0 differs"):
        split_frame(bytes(frame), len(CONTENT))
