"""One sample: what is copied, what is encoded, what is counted, what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from plain_source import PlainMasks, make_labels

from unetfast.data.codecs import decode_image, decode_mask
from unetfast.data.encode import SampleEncoder, choose_codec, choose_size, resize_image, resize_mask, sum_channels
from unetfast.data.image import LoadedImage
from unetfast.data.options import PackOptions
from unetfast.data.sample import FileSpan, Sample, SampleRef, SampleStats
from unetfast.errors import BadSampleError

RGB = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
MASK = np.random.default_rng(1).integers(0, 3, (20, 31)).astype(np.uint8)


def encode(
    folder: Path,
    options: PackOptions | None = None,
    *,
    image: Image.Image | None = None,
    mask: np.ndarray = MASK,
    suffix: str = ".png",
    **save: object,
) -> tuple[Sample, SampleStats, bytes]:
    image_path, mask_path = folder / f"a{suffix}", folder / "a_mask.png"
    (image or Image.fromarray(RGB)).save(image_path, **save)  # type: ignore[arg-type]
    Image.fromarray(mask).save(mask_path)
    ref = SampleRef("a", f"a{suffix}", FileSpan(str(image_path)), FileSpan(str(mask_path)), group="g")
    sample, stats = SampleEncoder(make_labels(3), PlainMasks(), options or PackOptions()).encode(ref)
    return sample, stats, image_path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_sums_equal_numpy(height: int, width: int, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    sums, squares = sum_channels(rgb)
    wide = rgb.reshape(-1, 3).astype(np.int64)
    assert sums.tolist() == wide.sum(axis=0).tolist()
    assert squares.tolist() == (wide**2).sum(axis=0).tolist()


def test_sums_do_not_overflow() -> None:
    white = np.full((70_000, 2, 3), 255, np.uint8)
    sums, squares = sum_channels(white)
    assert sums.tolist() == [140_000 * 255] * 3
    assert squares.tolist() == [140_000 * 255**2] * 3


@settings(max_examples=60, deadline=None)
@given(source=st.tuples(st.integers(1, 50), st.integers(1, 50)), target=st.tuples(st.integers(1, 50), st.integers(1, 50)))
def test_masks_are_resized_by_the_nearest_pixel(source: tuple[int, int], target: tuple[int, int]) -> None:
    mask = np.arange(source[0] * source[1], dtype=np.uint16).reshape(source)
    rows = np.floor((np.arange(target[0]) + 0.5) * (source[0] / target[0]) + 1e-9).astype(int)
    columns = np.floor((np.arange(target[1]) + 0.5) * (source[1] / target[1]) + 1e-9).astype(int)
    np.testing.assert_array_equal(resize_mask(mask, target), mask[np.ix_(rows, columns)])
    np.testing.assert_array_equal(resize_mask(mask, source), mask)


def test_images_are_resized_by_the_antialiased_triangle() -> None:
    expected = np.array(Image.fromarray(RGB).resize((7, 9), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_image(RGB, (9, 7)), expected)


@pytest.mark.parametrize(
    ("options", "source", "stored"),
    [
        (PackOptions(), (1280, 1918), (1280, 1918)),
        (PackOptions(max_side=640), (1280, 1918), (427, 640)),
        (PackOptions(max_side=1918), (1280, 1918), (1280, 1918)),
        (PackOptions(max_side=10), (1, 1000), (1, 10)),
        (PackOptions(size_hw=(160, 240)), (100, 90), (160, 240)),
    ],
)
def test_stored_size(options: PackOptions, source: tuple[int, int], stored: tuple[int, int]) -> None:
    assert choose_size(source, options) == stored


@pytest.mark.parametrize(
    ("kind", "copyable", "resized", "expected"),
    [
        ("baseline", True, False, {"auto": "copy", "jpeg": "copy", "png": "copy", "lz4": "lz4"}),
        ("progressive", True, False, {"auto": "copy", "jpeg": "jpeg", "png": "copy", "lz4": "lz4"}),
        ("baseline", False, False, {"auto": "lz4", "jpeg": "jpeg", "png": "png", "lz4": "lz4"}),
        ("", False, False, {"auto": "lz4", "jpeg": "jpeg", "png": "png", "lz4": "lz4"}),
        ("baseline", True, True, {"auto": "lz4", "jpeg": "jpeg", "png": "png", "lz4": "lz4"}),
    ],
)
def test_image_codec_rules(kind: str, copyable: bool, resized: bool, expected: dict[str, str]) -> None:
    loaded = LoadedImage(RGB, copyable, kind)  # type: ignore[arg-type]
    for codec, choice in expected.items():
        assert choose_codec(loaded, (256, 256), resized=resized, image_codec=codec) == choice
    assert choose_codec(loaded, (256, 257), resized=True, image_codec="auto") == "jpeg"


@pytest.mark.parametrize("save", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_files_are_copied_byte_for_byte(tmp_path: Path, save: dict[str, object]) -> None:
    sample, stats, source = encode(tmp_path, suffix=".jpg", **save)
    assert (sample.image, sample.image_codec) == (source, "jpeg")
    assert any("progressive" in note for note in stats.notes) == ("progressive" in save)


def test_grey_jpeg_is_copied_and_noted(tmp_path: Path) -> None:
    sample, stats, source = encode(tmp_path, image=Image.fromarray(RGB).convert("L"), suffix=".jpg")
    assert sample.image == source
    assert "grey -> RGB" in stats.notes


def test_cmyk_becomes_lossless_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    sample, stats, source = encode(tmp_path, image=image, suffix=".jpg")
    assert sample.image_codec == "lz4"
    expected = np.array(Image.open(io.BytesIO(source)).convert("RGB"))
    np.testing.assert_array_equal(decode_image(sample.image, "lz4", height=20, width=31), expected)
    assert "CMYK -> RGB" in stats.notes


@pytest.mark.parametrize(("codec", "stored"), [("auto", "lz4"), ("png", "png"), ("lz4", "lz4"), ("jpeg", "jpeg")])
def test_png_files_by_codec(tmp_path: Path, codec: str, stored: str) -> None:
    sample, stats, _ = encode(tmp_path, PackOptions(image_codec=codec))
    decoded = decode_image(sample.image, stored, height=20, width=31)
    assert sample.image_codec == stored
    if stored == "jpeg":
        assert "stored as JPEG q95 4:4:4" in stats.notes
    else:
        np.testing.assert_array_equal(decoded, RGB)


def test_resized_samples_keep_image_and_mask_together(tmp_path: Path) -> None:
    sample, stats, _ = encode(tmp_path, PackOptions(size_hw=(10, 12)), suffix=".jpg")
    assert (sample.height, sample.width, sample.image_codec) == (10, 12, "lz4")
    mask = decode_mask(sample.mask, "lz4", 8, height=10, width=12)
    np.testing.assert_array_equal(mask, resize_mask(MASK, (10, 12)))
    assert stats.class_pixels.sum() == 120
    assert "resized and stored as LZ4" in stats.notes
    large, stats, _ = encode(tmp_path, PackOptions(size_hw=(300, 300)), suffix=".jpg")
    assert large.image_codec == "jpeg"
    assert "resized and stored as JPEG q95 4:4:4" in stats.notes


def test_stats_equal_numpy(tmp_path: Path) -> None:
    mask = MASK.copy()
    mask[:2] = 255
    sample, stats, _ = encode(tmp_path, mask=mask)
    assert stats.class_pixels.tolist() == [int((mask == class_id).sum()) for class_id in range(3)]
    assert stats.ignored_pixels == 62
    assert stats.channel_sum.tolist() == RGB.reshape(-1, 3).sum(axis=0).tolist()
    assert (sample.key, sample.group, sample.mask_bits) == ("a", "g", 8)


def test_bad_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadSampleError, match=r"a_mask\.png: mask is 30x20, its image is 31x20"):
        encode(tmp_path, mask=MASK[:, :30])
    with pytest.raises(BadSampleError, match=r"a_mask\.png: class ids 7 are not among the 3 classes"):
        encode(tmp_path, mask=np.where(MASK == 1, 7, MASK).astype(np.uint8))
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    ref = SampleRef("cut", "cut.jpg", FileSpan(str(tmp_path / "cut.jpg")), FileSpan(str(tmp_path / "a_mask.png")))
    with pytest.raises(BadSampleError, match=r"cut\.jpg"):
        SampleEncoder(make_labels(3), PlainMasks(), PackOptions()).encode(ref)
