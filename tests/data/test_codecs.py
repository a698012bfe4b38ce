"""Codecs: what is encoded is decoded by us and by strangers, and damage raises."""

from __future__ import annotations

import io

import lz4.frame
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unetfast.data.codecs import decode_image, decode_mask, encode_image, encode_mask

sizes = st.tuples(st.integers(1, 70), st.integers(1, 70))


def random_rgb(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def random_mask(height: int, width: int, bits: int, seed: int = 0) -> np.ndarray:
    dtype = np.uint16 if bits == 16 else np.uint8
    return np.random.default_rng(seed).integers(0, 1 << bits, (height, width)).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(size=sizes, seed=st.integers(0, 1000), codec=st.sampled_from(["png", "lz4"]))
def test_lossless_images_come_back(size: tuple[int, int], seed: int, codec: str) -> None:
    rgb = random_rgb(*size, seed)
    data = encode_image(rgb, codec)
    np.testing.assert_array_equal(decode_image(data, codec, height=size[0], width=size[1]), rgb)
    assert encode_image(np.asfortranarray(rgb), codec) == data


@settings(max_examples=100, deadline=None)
@given(size=sizes, seed=st.integers(0, 1000), codec=st.sampled_from(["png", "lz4"]), bits=st.sampled_from([1, 8, 16]))
def test_masks_come_back(size: tuple[int, int], seed: int, codec: str, bits: int) -> None:
    mask = random_mask(*size, bits, seed)
    decoded = decode_mask(encode_mask(mask, codec, bits), codec, bits, height=size[0], width=size[1])
    np.testing.assert_array_equal(decoded, mask)
    assert decoded.dtype == (np.uint16 if bits == 16 else np.uint8)


def test_jpeg_is_baseline_444_and_close() -> None:
    ramp = np.linspace(0, 255, 48 * 64).astype(np.uint8).reshape(48, 64)
    rgb = np.dstack([ramp, ramp[::-1], ramp])
    data = encode_image(rgb, "jpeg")
    assert simplejpeg.decode_jpeg_header(data) == (48, 64, "YCbCr", "444")
    with Image.open(io.BytesIO(data)) as image:
        assert "progressive" not in image.info
    assert np.abs(decode_image(data, "jpeg", height=48, width=64).astype(int) - rgb).mean() < 2


def test_grey_jpeg_decodes_to_rgb() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "JPEG")
    rgb = decode_image(stream.getvalue(), "jpeg", height=8, width=8)
    assert rgb.shape == (8, 8, 3)
    assert (rgb[..., 0] == rgb[..., 1]).all()


def test_lz4_members_are_standard_frames() -> None:
    """Contract with strangers: lz4's own library reads the frames by the rules of docs/formats.md."""
    rgb = random_rgb(150, 201)
    data = encode_image(rgb, "lz4")
    info = lz4.frame.get_frame_info(data)
    assert (info["content_size"], info["block_size"], info["block_linked"]) == (rgb.nbytes, 65536, False)
    assert lz4.frame.decompress(data) == rgb.tobytes()
    bits = random_mask(5, 11, 1)
    packed = np.frombuffer(lz4.frame.decompress(encode_mask(bits, "lz4", 1)), np.uint8).reshape(5, 2)
    assert [packed[0, 0] >> 7, packed[0, 0] & 1, packed[0, 1] >> 7] == [bits[0, 0], bits[0, 7], bits[0, 8]]
    wide = random_mask(5, 7, 16)
    assert lz4.frame.decompress(encode_mask(wide, "lz4", 16)) == wide.astype("<u2").tobytes()


@pytest.mark.parametrize(("bits", "mode"), [(1, "L"), (8, "L"), (16, "I;16")])
def test_png_masks_hold_ids_for_pillow(bits: int, mode: str) -> None:
    mask = random_mask(9, 10, bits)
    with Image.open(io.BytesIO(encode_mask(mask, "png", bits))) as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.array(image), mask)


@pytest.mark.parametrize("codec", ["jpeg", "png", "lz4"])
def test_damaged_images_raise(codec: str) -> None:
    data = encode_image(random_rgb(64, 64), codec)
    for broken in (b"", data[:10], data[: len(data) // 2], b"\0" * len(data)):
        with pytest.raises(ValueError):  # noqa: PT011 (each decoder has its own words)
            decode_image(broken, codec, height=64, width=64)
    with pytest.raises(ValueError, match="expected"):
        decode_image(data, codec, height=64, width=63)


@pytest.mark.parametrize("codec", ["png", "lz4"])
def test_damaged_masks_raise(codec: str) -> None:
    data = encode_mask(random_mask(64, 64, 8), codec, 8)
    for broken in (b"", data[:10], data[: len(data) // 2], b"\0" * len(data)):
        with pytest.raises(ValueError):  # noqa: PT011 (each decoder has its own words)
            decode_mask(broken, codec, 8, height=64, width=64)
    with pytest.raises(ValueError, match="expected"):
        decode_mask(data, codec, 8, height=65, width=64)


def test_trailing_bytes_and_second_frames_raise() -> None:
    data = encode_mask(random_mask(8, 8, 8), "lz4", 8)
    for broken in (data + b"x", data + data):
        with pytest.raises(ValueError, match="LZ4"):
            decode_mask(broken, "lz4", 8, height=8, width=8)


def test_frame_that_lies_about_its_size_takes_no_memory() -> None:
    """Content beyond the declared size is refused, and never inflated."""
    honest = bytearray(lz4.frame.compress(bytes(50_000_000), store_size=True, block_linked=False))
    with pytest.raises(ValueError, match="declares 50000000 bytes, expected 64"):
        decode_mask(bytes(honest), "lz4", 8, height=8, width=8)
    small = lz4.frame.compress(bytes(64), store_size=True)
    honest[: 6 + 8 + 1] = small[: 6 + 8 + 1]  # magic, descriptor with the content size, and its checksum
    with pytest.raises(ValueError, match="LZ4"):
        decode_mask(bytes(honest), "lz4", 8, height=8, width=8)


def test_png_bomb_is_refused_by_its_header() -> None:
    stream = io.BytesIO()
    Image.new("L", (5_000, 5_000)).save(stream, "PNG")
    with pytest.raises(ValueError, match="5000x5000"):
        decode_mask(stream.getvalue(), "png", 8, height=8, width=8)


def test_wrong_arguments_raise() -> None:
    mask = np.full((2, 2), 2, np.uint8)
    with pytest.raises(ValueError, match="does not fit 1 bits"):
        encode_mask(mask, "lz4", 1)
    with pytest.raises(ValueError, match="mask_bits 4"):
        encode_mask(mask, "lz4", 4)
    with pytest.raises(ValueError, match="expected uint8 or uint16"):
        encode_mask(mask.astype(int), "lz4", 8)
    with pytest.raises(ValueError, match="mask codec"):
        encode_mask(mask, "jpeg", 8)
    with pytest.raises(ValueError, match="mask codec"):
        decode_mask(b"", "jpeg", 8, height=2, width=2)
    with pytest.raises(ValueError, match="image codec"):
        encode_image(random_rgb(2, 2), "webp")
    with pytest.raises(ValueError, match="image codec"):
        decode_image(b"", "webp", height=2, width=2)
    with pytest.raises(ValueError, match="expected uint8"):
        encode_image(mask, "png")
