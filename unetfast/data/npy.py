"""Masks in .npy files: headers checked before memory is taken, frames read one at a time, pickles never opened."""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from unetfast.data.sample import FileSpan
from unetfast.errors import BadSampleError, say_briefly

_HEADER_BYTES = 65536  # far more than any header of a plain array; the parser itself refuses longer ones
_SAVE_AGAIN = "save it again with numpy.save(path, masks.astype(numpy.uint8), allow_pickle=False)"


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """What an .npy file says of itself.

    Args:
        shape: of the array.
        dtype: of the array; never objects.
        fortran_order: the array lies in column order.
        data_offset: first byte of the array in the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fortran_order: bool
    data_offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(path: str) -> NpyHeader:
    """Read and check the header of an .npy file; parsed once per state of the file.

    Raises:
        BadSampleError: the file is unreadable, is no .npy file, holds pickled objects, or has another length than its
            header says.
    """
    try:
        stat = Path(path).stat()
    except OSError as error:
        raise BadSampleError(
            path, f"cannot be read ({error.strerror or error})", "check that it exists and may be read"
        ) from None
    return _read_header_of(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _read_header_of(path: str, size: int, _mtime_ns: int) -> NpyHeader:
    try:
        with Path(path).open("rb", buffering=0) as file:
            start = os.pread(file.fileno(), _HEADER_BYTES, 0)
    except OSError as error:
        raise BadSampleError(
            path, f"cannot be read ({error.strerror or error})", "check that it exists and may be read"
        ) from None
    return parse_npy_header(start, path, file_size=size)


def parse_npy_header(data: bytes, file: str, *, file_size: int) -> NpyHeader:
    """Parse the header in the first bytes of an .npy file.

    Args:
        data: the file's first bytes.
        file: its name, for messages.
        file_size: bytes of the whole file.

    Raises:
        BadSampleError: as in `read_npy_header`.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran_order, dtype = np.lib.format.read_array_header_2_0(stream)
        else:
            raise ValueError(f"format version {version[0]}.{version[1]}")
    except ValueError as error:
        reason = say_briefly(error)
        raise BadSampleError(file, f"is not a .npy file that can be read ({reason})", _SAVE_AGAIN) from None
    if dtype.hasobject:
        raise BadSampleError(file, "holds pickled Python objects, which are never opened", _SAVE_AGAIN)
    header = NpyHeader(tuple(shape), dtype, fortran_order, stream.tell())
    if header.data_offset + header.num_bytes != file_size:
        raise BadSampleError(
            file,
            f"is {file_size} bytes, by its header {header.data_offset + header.num_bytes} (shape {header.shape}, {dtype})",
            "get the file again: it is cut short or damaged",
        )
    return header


def frame_span(path: str, header: NpyHeader, frame: int) -> FileSpan:
    """Say where one frame (index along the first axis) of a C-ordered array lies in its file."""
    length = math.prod(header.shape[1:]) * header.dtype.itemsize
    return FileSpan(path, offset=header.data_offset + frame * length, length=length, frame=frame)


def decode_npy_mask(data: bytes, file: str) -> np.ndarray:
    """Decode a whole .npy file that holds one mask.

    Args:
        data: the file's bytes.
        file: its name, for messages.

    Returns:
        Values, (H, W), an integer dtype of native byte order (bool becomes uint8); read-only.

    Raises:
        BadSampleError: not an .npy file, pickled objects, another length, not integers, or not (H, W).
    """
    header = parse_npy_header(data[:_HEADER_BYTES], file, file_size=len(data))
    if header.dtype.kind not in "bui":
        raise BadSampleError(file, f"holds {header.dtype} values, a mask holds integers", _SAVE_AGAIN)
    if len(header.shape) != 2 or 0 in header.shape:
        raise BadSampleError(file, f"has shape {header.shape}, one mask is (height, width)", _SAVE_AGAIN)
    array = np.frombuffer(data, dtype=header.dtype, offset=header.data_offset)
    array = array.reshape(header.shape, order="F" if header.fortran_order else "C")
    if header.dtype.kind == "b":
        return array.view(np.uint8)
    return np.ascontiguousarray(array.astype(header.dtype.newbyteorder("="), copy=False))
