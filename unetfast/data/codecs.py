"""Pixels <-> the bytes of a shard's member: JPEG, PNG or raw RGB for images, class ids for masks.

Used by the packer (encode) and by every reader of shards (decode). Raw members are standard LZ4 frames (`.lz4` files, any
tool opens them) with the content size in the header and independent blocks of 64 KiB, so that a reader knows the size before it
takes memory and may inflate blocks in parallel. Encoding is deterministic: no times, no names, one thread.

Axis letters: H height, W width, C channels (R, G, B).
"""

from __future__ import annotations

import io
from typing import Any

import lz4.frame
import numpy as np
import simplejpeg
from PIL import Image, PngImagePlugin

JPEG_QUALITY = 95
# HC levels 9 and 12 differ by 4 % in size; 12 costs three times the time
MASK_LZ4_LEVEL = 9
# photographs shrink little at any level; 0 is LZ4's fast mode
IMAGE_LZ4_LEVEL = 0
# magic, flags (version 1, independent blocks, content size follows), blocks of 64 KiB: as `_encode_lz4` begins a frame
_FRAME_START = b"\x04\x22\x4d\x18\x68\x40"


def encode_image(rgb_HWC: np.ndarray, codec: str, quality: int = JPEG_QUALITY) -> bytes:
    """Encode an RGB image.

    Args:
        rgb_HWC: uint8, (H, W, 3).
        codec: "jpeg" (baseline, 4:4:4, lossy), "png" or "lz4" (raw rows of RGB bytes in one LZ4 frame); both lossless.
        quality: of JPEG, 1..100.

    Raises:
        ValueError: another codec, dtype or shape.
    """
    if rgb_HWC.dtype != np.uint8 or rgb_HWC.ndim != 3 or rgb_HWC.shape[2] != 3:
        raise ValueError(f"image is {rgb_HWC.dtype} of shape {rgb_HWC.shape}, expected uint8 (H, W, 3)")
    rgb_HWC = np.ascontiguousarray(rgb_HWC)
    if codec == "jpeg":
        return bytes(simplejpeg.encode_jpeg(rgb_HWC, quality=quality, colorspace="RGB", colorsubsampling="444"))
    if codec == "png":
        return _encode_png(rgb_HWC)
    if codec == "lz4":
        return _encode_lz4(rgb_HWC, IMAGE_LZ4_LEVEL)
    raise ValueError(f"image codec {codec!r}; known are jpeg, png, lz4")


def decode_image(data: bytes | memoryview, codec: str, *, height: int, width: int) -> np.ndarray:
    """Decode an image member at full size.

    The sizes are compared before memory for pixels is taken. EXIF tags of a JPEG are not applied. Runs without the GIL.

    Args:
        data: the member's bytes.
        codec: "jpeg", "png" or "lz4".
        height: expected, pixels.
        width: expected, pixels.

    Returns:
        RGB, uint8, (H, W, 3).

    Raises:
        ValueError: the bytes are damaged, or hold another size.
    """
    if codec == "jpeg":
        found_height, found_width, _, _ = simplejpeg.decode_jpeg_header(data)
        _check_size("JPEG", (found_height, found_width), (height, width))
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    if codec == "png":
        return _decode_png(data, (height, width), modes=("RGB",))
    if codec == "lz4":
        return np.frombuffer(_decode_lz4(data, height * width * 3), dtype=np.uint8).reshape(height, width, 3)
    raise ValueError(f"image codec {codec!r}; known are jpeg, png, lz4")


def encode_mask(mask_HW: np.ndarray, codec: str, mask_bits: int) -> bytes:
    """Encode class ids without loss.

    Args:
        mask_HW: ids, uint8 or uint16, (H, W).
        codec: "lz4" or "png" (mode L, or 16-bit grey for uint16).
        mask_bits: bits of a stored LZ4 pixel: 1 (ids 0 and 1, packed by rows, most significant bit first, each row padded to a
            byte), 8, or 16 (little-endian). A PNG holds 8 bits for 1 and 8.

    Raises:
        ValueError: another codec, dtype or shape, or ids that do not fit `mask_bits`.
    """
    if mask_HW.ndim != 2 or mask_HW.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"mask is {mask_HW.dtype} of shape {mask_HW.shape}, expected uint8 or uint16 (H, W)")
    _check_bits(mask_bits)
    if mask_bits < 16 and mask_HW.size and int(mask_HW.max()) >= 1 << mask_bits:
        raise ValueError(f"mask holds id {int(mask_HW.max())}, which does not fit {mask_bits} bits")
    if codec == "png":
        return _encode_png(np.ascontiguousarray(mask_HW.astype(np.uint16 if mask_bits == 16 else np.uint8)))
    if codec != "lz4":
        raise ValueError(f"mask codec {codec!r}; known are lz4, png")
    rows = np.packbits(mask_HW.astype(np.uint8), axis=1) if mask_bits == 1 else mask_HW.astype(_mask_dtype(mask_bits))
    return _encode_lz4(np.ascontiguousarray(rows), MASK_LZ4_LEVEL)


def decode_mask(data: bytes | memoryview, codec: str, mask_bits: int, *, height: int, width: int) -> np.ndarray:
    """Decode a mask member at its stored size.

    The sizes are compared before memory for pixels is taken. Runs without the GIL.

    Args:
        data: the member's bytes.
        codec: "lz4" or "png".
        mask_bits: 1, 8 or 16, as it was encoded.
        height: expected, pixels.
        width: expected, pixels.

    Returns:
        Ids, uint8 (uint16 where `mask_bits` is 16), (H, W); may be read-only.

    Raises:
        ValueError: the bytes are damaged, or hold another size.
    """
    _check_bits(mask_bits)
    if codec == "png":
        return _decode_png(data, (height, width), modes=("I;16",) if mask_bits == 16 else ("L",))
    if codec != "lz4":
        raise ValueError(f"mask codec {codec!r}; known are lz4, png")
    if mask_bits == 1:
        return np.unpackbits(inflate_bits(data, height=height, width=width), axis=1, count=width)
    if mask_bits == 8:
        return np.frombuffer(_decode_lz4(data, height * width), np.uint8).reshape(height, width)
    ids = np.frombuffer(_decode_lz4(data, height * width * 2), _mask_dtype(16)).reshape(height, width)
    return ids.astype(np.uint16, copy=False)


def inflate_bits(data: bytes | memoryview, *, height: int, width: int) -> np.ndarray:
    """Inflate a bit-packed LZ4 mask without unpacking it.

    Args:
        data: the member's bytes, of a mask with `mask_bits` 1.
        height: expected, pixels.
        width: expected, pixels.

    Returns:
        Rows of bits, most significant bit first, uint8, (H, ceil(W / 8)); read-only.

    Raises:
        ValueError: the bytes are damaged, or hold another size.
    """
    return np.frombuffer(_decode_lz4(data, height * ((width + 7) // 8)), dtype=np.uint8).reshape(height, -1)


def _mask_dtype(mask_bits: int) -> np.dtype[Any]:
    return np.dtype("<u2") if mask_bits == 16 else np.dtype("u1")


def _check_bits(mask_bits: int) -> None:
    if mask_bits not in (1, 8, 16):
        raise ValueError(f"mask_bits {mask_bits}; known are 1, 8, 16")


def _check_size(what: str, found_hw: tuple[int, int], expected_hw: tuple[int, int]) -> None:
    if found_hw != expected_hw:
        found, expected = (f"{width}x{height}" for height, width in (found_hw, expected_hw))
        raise ValueError(f"{what} is {found}, expected {expected} (width x height)")


def _encode_lz4(rows: np.ndarray, level: int) -> bytes:
    return bytes(
        lz4.frame.compress(
            rows, compression_level=level, block_size=lz4.frame.BLOCKSIZE_MAX64KB, block_linked=False, store_size=True
        )
    )


def _decode_lz4(data: bytes | memoryview, num_bytes: int) -> bytes:
    """Inflate one frame of exactly `num_bytes`; never takes more memory than that."""
    try:
        # the usual header is read here, since the library's way costs a fifth of a small mask's decode
        usual = data[:6] == _FRAME_START
        declared = int.from_bytes(data[6:14], "little") if usual else lz4.frame.get_frame_info(data)["content_size"]
        if declared != num_bytes:
            raise ValueError(f"LZ4 frame declares {declared} bytes, expected {num_bytes}")
        context = lz4.frame.create_decompression_context()
        content, num_read, complete = lz4.frame.decompress_chunk(context, data, max_length=num_bytes)
    except RuntimeError as error:
        raise ValueError(f"not a sound LZ4 frame: {error}") from None
    if len(content) != num_bytes or num_read != len(data) or not complete:
        raise ValueError(f"LZ4 frame of {len(data)} bytes holds {len(content)} bytes, expected {num_bytes}")
    return content if isinstance(content, bytes) else bytes(content)


def _encode_png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _decode_png(data: bytes | memoryview, expected_hw: tuple[int, int], modes: tuple[str, ...]) -> np.ndarray:
    try:
        # the class itself: Image.open would warn of large images, whose size is known and compared here
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            _check_size("PNG", (image.height, image.width), expected_hw)
            if image.mode not in modes:
                raise ValueError(f"PNG is of mode {image.mode}, expected {' or '.join(modes)}")
            return np.array(image)
    except (SyntaxError, OSError, EOFError) as error:  # Pillow's ways to say that a PNG is damaged
        raise ValueError(f"not a sound PNG: {error}") from None
