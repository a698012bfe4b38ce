"""Ways in which a sample can be bad, and shard folders with one such sample.

A fault of `BEFORE` is in the member when it is packed, so that its hash fits; one of `AFTER` is done to the packed folder.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from loader_shards import MadeSample, change_index, make_sample, write_shards

from unetfast.data.codecs import encode_image

NUM_SAMPLES = 13
PLACES = {"first": 4, "middle": 6, "last": 7}  # in the second batch of four
SPLITS = ("train", "val")
BOMB_SIDE = 30_000  # pixels; decoded to RGB it is 2.7 GB


def with_image(made: MadeSample, change: Callable[[bytes], bytes]) -> MadeSample:
    return replace(made, sample=replace(made.sample, image=change(made.sample.image)))


def with_mask(made: MadeSample, change: Callable[[bytes], bytes]) -> MadeSample:
    return replace(made, sample=replace(made.sample, mask=change(made.sample.mask)))


def cut_half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def cut_end_marker(jpeg: bytes) -> bytes:
    assert jpeg.endswith(b"\xff\xd9")
    return jpeg[:-2]


def zero_huffman_table(jpeg: bytes) -> bytes:
    """Destroy what stands before the pixels; no decoder gets past it."""
    start = jpeg.index(b"\xff\xc4") + 5
    return jpeg[:start] + bytes(16) + jpeg[start + 16 :]


def drop_huffman_table(jpeg: bytes) -> bytes:
    """Make a table an application's segment, which decoders pass over; without tables of his own nobody decodes the scans."""
    start = jpeg.index(b"\xff\xc4")
    return jpeg[:start] + b"\xff\xe5" + jpeg[start + 2 :]


def insert_odd_marker(jpeg: bytes) -> bytes:
    """Put a marker without content into the header: libjpeg passes over it, DALI rejects the file."""
    return jpeg[:2] + b"\xff\x01" + jpeg[2:]


def begin_in_the_middle(jpeg: bytes) -> bytes:
    """Put a marker among the pixels, of which DALI's decoder only warns."""
    return jpeg[: len(jpeg) // 2] + b"\xff\xd8" + jpeg[len(jpeg) // 2 :]


def zero_end_marker(jpeg: bytes) -> bytes:
    return jpeg[:-2] + bytes(2)


def fill_middle(jpeg: bytes) -> bytes:
    middle = len(jpeg) // 2
    return jpeg[:middle] + b"\xff" * 40 + jpeg[middle + 40 :]


def swap_restart_marker(jpeg: bytes) -> bytes:
    """Give the third restart marker another number."""
    assert b"\xff\xd2" in jpeg
    return jpeg.replace(b"\xff\xd2", b"\xff\xd5", 1)


def say_arithmetic(jpeg: bytes) -> bytes:
    """Write into the frame header that the pixels are coded arithmetically, which they are not."""
    return jpeg.replace(b"\xff\xc0", b"\xff\xc9", 1)


def be_png(made: MadeSample) -> MadeSample:
    return with_image(made, lambda _: encode_image(made.image, "png"))


def claim_bomb(jpeg: bytes) -> bytes:
    """Write 30,000 x 30,000 pixels into the frame header."""
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", BOMB_SIDE, BOMB_SIDE) + jpeg[start + 4 :]


def claim_bomb_png(png: bytes) -> bytes:
    header = png[12:16] + struct.pack(">II", BOMB_SIDE, BOMB_SIDE) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def zero_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(40) + data[middle + 40 :]


def be_one_row_taller(made: MadeSample) -> MadeSample:
    return replace(made, sample=replace(made.sample, height=made.sample.height + 1))


# fault: (image codec, mask codec, what is done before packing)
BEFORE: dict[str, tuple[str, str, Callable[[MadeSample], MadeSample]]] = {
    "truncated JPEG": ("jpeg", "lz4", lambda made: with_image(made, cut_half)),
    "JPEG without its end": ("jpeg", "lz4", lambda made: with_image(made, cut_end_marker)),
    "JPEG with a table destroyed": ("jpeg", "lz4", lambda made: with_image(made, zero_huffman_table)),
    "JPEG with a marker in its pixels": ("jpeg", "lz4", lambda made: with_image(made, begin_in_the_middle)),
    "JPEG of another size": ("jpeg", "lz4", be_one_row_taller),
    "truncated progressive JPEG": ("progressive", "lz4", lambda made: with_image(made, cut_half)),
    "progressive JPEG without a table": ("progressive", "lz4", lambda made: with_image(made, drop_huffman_table)),
    "truncated raw image": ("lz4", "lz4", lambda made: with_image(made, cut_half)),
    "raw image of another size": ("lz4", "lz4", be_one_row_taller),
    "damaged PNG image": ("png", "lz4", lambda made: with_image(made, zero_middle)),
    "truncated LZ4 mask": ("jpeg", "lz4", lambda made: with_mask(made, cut_half)),
    "damaged PNG mask": ("lz4", "png", lambda made: with_mask(made, zero_middle)),
    "bomb": ("jpeg", "lz4", lambda made: with_image(made, claim_bomb)),
    "PNG bomb": ("png", "lz4", lambda made: with_image(made, claim_bomb_png)),
    "bomb with its index row": ("jpeg", "lz4", lambda made: with_image(made, claim_bomb)),
    "PNG bomb with its index row": ("png", "lz4", lambda made: with_image(made, claim_bomb_png)),
}


def find_row(folder: Path, split: str, bad: int) -> tuple[np.void, Path]:
    row = np.load(folder / split / "index.npy")[bad]
    return row, folder / split / f"{int(row['shard']):06}.tar"


def zero_bytes(folder: Path, split: str, bad: int, member: str = "image") -> None:
    """Destroy bytes inside a member, as a bad disk does."""
    row, path = find_row(folder, split, bad)
    data = bytearray(path.read_bytes())
    middle = int(row[f"{member}_offset"]) + int(row[f"{member}_length"]) // 2
    data[middle : middle + 16] = bytes(16)
    path.write_bytes(data)


def zero_mask(folder: Path, split: str, bad: int) -> None:
    """Destroy the beginning of a mask."""
    row, path = find_row(folder, split, bad)
    data = bytearray(path.read_bytes())
    data[int(row["mask_offset"]) : int(row["mask_offset"]) + 8] = bytes(8)
    path.write_bytes(data)


def point_elsewhere(folder: Path, split: str, bad: int) -> None:
    """Make the index name another sample's image, with that one's hash."""

    def change(rows: np.ndarray) -> None:
        for name in ("image_offset", "image_length", "image_xxh3", "shard"):
            rows[name][bad] = rows[name][bad - 1]

    change_index(folder, split, change)


def claim_size(folder: Path, split: str, bad: int, side: int = 1 << 30) -> None:
    def change(rows: np.ndarray) -> None:
        rows["height"][bad] = rows["width"][bad] = side

    change_index(folder, split, change)


def claim_bomb_row(folder: Path, split: str, bad: int) -> None:
    claim_size(folder, split, bad, BOMB_SIDE)


def lose_shard(folder: Path, split: str, bad: int) -> None:
    find_row(folder, split, bad)[1].unlink()


def cut_shard(folder: Path, split: str, bad: int) -> None:
    path = find_row(folder, split, bad)[1]
    path.write_bytes(path.read_bytes()[:700])


AFTER: dict[str, Callable[[Path, str, int], None]] = {
    "zeroed bytes": zero_bytes,
    "zeroed mask": zero_mask,
    "wrong index": point_elsewhere,
    "wrong size": claim_size,
    "bomb with its index row": claim_bomb_row,
    "PNG bomb with its index row": claim_bomb_row,
    "vanished shard": lose_shard,
    "cut shard": cut_shard,
}

FAULTS = list({**BEFORE, **AFTER})
# DALI's decoders pass over these with wrong pixels; the host looks at the markers
BEFORE_BY_MARKERS: dict[str, tuple[str, str, Callable[[MadeSample], MadeSample]]] = {
    "JPEG with its end zeroed": ("jpeg", "lz4", lambda made: with_image(made, zero_end_marker)),
    "JPEG with 0xFF in its pixels": ("jpeg", "lz4", lambda made: with_image(made, fill_middle)),
    "JPEG with restart markers out of order": ("restarts", "lz4", lambda made: with_image(made, swap_restart_marker)),
    "JPEG that is not arithmetic": ("jpeg", "lz4", lambda made: with_image(made, say_arithmetic)),
    "PNG in place of a JPEG": ("jpeg", "lz4", be_png),
}
BEFORE |= BEFORE_BY_MARKERS
ODD_FOR_DALI = "JPEG with an odd marker"  # no fault for the CPU backend
BEFORE[ODD_FOR_DALI] = ("jpeg", "lz4", lambda made: with_image(made, insert_odd_marker))
# the message can only name the shard, or a sample by its number
NAMELESS = ("vanished shard", "cut shard", "wrong index")


def damage(folder: Path, fault: str, bad: int) -> None:
    """Do one of `AFTER` to both splits."""
    for split in SPLITS:
        AFTER[fault](folder, split, bad)


def make_samples(fault: str, bad: int) -> list[MadeSample]:
    """Samples of different sizes, in turn raw and JPEG; the sample `bad` is of the kind that its fault needs."""
    made = [make_sample(i, (30 + i, 40), kind="jpeg" if i % 2 or i == bad else "lz4") for i in range(NUM_SAMPLES)]
    if fault in BEFORE:
        kind, mask_codec, change = BEFORE[fault]
        made[bad] = change(make_sample(bad, (30 + bad, 40), kind=kind, mask_codec=mask_codec))
    return made


def write_bad(folder: Path, fault: str, bad: int) -> Path:
    """Shards of one sample each, the sample `bad` with a fault."""
    write_shards(folder, make_samples(fault, bad), samples_per_shard=1)
    if fault in AFTER:
        damage(folder, fault, bad)
    return folder
