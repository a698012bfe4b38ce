"""Masks in .npy files: what is read, what is refused before memory is taken."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetfast.data.npy import decode_npy_mask, frame_span, parse_npy_header, read_npy_header
from unetfast.data.spans import read_span
from unetfast.errors import BadSampleError


def to_bytes(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


@given(
    hnp.arrays(
        st.sampled_from(["u1", "<u2", ">u2", "<i4", ">i4", "<i8", "i1"]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    ),
    st.booleans(),
)
def test_any_integers_come_back(array, fortran):
    stored = np.asfortranarray(array) if fortran else array
    back = decode_npy_mask(to_bytes(stored), "m.npy")
    assert back.dtype.isnative
    np.testing.assert_array_equal(back, array)


def test_bool_becomes_uint8():
    back = decode_npy_mask(to_bytes(np.array([[True, False]])), "m.npy")
    assert back.dtype == np.uint8
    assert back.tolist() == [[1, 0]]


def test_every_frame_is_read_from_its_place(tmp_path):
    masks = np.random.default_rng(0).integers(0, 49, (5, 4, 6), dtype=np.uint8)
    path = str(tmp_path / "mask.npy")
    np.save(path, masks)
    header = read_npy_header(path)
    assert header.shape == (5, 4, 6)
    for frame in range(5):
        span = frame_span(path, header, frame)
        assert span.length == 24
        np.testing.assert_array_equal(np.frombuffer(read_span(span), np.uint8).reshape(4, 6), masks[frame])


def test_header_is_read_again_when_the_file_changes(tmp_path):
    path = tmp_path / "mask.npy"
    np.save(path, np.zeros((2, 3), np.uint8))
    assert read_npy_header(str(path)).shape == (2, 3)
    np.save(path, np.zeros((4, 5), np.uint8))
    assert read_npy_header(str(path)).shape == (4, 5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not numpy at all", "not a .npy file"),
        (to_bytes(np.array([[1, "a"]], dtype=object), allow_pickle=True), "pickled Python objects, which are never opened"),
        (to_bytes(np.zeros((2, 3), np.uint8))[:-1], r"is 133 bytes, by its header 134"),
        (to_bytes(np.zeros((2, 3), np.uint8)) + b"x", "by its header 134"),
        (to_bytes(np.zeros((2, 3), np.float32)), "holds float32 values, a mask holds integers"),
        (to_bytes(np.zeros((2, 3, 3), np.uint8)), r"has shape \(2, 3, 3\)"),
        (to_bytes(np.zeros((0, 3), np.uint8)), r"has shape \(0, 3\)"),
    ],
)
def test_refused_with_name_and_remedy(data, message):
    with pytest.raises(BadSampleError, match=message) as caught:
        decode_npy_mask(data, "v/mask.npy")
    assert caught.value.file == "v/mask.npy"
    assert caught.value.remedy


def test_a_header_that_claims_terabytes_takes_no_memory():
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999, 9999999), }"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"
    with pytest.raises(BadSampleError, match="by its header"):
        parse_npy_header(data, "bomb.npy", file_size=len(data))


def test_missing_file(tmp_path):
    with pytest.raises(BadSampleError, match="cannot be read"):
        read_npy_header(str(tmp_path / "mask.npy"))
