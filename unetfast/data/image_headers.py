"""The structure of JPEG, PNG and GIF files, read without decoding a pixel: what Pillow does not tell, or tells too late."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; the three others are tables
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})  # without a length


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """A JPEG's frame header.

    Args:
        marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive; others are rare codings.
        component_ids: one byte a component.
    """

    marker: int
    component_ids: bytes


@dataclass(frozen=True, slots=True)
class PngFacts:
    """A PNG's bit depth, and its EXIF block (b"" without one)."""

    bit_depth: int
    exif: bytes


@dataclass(frozen=True, slots=True)
class GifFacts:
    """A GIF's number of frames, the width and height that hold its screen and all frames (pixels), and if it is whole."""

    num_frames: int
    width: int
    height: int
    complete: bool


def read_jpeg_frame(data: bytes) -> JpegFrame:
    """Find the first frame header of a JPEG (ITU-T T.81, B.2.2).

    Raises:
        ValueError: there is none.
    """
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise ValueError("no marker where one must stand")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _BARE_MARKERS:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker in _SOF_MARKERS:
            segment = data[position + 4 : position + 2 + length]
            if len(segment) < 6 or len(segment) < 6 + 3 * segment[5]:
                break
            return JpegFrame(marker, bytes(segment[6 + 3 * i] for i in range(segment[5])))
        position += 2 + length
    raise ValueError("no frame header")


def check_png(data: bytes) -> PngFacts:
    """Walk all chunks of a PNG and compare their checksums, which Pillow does not do for pixel data.

    Raises:
        ValueError: cut short, a wrong checksum, or no header chunk.
    """
    position, bit_depth, exif = 8, 0, b""
    view = memoryview(data)
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise ValueError(f"wrong checksum in chunk {kind.decode('latin-1')!r}")
        if kind == b"IHDR" and length == 13:
            bit_depth = data[position + 16]
        elif kind == b"eXIf":
            exif = data[position + 8 : end - 4]
        elif kind == b"IEND":
            if not bit_depth:
                break
            return PngFacts(bit_depth, exif)
        position = end
    raise ValueError("the file is cut short")


def read_gif(data: bytes) -> GifFacts:
    """Count the frames of a GIF and find how large a canvas they need.

    Raises:
        ValueError: not made of GIF blocks.
    """
    num_frames, width, height = 0, 0, 0
    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
        while position < len(data) and data[position] != 0x3B:
            block = data[position]
            if block == 0x2C:
                left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, position + 1)
                width, height = max(width, left + frame_width), max(height, top + frame_height)
                num_frames += 1
                # descriptor, colour table, smallest code
                position += 10 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0) + 1
            elif block == 0x21:
                position += 2
            elif block == 0:
                position += 1
                continue
            else:
                raise ValueError(f"unknown block {block:#x}")
            while data[position]:
                position += data[position] + 1
            position += 1
    except (IndexError, struct.error):
        return GifFacts(num_frames, width, height, complete=False)
    return GifFacts(num_frames, width, height, complete=num_frames > 0)
