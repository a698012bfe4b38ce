"""Pixels are counted exactly, whatever the dtype, layout and size."""

from __future__ import annotations

import numpy as np
import pytest
from plain_source import make_labels

from unetfast.data import counting
from unetfast.data.counting import FEW_VALUES, count_ids, count_values


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (37, 53), (0, 5)])
def test_counts_equal_bincount(dtype: type, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)
    for layout in (values, np.asfortranarray(values), values[::-1, ::2]):
        counts = count_values(layout)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, np.bincount(layout.reshape(-1), minlength=np.iinfo(dtype).max + 1))


@pytest.mark.parametrize("num_values", [1, 2, 3, FEW_VALUES, FEW_VALUES + 1])
def test_few_values_are_counted_as_many_are(num_values: int) -> None:
    values = np.random.default_rng(num_values).integers(0, num_values, (40, 30)).astype(np.uint8)
    np.testing.assert_array_equal(count_values(values), np.bincount(values.reshape(-1), minlength=256))


def test_bands_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).integers(0, 256, (40, 30)).astype(np.uint8)
    whole = count_values(values)
    for limit in (1, 7, 1199, 1200, 1201):
        monkeypatch.setattr(counting, "EXACT_PIXELS", limit)
        np.testing.assert_array_equal(count_values(values), whole)


def test_counts_past_float32_are_exact() -> None:
    """A float32 cannot hold 2^24 + 1."""
    values = np.zeros((1, (1 << 24) + 2), np.uint8)
    values[0, 5] = 9
    counts = count_values(values)
    assert (counts[0], counts[9], counts.sum()) == ((1 << 24) + 1, 1, (1 << 24) + 2)


def test_ids_of_classes_and_ignored_pixels() -> None:
    mask = np.array([[0, 1, 2, 2], [255, 255, 255, 0]], np.uint8)
    counts, unknown = count_ids(mask, make_labels(3))
    assert (counts.tolist(), unknown) == ([2, 1, 2, 3], [])
    counts, unknown = count_ids(mask, make_labels(4))
    assert (counts.tolist(), unknown) == ([2, 1, 2, 0, 3], [])


def test_unknown_ids_are_listed() -> None:
    mask = np.array([[0, 1, 3, 254, 255]], np.uint8)
    assert count_ids(mask, make_labels(2))[1] == [3, 254]
    assert count_ids(mask, make_labels(2, ignore=False))[1] == [3, 254, 255]


def test_sixteen_bits() -> None:
    """65535 is ignored past 255 classes; below that no id past 255 is known, though a damaged mask may hold some."""
    counts, unknown = count_ids(np.array([[0, 299, 300, 65535]], np.uint16), make_labels(300))
    assert (counts[0], counts[299], counts[300], unknown) == (1, 1, 1, [300])
    assert count_ids(np.array([[1, 256, 255]], np.uint16), make_labels(3))[1] == [256]
