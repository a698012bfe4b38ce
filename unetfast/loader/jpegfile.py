"""JPEGs of the CPU backend: by compiled code where it can be had and the file is of the common kind, else by libjpeg-turbo.

Both give the same pixels, bit for bit. What the compiled code refuses, damaged files among them, is left to libjpeg-turbo.
"""

from __future__ import annotations

import threading

import numpy as np
import simplejpeg

from unetfast.data.sample import IMAGE_CODECS
from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.scratch import scratch_array

_threads = threading.local()  # tables of codes
_FIRST = 256  # images that are looked at


def has_jpegs(codecs: np.ndarray) -> bool:
    """Say whether any of a split's first images is a JPEG; a look at all rows of a large index would take as long as a batch.

    Args:
        codecs: of each sample's image, its place in `IMAGE_CODECS`, (N,).
    """
    return bool((codecs[:_FIRST] == IMAGE_CODECS.index("jpeg")).any())


def decode_jpeg(data: bytes | memoryview, hw: tuple[int, int], reduction: int) -> np.ndarray:
    """Decode a JPEG at 1/reduction of its size; runs without the GIL.

    Args:
        data: the file.
        hw: height and width that it must have, pixels.
        reduction: 1, 2, 4 or 8.

    Returns:
        RGB, uint8, (ceil(H / reduction), ceil(W / reduction), 3); valid until this thread decodes the next one.

    Raises:
        ValueError: the file is damaged, or holds another size.
    """
    kernel = find_kernel("jpeg").call
    if kernel is None:
        return decode_by_library(data, hw, reduction)
    from unetfast.loader.kernels.jpeg import STREAM_ROOM, count_plane_bytes, make_tables

    _check_size(data, hw)  # before memory for pixels is taken
    height, width = -(-hw[0] // reduction), -(-hw[1] // reduction)
    out_HWC = scratch_array("decoded", (height, width, 3), np.uint8)
    stream = scratch_array("stream", (len(data) + STREAM_ROOM,), np.uint8)
    samples = scratch_array("samples", (count_plane_bytes(hw),), np.uint8)
    if not hasattr(_threads, "tables"):
        _threads.tables = make_tables()
    if kernel(np.frombuffer(data, np.uint8), hw, reduction, (stream, samples, *_threads.tables), out_HWC):
        return out_HWC
    return decode_by_library(data, hw, reduction)


def decode_by_library(data: bytes | memoryview, hw: tuple[int, int], reduction: int) -> np.ndarray:
    """Do what `decode_jpeg` does, by libjpeg-turbo alone."""
    _check_size(data, hw)
    height, width = -(-hw[0] // reduction), -(-hw[1] // reduction)
    buffer = scratch_array("decoded", (height, width, 3), np.uint8)
    rgb_HWC = simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width, buffer=buffer)
    if rgb_HWC.shape != (height, width, 3):
        raise ValueError(f"JPEG decoded to {rgb_HWC.shape}, expected {(height, width, 3)}")
    return np.asarray(rgb_HWC)


def _check_size(data: bytes | memoryview, hw: tuple[int, int]) -> None:
    found_hw = simplejpeg.decode_jpeg_header(data)[:2]
    if found_hw != hw:
        raise ValueError(f"JPEG is {found_hw[1]}x{found_hw[0]}, expected {hw[1]}x{hw[0]} (width x height)")
