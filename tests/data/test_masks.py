"""Mask files to class ids: values as they stand in the file, one table, nothing guessed."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.masks import (
    MaskValues,
    TableMaskReader,
    color_codes,
    decode_mask_values,
    distinct_values,
    format_value,
    look_up_colors,
    look_up_values,
    parse_color,
    parse_value_map,
    shorten_values,
)
from unetfast.data.sample import FileSpan
from unetfast.errors import BadSampleError, UserError

IDS = np.array([[0, 1, 2], [3, 2, 1]], np.uint8)


def make_labels(num_classes: int, ignore_value: int | None = 255) -> LabelTable:
    classes = tuple(ClassInfo(name=f"c{i}", color=(0, 0, 0), value=i) for i in range(num_classes))
    return LabelTable(classes=classes, ignore_value=ignore_value)


def encode(array_or_image, fmt: str = "PNG", **options) -> bytes:
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    stream = io.BytesIO()
    image.save(stream, fmt, **options)
    return stream.getvalue()


def palette_image(ids: np.ndarray, colors: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(ids, "L").convert("P")
    image.putdata(ids.reshape(-1).tolist())
    image.putpalette([channel for color in colors for channel in color])
    return image


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


PALETTE = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (encode(IDS), np.uint8),
        (encode(palette_image(IDS, PALETTE)), np.uint8),
        (encode(palette_image(IDS, PALETTE), "GIF"), np.uint8),
        (encode(palette_image(IDS, PALETTE), bits=2), np.uint8),
        (encode(IDS, "BMP"), np.uint8),
        (encode(IDS, "TIFF"), np.uint8),
        (encode(IDS, "PPM"), np.uint8),
        (encode(IDS.astype(np.uint16)), np.uint16),
        (encode(IDS.astype(np.uint16), "TIFF"), np.uint16),
        (npy(IDS.astype(np.int32)), np.int32),
        (npy(IDS), np.uint8),
        (encode(np.stack([IDS, np.full_like(IDS, 9)], axis=2)), np.uint8),
    ],
)
def test_values_stand_as_in_the_file(data, dtype):
    mask = decode_mask_values(data, "m")
    assert mask.values.dtype == dtype
    np.testing.assert_array_equal(mask.values, IDS)


def test_one_bit_masks_are_0_and_1():
    assert decode_mask_values(encode(Image.fromarray(IDS > 1)), "m").values.tolist() == (IDS > 1).astype(int).tolist()


def test_palette_is_kept_for_colours():
    mask = decode_mask_values(encode(palette_image(IDS, PALETTE)), "m")
    assert mask.palette[:4].tolist() == [list(color) for color in PALETTE]
    assert mask.as_rgb().tolist() == np.array(PALETTE, np.uint8)[IDS].tolist()


def test_sixteen_bit_ids_are_not_cut():
    ids = np.array([[0, 300, 65535]], np.uint16)
    np.testing.assert_array_equal(decode_mask_values(encode(ids), "m").values, ids)


def test_rgb_of_equal_channels_is_grey_and_coloured_is_refused():
    grey = decode_mask_values(encode(np.repeat(IDS[:, :, None], 3, axis=2)), "m")
    np.testing.assert_array_equal(grey.as_single_channel("m"), IDS)
    colored = decode_mask_values(encode(np.array(PALETTE, np.uint8)[IDS]), "m")
    with pytest.raises(BadSampleError, match="RGB mask without a colour table; its colours are #000000, #008000") as caught:
        colored.as_single_channel("m.png")
    assert "--classes FILE" in caught.value.remedy


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(IDS, "JPEG"), "is a JPEG: its compression changes class values"),
        (encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "holds F pixels"),
        (encode(Image.new("CMYK", (2, 2)), "TIFF"), "holds CMYK pixels"),
        (b"P5 2 1 7 \x00\x07", "greatest value is not 255"),
        (encode(IDS)[:40], "cut short"),
        (b"", "is no image"),
        (npy(np.zeros((2, 2), np.float64)), "holds float64"),
        (encode(Image.new("L", (4, 4)), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 9)]), "animation"),
    ],
)
def test_refused_with_name_and_remedy(data, message):
    with pytest.raises(BadSampleError, match=message) as caught:
        decode_mask_values(data, "m.png")
    assert caught.value.file == "m.png"
    assert caught.value.remedy


def test_a_mask_bomb_is_refused():
    with pytest.raises(BadSampleError, match="3x2 pixels, the limit is 5"):
        decode_mask_values(encode(IDS), "m", max_pixels=5)


@given(st.data())
def test_lookup_equals_a_dictionary(data):
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.int16, np.int32, np.int64]))
    info = np.iinfo(dtype)
    values = st.integers(max(info.min, -32768), min(info.max, 65535))
    num_classes = data.draw(st.sampled_from([1, 2, 255, 256, 300]))
    table = data.draw(st.dictionaries(values, st.one_of(st.none(), st.integers(0, num_classes - 1)), min_size=1, max_size=20))
    mask = np.array(data.draw(st.lists(st.sampled_from(sorted(table)), min_size=4, max_size=4)), dtype).reshape(2, 2)
    labels = make_labels(num_classes)
    ids = look_up_values(mask, tuple(table.items()), labels, "m")
    assert ids.dtype == labels.mask_dtype
    expected = [[labels.ignore_index if table[int(v)] is None else table[int(v)] for v in row] for row in mask]
    assert ids.tolist() == expected


@pytest.mark.parametrize("num_classes", [2, 254, 255, 256, 65535])
def test_unknown_values_are_listed(num_classes):
    labels = make_labels(num_classes)
    with pytest.raises(BadSampleError, match="holds the values 0, 7, 200, of which 7, 200 belong to none") as caught:
        look_up_values(np.array([[0, 7, 200]], np.uint8), ((0, 0), (1, 1), (255, None)), labels, "x_mask.png")
    assert caught.value.file == "x_mask.png"
    assert "--map '7=CLASS_ID'" in caught.value.remedy
    assert "known values: 0, 1, 255" in caught.value.reason


def test_all_255_classes_and_ignore_at_once():
    labels = make_labels(255)
    table = tuple((value, value if value < 255 else None) for value in range(256))
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(look_up_values(mask, table, labels, "m"), mask)


def test_values_past_any_table():
    with pytest.raises(BadSampleError, match="values run from 0 to 100000"):
        look_up_values(np.array([[0, 100_000]]), ((0, 0),), make_labels(1), "m")


def test_colours():
    rgb = np.array(PALETTE, np.uint8)[IDS]
    table = tuple((color, i) for i, color in enumerate(PALETTE))
    np.testing.assert_array_equal(look_up_colors(rgb, table, make_labels(4), "m"), IDS)
    with pytest.raises(BadSampleError, match="#808000 belong to none") as caught:
        look_up_colors(rgb, table[:3], make_labels(3), "m")
    assert "--map '#808000=CLASS_ID'" in caught.value.remedy


def test_color_codes_are_one_to_one():
    rgb = np.array([[[1, 2, 3], [3, 2, 1], [255, 255, 255]]], np.uint8)
    assert color_codes(rgb).tolist() == [[1 + 2 * 256 + 3 * 65536, 3 + 2 * 256 + 65536, 2**24 - 1]]


def test_distinct_values():
    assert distinct_values(MaskValues(IDS)) == ([0, 1, 2, 3], False)
    assert distinct_values(MaskValues(np.array([[-1, 5, 5]], np.int32))) == ([-1, 5], False)
    assert distinct_values(MaskValues(np.repeat(IDS[:, :, None], 3, axis=2))) == ([0, 1, 2, 3], False)
    assert distinct_values(MaskValues(np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8))) == ([(0, 0, 0), (255, 0, 0)], True)


def test_reader_travels_to_workers(tmp_path):
    path = tmp_path / "m.png"
    path.write_bytes(encode(np.array([[0, 255]], np.uint8)))
    reader = TableMaskReader(make_labels(2, None), ((0, 0), (255, 1)))
    again = pickle.loads(pickle.dumps(reader))
    assert again(FileSpan(str(path))).tolist() == [[0, 1]]
    by_color = TableMaskReader(make_labels(2, None), (((0, 0, 0), 0), ((255, 255, 255), 1)), by_color=True)
    assert by_color(FileSpan(str(path))).tolist() == [[0, 1]]


def test_parse_value_map():
    assert parse_value_map([]) == ()
    assert parse_value_map(["255=1", "-1=ignore"]) == ((255, 1), (-1, None))
    assert parse_value_map(["0=0, 7=1", "#FF8000=2"]) == ((0, 0), (7, 1), ((255, 128, 0), 2))
    assert parse_value_map(["3=1", "3=1"]) == ((3, 1),)


@pytest.mark.parametrize("text", ["255", "255=", "=1", "a=1", "1=b", "1=-2", "#12345=1", "1=2=3", "", "1.5=2"])
def test_parse_value_map_refuses(text):
    with pytest.raises(UserError, match=r"not of the form VALUE=CLASS_ID"):
        parse_value_map([text])


def test_parse_value_map_refuses_contradictions_and_huge_values():
    with pytest.raises(UserError, match="7 is mapped twice"):
        parse_value_map(["7=1", "7=2"])
    with pytest.raises(UserError, match="between -32768 and 65535"):
        parse_value_map(["70000=1"])


def test_values_in_messages():
    assert format_value((255, 0, 16)) == "#ff0010"
    assert parse_color("#ff0010") == (255, 0, 16)
    assert parse_color("ff0010") is None
    assert shorten_values([1, 2]) == "1, 2"
    assert shorten_values([(0, 0, 0)] * 14).endswith("... (14 values)")
