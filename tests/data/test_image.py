"""Images: always RGB of 8 bits, every change noted, anything doubtful refused by name."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zlib
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from unetfast.data import image as image_module
from unetfast.data.image import LoadedImage, TooLargeError, load_image
from unetfast.data.pillow_limit import pillow_allows
from unetfast.errors import BadSampleError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (12, 17), dtype=np.uint8)


def encode(array_or_image, fmt: str, **options) -> bytes:
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 5 % 256, columns * 7 % 256, (rows + columns) * 3 % 256], axis=2).astype(np.uint8)


def exif_bytes(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back(fmt):
    loaded = load_image(encode(RGB, fmt, **({"lossless": True} if fmt == "WEBP" else {})), file="a")
    np.testing.assert_array_equal(loaded.rgb_HWC, RGB)
    plain = LoadedImage(loaded.rgb_HWC)
    for part in fields(LoadedImage):  # nothing is told of them but their pixels
        assert part.name == "rgb_HWC" or getattr(loaded, part.name) == getattr(plain, part.name)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pillow(subsampling, progressive):
    data = encode(smooth(45, 83), "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    loaded = load_image(data, file="a.jpg")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(loaded.rgb_HWC, np.asarray(image))
    assert loaded.copyable
    assert loaded.jpeg_kind == ("progressive" if progressive else "baseline")
    assert loaded.notes == ()


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_grey_is_replicated(fmt):
    loaded = load_image(encode(GREY, fmt), file="a")
    assert loaded.rgb_HWC.shape == (12, 17, 3)
    assert (loaded.rgb_HWC[:, :, 0] == loaded.rgb_HWC[:, :, 2]).all()
    assert loaded.notes == ("grey -> RGB",)
    assert loaded.copyable == (fmt == "JPEG")


def test_cmyk_jpeg_is_converted_and_not_copied():
    data = encode(Image.fromarray(smooth(16, 16)).convert("CMYK"), "JPEG")
    loaded = load_image(data, file="a.jpg")
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(loaded.rgb_HWC, np.asarray(image.convert("RGB")))
    assert not loaded.copyable
    assert loaded.notes == ("CMYK -> RGB",)


def test_jpeg_stored_as_rgb_keeps_its_colours_and_is_not_copied():
    data = encode(smooth(32, 32), "JPEG", quality=95, keep_rgb=True)
    loaded = load_image(data, file="a.jpg")
    assert np.abs(loaded.rgb_HWC.astype(int) - smooth(32, 32)).mean() < 6
    assert not loaded.copyable
    assert loaded.notes == ("JPEG stored as RGB instead of YCbCr",)


def test_sixteen_bit_grey_keeps_the_high_byte():
    values = np.arange(12 * 17, dtype=np.uint16).reshape(12, 17) * 300
    loaded = load_image(encode(values, "PNG"), file="a.png")
    np.testing.assert_array_equal(loaded.rgb_HWC[:, :, 1], values >> 8)
    assert loaded.notes == ("16 bits -> 8 bits", "grey -> RGB")


def test_sixteen_bit_colour_keeps_the_high_byte():
    values = RNG.integers(0, 65536, (5, 4, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    data = png(struct.pack(">IIBBBBB", 4, 5, 16, 2, 0, 0, 0), rows)
    loaded = load_image(data, file="a.png")
    np.testing.assert_array_equal(loaded.rgb_HWC, (values >> 8).astype(np.uint8))
    assert loaded.notes == ("16 bits -> 8 bits",)


def test_sixteen_bits_that_would_turn_black_are_refused():
    with pytest.raises(BadSampleError, match="16-bit file with values of 0 to 200 alone") as caught:
        load_image(encode(np.full((3, 3), 200, np.uint16), "PNG"), file="dark.png")
    assert "convert it to 8 bits yourself" in caught.value.remedy
    loaded = load_image(encode(np.full((3, 3), 4000, np.uint16), "PNG"), file="dim.png")
    assert "16 bits, less than a sixteenth of the range used: dark" in loaded.notes


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_dropped_and_colours_stay(mode):
    channels = [GREY] * (len(mode) - 1) + [np.full_like(GREY, 7)]
    loaded = load_image(encode(np.stack(channels, axis=2), "PNG"), file="a.png")
    np.testing.assert_array_equal(loaded.rgb_HWC, np.repeat(GREY[:, :, None], 3, axis=2))
    assert loaded.notes[0] == "transparency dropped"


def test_palette_image_and_its_transparent_entry():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    loaded = load_image(encode(image, "PNG", transparency=1), file="a.png")
    assert loaded.rgb_HWC.tolist() == [[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [40, 50, 60]]]
    assert loaded.notes == ("transparency dropped",)


def test_one_bit_image():
    loaded = load_image(encode(Image.fromarray(GREY > 99), "PNG"), file="a.png")
    np.testing.assert_array_equal(loaded.rgb_HWC[:, :, 0], np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(fmt, orientation):
    options = {"lossless": True} if fmt == "WEBP" else {"quality": 95} if fmt == "JPEG" else {}
    data = encode(smooth(6, 10), fmt, exif=exif_bytes(orientation), **options)
    with pytest.raises(BadSampleError, match=f"EXIF orientation {orientation}") as caught:
        load_image(data, file="turned.jpg")
    assert "--exif apply" in caught.value.remedy
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    applied = load_image(data, file="turned.jpg", exif="apply")
    np.testing.assert_array_equal(applied.rgb_HWC, upright)
    assert applied.notes == ("EXIF orientation applied",)
    # a copied JPEG would keep its tag, and other readers would turn it
    assert not applied.copyable
    ignored = load_image(data, file="turned.jpg", exif="ignore")
    plain = load_image(encode(smooth(6, 10), fmt, **options), file="plain")
    np.testing.assert_array_equal(ignored.rgb_HWC, plain.rgb_HWC)
    assert not ignored.copyable
    assert ignored.notes == ("EXIF orientation ignored",)


def test_upright_exif_is_no_matter():
    assert load_image(encode(RGB, "JPEG", exif=exif_bytes(1)), file="a.jpg").copyable


def test_unknown_exif_choice_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="not one of error, apply, ignore"):
        load_image(encode(RGB, "JPEG"), file="a.jpg", exif="rotate")


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.97])
def test_cut_short_is_refused_everywhere(fmt, part):
    data = encode(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), fmt)
    with pytest.raises(BadSampleError) as caught:
        load_image(data[: int(len(data) * part)], file="cut.img")
    assert caught.value.file == "cut.img"
    assert "get the file again" in caught.value.remedy or "convert it" in caught.value.remedy


def test_jpeg_with_an_end_marker_but_missing_data_is_refused():
    data = encode(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "JPEG")
    patched = data[: len(data) // 2] + b"\xff\xd9"
    with Image.open(io.BytesIO(patched)) as image:
        image.load()  # Pillow does not see it
    with pytest.raises(BadSampleError, match="is damaged or cut short"):
        load_image(patched, file="hole.jpg")


def test_harmless_bytes_before_the_end_are_noted_and_not_copied():
    data = encode(smooth(32, 32), "JPEG")
    loaded = load_image(data[:-2] + b"abc" + data[-2:], file="a.jpg")
    np.testing.assert_array_equal(loaded.rgb_HWC, load_image(data, file="a.jpg").rgb_HWC)
    assert loaded.notes == ("JPEG with harmless faults",)
    assert not loaded.copyable


def test_bytes_behind_the_end_are_no_matter():
    assert load_image(encode(smooth(32, 32), "JPEG") + b"trailing", file="a.jpg").copyable


def test_every_flipped_byte_of_a_png_is_seen():
    data = encode(RGB, "PNG")
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        with pytest.raises(BadSampleError):
            load_image(bytes(damaged), file="a.png")


@pytest.mark.parametrize("fmt", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_is_refused(fmt):
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 100, 200)]
    data = encode(frames[0], fmt, save_all=True, append_images=frames[1:])
    with pytest.raises(BadSampleError, match="animation of 3 frames") as caught:
        load_image(data, file="moving.gif")
    assert "save the frame" in caught.value.remedy


def png(header: bytes, raw: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def jpeg_of_size(height: int, width: int) -> bytes:
    data = bytearray(encode(smooth(8, 8), "JPEG"))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        png(struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0), b"\0" * 100),
        jpeg_of_size(65000, 65000),
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;",
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\1\0\0;",
    ],
)
def test_bomb_is_refused_by_its_header_without_a_warning(data, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("pixels were decoded"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadSampleError, match="pixels, the limit is"):
            load_image(data, file="bomb")


def test_limit_is_the_callers_and_pillows_own_is_left_alone():
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(BadSampleError, match="17x12 pixels, the limit is 200 pixels"):
        load_image(encode(RGB, "PNG"), file="a.png", max_pixels=200)
    assert load_image(encode(RGB, "PNG"), file="a.png", max_pixels=204).rgb_HWC.shape == (12, 17, 3)
    assert before == Image.MAX_IMAGE_PIXELS
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_picture_that_is_too_large_says_how_large():
    with pytest.raises(TooLargeError) as caught:
        load_image(encode(RGB, "PNG"), file="a.png", max_pixels=200)
    assert caught.value.num_pixels == 17 * 12
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.file, again.reason, again.num_pixels) == ("a.png", caught.value.reason, 17 * 12)


def test_a_raised_limit_reaches_the_plugins_that_have_their_own(monkeypatch):
    """As if the picture were larger than all limits: GIF and TIFF also ask Pillow, for whom one number holds in the process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    monkeypatch.setattr(image_module, "DEFAULT_MAX_PIXELS", 100)
    for fmt in ("GIF", "TIFF", "PNG", "JPEG"):
        with pytest.raises(TooLargeError):
            load_image(encode(RGB, fmt), file="a", max_pixels=100)
        assert load_image(encode(RGB, fmt), file="a", max_pixels=204).rgb_HWC.shape == (12, 17, 3)
        with pytest.raises(TooLargeError, match="17x12 pixels, the limit is 203 pixels"):
            load_image(encode(RGB, fmt), file="a", max_pixels=203)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_limits_of_several_threads_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pillow_allows(100):
        with pillow_allows(300):
            assert Image.MAX_IMAGE_PIXELS == 300
        assert Image.MAX_IMAGE_PIXELS == 100
        with pillow_allows(0):
            assert Image.MAX_IMAGE_PIXELS == 100
    assert Image.MAX_IMAGE_PIXELS == 50
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pillow_allows(100):
        assert Image.MAX_IMAGE_PIXELS is None, "a program that has switched the limit off keeps it off"


def test_a_path_is_read_and_the_header_told_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(RGB, "PNG"))
    told = []
    np.testing.assert_array_equal(load_image(path, file="a.png", on_header=told.append).rgb_HWC, RGB)
    assert told == [17 * 12]
    path.write_bytes(b"no image")
    with pytest.raises(BadSampleError):
        load_image(path, file="a.png", on_header=told.append)
    assert told == [17 * 12]
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "gone.png", file="gone.png")


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_pixels_do_not_depend_on_the_bands_in_which_they_are_taken(mode, monkeypatch):
    picture = Image.fromarray(smooth(60, 40))
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    else:
        picture = picture.convert(mode)
    data = encode(picture, "TIFF")
    whole_HWC = load_image(data, file="a").rgb_HWC
    monkeypatch.setattr(image_module, "_BAND_BYTES", 4 * 40 * 7)
    np.testing.assert_array_equal(load_image(data, file="a").rgb_HWC, whole_HWC)
    monkeypatch.setattr(image_module, "_SPOOLED_PIXELS", 0)
    np.testing.assert_array_equal(load_image(data, file="a").rgb_HWC, whole_HWC)
    expected = np.asarray(picture) >> 8 if mode == "I;16" else np.asarray(picture.convert("RGBA" if mode == "LA" else "RGB"))
    np.testing.assert_array_equal(whole_HWC, np.repeat(expected[:, :, None], 3, 2) if mode == "I;16" else expected[:, :, :3])


@pytest.mark.parametrize("orientation", range(2, 9))
def test_pixels_are_turned_as_pillow_turns_them(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(smooth(30, 50)), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(load_image(data, file="a.png", exif="apply").rgb_HWC, expected)


def test_large_images_below_the_limit_bring_no_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # as if the picture were large
    for fmt in ("PNG", "JPEG", "BMP", "PPM"):
        assert load_image(encode(RGB, fmt), file="a").rgb_HWC.shape == (12, 17, 3)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%PDF-1.4 ......", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFFxxxx"]
)
def test_no_image(data):
    with pytest.raises(BadSampleError) as caught:
        load_image(data, file="strange.png")
    assert caught.value.file == "strange.png"


def test_float_tiff_is_refused():
    with pytest.raises(BadSampleError, match="holds F pixels"):
        load_image(encode(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), file="a.tif")


def test_pixels_are_the_same_from_many_threads():
    from concurrent.futures import ThreadPoolExecutor

    datas = [encode(smooth(30 + i, 40), "JPEG") for i in range(8)]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda data: load_image(data, file="a").rgb_HWC, datas))
    for data, rgb_HWC in zip(datas, together, strict=True):
        np.testing.assert_array_equal(rgb_HWC, load_image(data, file="a").rgb_HWC)


EXPECTED_QUIRKS = {
    "1_trns.png": ("transparency dropped", "grey -> RGB"),
    "200x32_la.png": ("transparency dropped", "grey -> RGB"),
    "broken.png": "cut short",
    "decompression_bomb.gif": "65535x66601 pixels, the limit is",
    "exif_Landscape_6.jpg": "EXIF orientation 6",
    "hopper_bw_500.png": ("grey -> RGB",),
    "hopper_gray.jpg": ("grey -> RGB",),
    "hopper_orientation_2.jpg": "EXIF orientation 2",
    "hopper_orientation_3.jpg": "EXIF orientation 3",
    "hopper_orientation_4.jpg": "EXIF orientation 4",
    "hopper_orientation_6.jpg": "EXIF orientation 6",
    "hopper_orientation_8.jpg": "EXIF orientation 8",
    "i_trns.png": "its high bytes are all 0",
    "iss634.gif": "animation of 42 frames",
    "no_palette.gif": "animation of 2 frames",
    "pil_sample_cmyk.jpg": ("CMYK -> RGB",),
    "truncated_image.png": "cut short",
    "truncated_jpeg.jpg": "damaged or cut short",
}


@pytest.mark.real
def test_quirks(real_data):
    files = sorted((real_data / "quirks").iterdir())
    assert {path.name for path in files} == EXPECTED_QUIRKS.keys()
    for path in files:
        expected = EXPECTED_QUIRKS[path.name]
        data = path.read_bytes()
        if isinstance(expected, str):
            with pytest.raises(BadSampleError, match=expected) as caught:
                load_image(data, file=path.name)
            assert caught.value.file == path.name
        else:
            loaded = load_image(data, file=path.name)
            assert loaded.notes == expected
            with Image.open(path) as image:
                assert loaded.rgb_HWC.shape == (image.height, image.width, 3)


@pytest.mark.real
def test_turned_quirks_show_one_picture(real_data):
    """The hopper files are one picture, stored turned in each way and told so by EXIF."""
    turned = [
        load_image((real_data / "quirks" / f"hopper_orientation_{k}.jpg").read_bytes(), file="h", exif="apply").rgb_HWC
        for k in (2, 3, 4, 6, 8)
    ]
    for other in turned[1:]:
        assert np.abs(turned[0].astype(int) - other.astype(int)).mean() < 6
        assert np.abs(turned[0].astype(int) - other[:, ::-1].astype(int)).mean() > 20
