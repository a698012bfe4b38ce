"""PNGs written band by band, read back by Pillow and OpenCV."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unetfast.infer.png import PngWriter


def write(picture: np.ndarray, band: int = 1000, palette: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    num_channels = 1 if picture.ndim == 2 else picture.shape[2]
    png = PngWriter(file, picture.shape[:2], dtype=picture.dtype, num_channels=num_channels, palette=palette)
    for top in range(0, len(picture), band):
        png.write_rows(picture[top : top + band])
    png.close()
    return file.getvalue()


def draw(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    kind=st.sampled_from(["grey", "palette", "rgb", "grey16"]),
    band=st.integers(1, 45),
    seed=st.integers(0, 9),
)
def test_pillow_and_opencv_read_the_same_pixels(height: int, width: int, kind: str, band: int, seed: int) -> None:
    shape = (height, width, 3) if kind == "rgb" else (height, width)
    picture = draw(shape, np.uint16 if kind == "grey16" else np.uint8, seed)
    palette = draw((256, 3), np.uint8, seed + 1) if kind == "palette" else None
    data = write(picture, band, palette)
    with Image.open(io.BytesIO(data)) as read:
        assert read.mode == {"grey": "L", "palette": "P", "rgb": "RGB", "grey16": "I;16"}[kind]
        np.testing.assert_array_equal(np.asarray(read), picture)
        if palette is not None:
            np.testing.assert_array_equal(np.asarray(read.convert("RGB")), palette[picture])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if palette is not None:
        np.testing.assert_array_equal(shown[:, :, ::-1], palette[picture])
    else:
        np.testing.assert_array_equal(shown[:, :, ::-1] if kind == "rgb" else shown, picture)


def test_a_mask_is_as_small_as_pillows() -> None:
    mask_HW = np.zeros((400, 600), np.uint8)
    cv2.circle(mask_HW, (300, 200), 150, 255, -1)
    buffer = io.BytesIO()
    Image.fromarray(mask_HW).save(buffer, "PNG")
    assert len(write(mask_HW, 7)) < 1.5 * len(buffer.getvalue())


def test_messages() -> None:
    with pytest.raises(ValueError, match="masks are 8-bit grey, palette or RGB, or 16-bit grey"):
        PngWriter(io.BytesIO(), (2, 2), dtype=np.dtype(np.int32))
    with pytest.raises(ValueError, match="a palette goes with one channel"):
        PngWriter(io.BytesIO(), (2, 2), dtype=np.dtype(np.uint16), palette=np.zeros((4, 3), np.uint8))
    with pytest.raises(ValueError, match="sides are 1 to"):
        PngWriter(io.BytesIO(), (0, 2), dtype=np.dtype(np.uint8))
    png = PngWriter(io.BytesIO(), (2, 3), dtype=np.dtype(np.uint8))
    png.write_rows(np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match="rows of shape"):
        png.write_rows(np.zeros((1, 4), np.uint8))
    with pytest.raises(ValueError, match="rows of shape"):
        png.write_rows(np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="1 rows are missing"):
        png.close()
