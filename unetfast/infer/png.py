"""A PNG written band by band, so that a mask is never whole in memory. Masks alone: rows that repeat cost next to nothing.

Every row is stored as its difference to the row above (filter "up"), which suits areas of one class. Written after the PNG
specification (W3C, third edition), sections 5, 9 and 11.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_UP = 2  # filter type
# (dtype, channels) -> bit depth, colour type
_GREY, _RGB, _PALETTE = 0, 2, 3
_LEVEL = 6


class PngWriter:
    """Writes one PNG from the top down.

    Args:
        file: open for writing, at its start.
        size_hw: height and width, pixels.
        dtype: uint8, or uint16 for 16-bit grey.
        num_channels: 1 (grey, or an index with `palette`) or 3 (RGB).
        palette: RGB of each index, uint8, (up to 256, 3).

    Raises:
        ValueError: a combination that PNG does not have, or a side that is not in 1..2^31 - 1.
    """

    def __init__(
        self,
        file: BinaryIO,
        size_hw: tuple[int, int],
        *,
        dtype: np.dtype[np.generic],
        num_channels: int = 1,
        palette: np.ndarray | None = None,
    ) -> None:
        wide = dtype == np.uint16
        if dtype not in (np.uint8, np.uint16) or num_channels not in (1, 3) or (wide and num_channels == 3):
            raise ValueError(f"{dtype} in {num_channels} channels: masks are 8-bit grey, palette or RGB, or 16-bit grey")
        if palette is not None and (wide or num_channels != 1 or not 1 <= len(palette) <= 256):
            raise ValueError("a palette goes with one channel of 8 bits and has up to 256 colours")
        height, width = size_hw
        if not (0 < height < 1 << 31 and 0 < width < 1 << 31):
            raise ValueError(f"{height}x{width} pixels: a PNG's sides are 1 to 2^31 - 1")
        self._file = file
        self._width = width
        self._rows_left = height
        self._dtype = np.dtype(">u2") if wide else np.dtype(np.uint8)
        self._shape = (width,) if num_channels == 1 else (width, num_channels)
        self._above = np.zeros(width * num_channels * self._dtype.itemsize, dtype=np.uint8)
        self._deflate = zlib.compressobj(_LEVEL)
        color_type = _PALETTE if palette is not None else _GREY if num_channels == 1 else _RGB
        file.write(_SIGNATURE)
        self._write_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16 if wide else 8, color_type, 0, 0, 0))
        if palette is not None:
            self._write_chunk(b"PLTE", np.ascontiguousarray(palette, dtype=np.uint8).tobytes())

    def write_rows(self, rows: np.ndarray) -> None:
        """Write the next rows, (n, W) or (n, W, 3).

        Raises:
            ValueError: of another width, or more rows than the picture has.
        """
        if rows.shape[1:] != self._shape or len(rows) > self._rows_left:
            raise ValueError(f"rows of shape {rows.shape}: {self._rows_left} of shape {self._shape} are missing")
        if not len(rows):
            return
        plain = np.ascontiguousarray(rows, dtype=self._dtype).view(np.uint8).reshape(len(rows), -1)
        filtered = np.empty((len(rows), 1 + plain.shape[1]), dtype=np.uint8)
        filtered[:, 0] = _UP
        np.subtract(plain[0], self._above, out=filtered[0, 1:])
        np.subtract(plain[1:], plain[:-1], out=filtered[1:, 1:])
        self._above = plain[-1].copy()
        self._rows_left -= len(rows)
        self._write_data(self._deflate.compress(filtered.data))

    def close(self) -> None:
        """Finish the file.

        Raises:
            ValueError: rows are missing.
        """
        if self._rows_left:
            raise ValueError(f"{self._rows_left} rows are missing")
        self._write_data(self._deflate.flush())
        self._write_chunk(b"IEND", b"")

    def _write_data(self, data: bytes) -> None:
        if data:
            self._write_chunk(b"IDAT", data)

    def _write_chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(struct.pack(">I", len(data)) + kind)
        self._file.write(data)
        self._file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
