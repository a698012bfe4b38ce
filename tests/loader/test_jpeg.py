"""The compiled JPEG decoder: libjpeg-turbo's pixels, bit for bit, or no answer at all; never a byte outside of its memory."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from unetfast.loader.jpegfile import decode_by_library, decode_jpeg, has_jpegs
from unetfast.loader.kernels.find import find_kernel

REDUCTIONS = (1, 2, 4, 8)
GUARD = 173
TABLES: list[np.ndarray] = []  # from one file to the next


@pytest.fixture(autouse=True, scope="module")
def needs_numba() -> None:
    pytest.importorskip("numba")
    assert find_kernel("jpeg").problem == ""


def draw(height: int, width: int, seed: int = 0, *, noise: float = 30.0, mode: str = "RGB") -> Image.Image:
    """Draw slopes with noise on them: coefficients of every size, and blocks of one colour."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    slopes = np.stack([x * 3 + y, 255 - y * 2 + x, (x * y) // 7], axis=-1) % 256
    image = slopes + rng.normal(0, noise, (height, width, 3))
    image[: height // 3, : width // 2] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def decode_guarded(data: bytes, hw: tuple[int, int], reduction: int) -> np.ndarray | None:
    """Call the kernel on memory with guards around it, exactly as large as it is told to be; None where it refuses."""
    from unetfast.loader.kernels.jpeg import STREAM_ROOM, count_plane_bytes, make_tables

    height, width = -(-hw[0] // reduction), -(-hw[1] // reduction)
    sizes = (len(data) + STREAM_ROOM, count_plane_bytes(hw), 3 * height * width)
    buffers = [np.full(size + 128, GUARD, np.uint8) for size in sizes]
    stream, samples, out = (buffer[64:-64] for buffer in buffers)
    if not TABLES:
        TABLES.extend(make_tables())
    call = find_kernel("jpeg").call
    assert call is not None
    done = call(np.frombuffer(data, np.uint8), hw, reduction, (stream, samples, *TABLES), out.reshape(height, width, 3))
    for buffer in buffers:
        assert (buffer[:64] == GUARD).all()
        assert (buffer[-64:] == GUARD).all()
    return out.reshape(height, width, 3) if done else None


def check_same(data: bytes, hw: tuple[int, int]) -> None:
    for reduction in REDUCTIONS:
        found = decode_guarded(data, hw, reduction)
        assert found is not None, f"refused at 1/{reduction}"
        np.testing.assert_array_equal(found, decode_by_library(data, hw, reduction), err_msg=f"at 1/{reduction}")


@pytest.mark.parametrize("quality", [3, 30, 75, 95, 100])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_pixels_are_those_of_the_library(subsampling: str, quality: int) -> None:
    for number, hw in enumerate([(64, 96), (61, 99), (128, 272), (200, 301)]):
        noise = (0.0, 4.0, 30.0, 90.0)[number]
        check_same(encode(draw(*hw, seed=quality, noise=noise), quality=quality, subsampling=subsampling), hw)


def test_every_small_size() -> None:
    taken = 0
    for kind in ("4:4:4", "4:2:2", "4:2:0"):
        for height in (1, 2, 7, 8, 9, 16, 17, 33):
            for width in (1, 2, 3, 5, 6, 8, 15, 17, 31, 48, 129):
                data = encode(draw(height, width, seed=width), quality=80, subsampling=kind)
                for reduction in REDUCTIONS:
                    found = decode_guarded(data, (height, width), reduction)
                    if found is not None:
                        taken += 1
                        np.testing.assert_array_equal(found, decode_by_library(data, (height, width), reduction))
    assert taken > 700  # what is left is too narrow for the library's smooth chroma


def test_grey_optimised_tables_and_restarts() -> None:
    hw = (77, 130)
    check_same(encode(draw(*hw, mode="L"), quality=85), hw)
    check_same(encode(draw(*hw), quality=85, optimize=True), hw)
    for blocks in (1, 3, 40):
        check_same(encode(draw(*hw), quality=85, restart_marker_blocks=blocks), hw)
    check_same(encode(draw(*hw), quality=85, restart_marker_rows=1, subsampling="4:2:0"), hw)


def test_what_the_packer_writes_is_taken() -> None:
    rgb_HWC = np.asarray(draw(50, 70))
    check_same(simplejpeg.encode_jpeg(rgb_HWC, quality=95, colorspace="RGB", colorsubsampling="444"), (50, 70))


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"mode": "CMYK"}, {"keep_rgb": True}, {"subsampling": "4:4:0"}], ids=str
)
def test_rare_kinds_are_left_to_the_library(options: dict[str, Any]) -> None:
    options = dict(options)
    image = draw(40, 56, mode=options.pop("mode", "RGB"))
    if options.get("subsampling") == "4:4:0":
        data = simplejpeg.encode_jpeg(np.asarray(image), quality=90, colorsubsampling="440")
    else:
        data = encode(image, quality=90, **options)
    assert decode_guarded(data, (40, 56), 1) is None
    np.testing.assert_array_equal(decode_jpeg(data, (40, 56), 1), decode_by_library(data, (40, 56), 1))


def change_codes(data: bytes, number: int, counts: bytes, symbols: bytes) -> bytes:
    """Put another table of codes in the place of one of a file's."""
    place = 2
    while data[place + 1] != 0xDA:
        size = int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] == 0xC4 and data[place + 4] == number:
            table = bytes([number]) + counts + symbols
            return data[:place] + b"\xff\xc4" + (2 + len(table)).to_bytes(2, "big") + table + data[place + 2 + size :]
        place += 2 + size
    raise AssertionError(f"no table {number}")


@pytest.mark.parametrize("number", [0x00, 0x10, 0x11])
@pytest.mark.parametrize("counts", [bytes(16), bytes([2, *bytes(15)]), bytes([1, 2, *bytes(14)])], ids=["none", "ones", "full"])
def test_tables_that_are_none_are_refused(number: int, counts: bytes) -> None:
    data = encode(draw(24, 40), quality=80)
    broken = change_codes(data, number, counts, bytes(range(sum(counts))))
    with pytest.raises(ValueError, match=r"."):
        decode_by_library(broken, (24, 40), 1)
    for fresh in (True, False):  # nor are they taken for those of the file before
        if fresh:
            TABLES.clear()
        assert decode_guarded(broken, (24, 40), 1) is None
        assert decode_guarded(broken, (24, 40), 1) is None
        check_same(data, (24, 40))


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Change, cut, leave out or double some bytes of a file."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        place, kind = int(rng.integers(2, len(changed))), int(rng.integers(5))
        if kind == 0:
            changed[place] = int(rng.integers(256))
        elif kind == 1:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del changed[place : place + int(rng.integers(1, 9))]
        elif kind == 3:
            changed[place:place] = changed[place : place + int(rng.integers(1, 9))]
        elif len(changed) > 40:
            del changed[max(place, 20) :]
    return bytes(changed)


def test_no_damaged_file_passes_that_the_library_refuses() -> None:
    hw = (48, 80)
    rng = np.random.default_rng(11)
    kinds: tuple[dict[str, Any], ...] = (
        {"subsampling": "4:2:0"},
        {"subsampling": "4:2:2", "optimize": True},
        {"subsampling": "4:4:4", "restart_marker_blocks": 4},
    )
    taken = same = refused = 0
    for options in kinds:
        whole = encode(draw(*hw, noise=10), quality=80, **options)
        for number in range(700):
            data, reduction = damage(whole, rng), REDUCTIONS[number % 4]
            if number % 10 == 0:
                TABLES.clear()
            found = decode_guarded(data, hw, reduction)
            if found is None:
                refused += 1
                continue
            taken += 1
            same += np.array_equal(found, decode_by_library(data, hw, reduction))
    assert min(taken, refused) > 100
    # numbers that no encoder writes overflow where vector instructions do, or not
    assert same > 0.9 * taken, f"{same} of {taken}"


def test_damage_and_wrong_sizes_are_named_as_by_the_library() -> None:
    data = encode(draw(20, 30), quality=90)
    with pytest.raises(ValueError, match=r"JPEG is 30x20, expected 30x21 \(width x height\)"):
        decode_jpeg(data, (21, 30), 1)
    for broken in (data[: len(data) // 2], data[:-2], data[:200] + bytes(40) + data[200:]):
        with pytest.raises(ValueError, match=r".") as by_library:
            decode_by_library(broken, (20, 30), 1)
        with pytest.raises(ValueError, match=re.escape(str(by_library.value))):
            decode_jpeg(broken, (20, 30), 1)


def test_threads_do_not_share_memory() -> None:
    # every second file brings codes of its own
    files = [encode(draw(90, 120, seed=seed), quality=70 + seed, optimize=seed % 2 == 1) for seed in range(8)]
    expected = [decode_by_library(data, (90, 120), 1).copy() for data in files]

    def decode(number: int) -> np.ndarray:
        return decode_jpeg(files[number % 8], (90, 120), 1).copy()

    with ThreadPoolExecutor(4) as threads:
        for number, found in enumerate(threads.map(decode, range(80))):
            np.testing.assert_array_equal(found, expected[number % 8])


def test_a_split_with_jpegs_is_known_by_its_first_images() -> None:
    assert has_jpegs(np.array([1, 0, 2], np.uint8))
    assert not has_jpegs(np.array([1, 2, 1], np.uint8))


@pytest.mark.real
def test_real_files(real_data: Path) -> None:
    taken = 0
    for path in sorted(real_data.rglob("*.jpg")):
        data = path.read_bytes()
        try:
            hw = simplejpeg.decode_jpeg_header(data)[:2]
            expected = decode_by_library(data, hw, 2).copy()
        except ValueError:
            continue
        found = decode_guarded(data, hw, 2)
        if found is not None:
            taken += 1
            np.testing.assert_array_equal(found, expected, err_msg=path.name)
    assert taken > 150
