"""One tar shard: its headers, its members, and the `.idx` beside it.

A shard is a plain WebDataset tar in USTAR format: for each sample the image, the mask and a JSON, adjacent and in this order,
with fixed times, owner and mode, so that equal samples give equal bytes. Headers are built here rather than by `tarfile`, whose
general machinery costs more than copying a JPEG.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import xxhash

from unetfast.data.manifest import INDEX_DTYPE
from unetfast.data.sample import IMAGE_CODECS, MASK_CODECS, Sample

TAR_BLOCK = 512
# what WebDataset takes for a member's field: everything past the first dot of its name
IMAGE_EXTENSIONS = {"jpeg": "jpg", "lz4": "image.lz4", "png": "image.png"}
MASK_EXTENSIONS = {"lz4": "mask.lz4", "png": "mask.png"}
JSON_EXTENSION = "json"

_IDX_VERSION = "v1.2"  # of DALI's wds2idx
_MAX_MEMBER = 1 << 32  # lengths are 32-bit in an index row
_NAME_LENGTH = 100
_CHECKSUM = slice(148, 156)
# mode, owner and group, between a header's name and its size
_OWNER = b"0000644\0" + b"0000000\0" + b"0000000\0"
_MTIME = b"00000000000\0"
# type (file), link name, magic and version, owner's and group's names, device numbers, prefix, rest of the block
_TAIL = b"0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 155 + 12)
_FIXED_SUM = sum(_OWNER) + sum(_MTIME) + sum(_TAIL) + 8 * ord(" ")
# what a file is written in: a system call costs as much as copying a small member
_WRITE_BYTES = 1 << 20
_MAX_PIECES = 512  # of a call; systems take 1024
# zeros behind a member, by what its length leaves of a block
_PADDING = [bytes(-length % TAR_BLOCK) for length in range(TAR_BLOCK)]
_quote = json.encoder.encode_basestring_ascii
_pack_row = struct.Struct("<6Q7I4B").pack  # INDEX_DTYPE

# names of a sample's members, and (offset, length) of each
IdxPart = tuple[tuple[str, str, str], list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class ShardContent:
    """What was written to one shard.

    Args:
        num_bytes: size of the tar.
        xxh3: of the tar, 16 hex digits.
        idx: the text of the `.idx` file.
        rows: index rows, INDEX_DTYPE, (samples,); `shard` and `group` are still 0.
    """

    num_bytes: int
    xxh3: str
    idx: str
    rows: np.ndarray


def build_tar_header(name: str, size: int) -> bytes:
    """Build the 512 bytes in front of a member: a USTAR header with fixed times, owner and mode.

    Raises:
        ValueError: the name is no ASCII of at most 100 bytes, or the member does not fit a tar or an index row.
    """
    raw = name.encode("ascii")
    if len(raw) > _NAME_LENGTH or not 0 <= size < _MAX_MEMBER:
        raise ValueError(f"{name}: {size} bytes do not fit a shard (names up to 100 bytes, members below 4 GiB)")
    size_field = b"%011o\0" % size
    total = _FIXED_SUM + sum(raw) + sum(size_field)
    return b"".join((raw.ljust(_NAME_LENGTH, b"\0"), _OWNER, size_field, _MTIME, b"%06o\0 " % total, _TAIL))


def parse_tar_header(block: bytes) -> tuple[str, int]:
    """Read name and size of a member from its header.

    Raises:
        ValueError: the block is no tar header.
    """
    try:
        stated = int(block[_CHECKSUM].rstrip(b"\0 "), 8)
        name = block[:_NAME_LENGTH].split(b"\0", 1)[0].decode("ascii")
        size = int(block[124:135], 8)
    except ValueError:
        raise ValueError("no tar header") from None
    if len(block) != TAR_BLOCK or stated != sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" "):
        raise ValueError("no tar header")
    return name, size


def build_member_names(key: str, image_codec: str, mask_codec: str) -> tuple[str, str, str]:
    """Name the members of a sample: image, mask, JSON."""
    return (
        f"{key}.{IMAGE_EXTENSIONS[image_codec]}",
        f"{key}.{MASK_EXTENSIONS[mask_codec]}",
        f"{key}.{JSON_EXTENSION}",
    )


def build_json(sample: Sample) -> bytes:
    """Write the `<key>.json` of a sample; ASCII, keys sorted, as `json.dumps(tree, sort_keys=True)` writes it."""
    return (
        f'{{"group": {_quote(sample.group)}, "height": {sample.height}, "image_codec": {_quote(sample.image_codec)}, '
        f'"mask_bits": {sample.mask_bits}, "mask_codec": {_quote(sample.mask_codec)}, '
        f'"source_path": {_quote(sample.source_path)}, "width": {sample.width}}}'
    ).encode("ascii")


def build_idx(samples: list[IdxPart]) -> str:
    """Write the `.idx` that DALI's reader takes: a line a sample, `<ext> <data offset> <size> <name>` for each member.

    Args:
        samples: names of the members, and (offset, length) of each.
    """
    return _join_idx([_build_idx_line(names, spans) for names, spans in samples])


def _build_idx_line(names: tuple[str, str, str], spans: list[tuple[int, int]]) -> str:
    members = zip(names, spans, strict=True)
    return " ".join([f"{name.split('.', 1)[1]} {offset} {length} {name}" for name, (offset, length) in members])


def _join_idx(lines: list[str]) -> str:
    return "\n".join([f"{_IDX_VERSION} {len(lines)}", *lines]) + "\n"


class ShardWriter:
    """Writes samples to one tar.

    Use it as a context manager around `add`, and call `finish` after the last sample; a tar that was not finished is not a
    shard, and stays under the temporary name it was given.

    Members go to the file from the memory they came in, about a MiB a call (`writev`): the copy into the page cache is most of
    the time, and no other is made. A sample is hashed for the shard's sum just after its own, while it is in the processor's
    cache.

    Args:
        path: the tar; replaced where it exists.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._hash = xxhash.xxh3_64()
        self._offset = 0
        self._waiting: list[bytes] = []
        self._num_waiting = 0
        self._rows = bytearray()
        self._idx_lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._file.close()
            return
        # a full disk may fail again when the file is closed; the first error is the one to tell
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, sample: Sample) -> None:
        """Append one sample: image, mask, JSON.

        Raises:
            ValueError: its key or a member does not fit a shard.
            OSError: the disk is full, or cannot be written.
        """
        names = build_member_names(sample.key, sample.image_codec, sample.mask_codec)
        image, mask, tree = sample.image, sample.mask, build_json(sample)
        lengths = (len(image), len(mask), len(tree))
        headers = [build_tar_header(name, length) for name, length in zip(names, lengths, strict=True)]
        padding = [_PADDING[length % TAR_BLOCK] for length in lengths]
        hashes = (xxhash.xxh3_64_intdigest(image), xxhash.xxh3_64_intdigest(mask), xxhash.xxh3_64_intdigest(tree))
        start = self._offset
        pieces = (headers[0], image, padding[0] + headers[1], mask, b"".join((padding[1], headers[2], tree, padding[2])))
        self._write(pieces)
        image_offset = start + TAR_BLOCK
        mask_offset = image_offset + lengths[0] + len(pieces[2])
        offsets = (image_offset, mask_offset, mask_offset + lengths[1] + len(padding[1]) + TAR_BLOCK)
        codecs = (IMAGE_CODECS.index(sample.image_codec), MASK_CODECS.index(sample.mask_codec))
        self._rows += _pack_row(*hashes, *offsets, *lengths, 0, sample.height, sample.width, 0, *codecs, sample.mask_bits, 0)
        self._idx_lines.append(_build_idx_line(names, list(zip(offsets, lengths, strict=True))))

    def finish(self) -> ShardContent:
        """Write the end of the tar and bring all of it to the disk."""
        self._write((bytes(2 * TAR_BLOCK),))
        self._flush()
        os.fsync(self._file.fileno())
        rows = np.frombuffer(bytes(self._rows), dtype=INDEX_DTYPE)
        return ShardContent(self._offset, self._hash.hexdigest(), _join_idx(self._idx_lines), rows)

    def _write(self, pieces: tuple[bytes, ...]) -> None:
        for piece in pieces:
            self._hash.update(piece)
        num_bytes = sum(map(len, pieces))
        self._waiting += pieces
        self._num_waiting += num_bytes
        self._offset += num_bytes
        if self._num_waiting >= _WRITE_BYTES or len(self._waiting) > _MAX_PIECES:
            self._flush()

    def _flush(self) -> None:
        """Hand over what waits; a call may write less than it was given."""
        written = os.writev(self._file.fileno(), self._waiting)
        if written < self._num_waiting:
            rest = memoryview(b"".join(self._waiting))[written:]
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        self._waiting, self._num_waiting = [], 0
