"""Islands and holes, against what can be drawn by hand and a search in ten lines."""

from __future__ import annotations

import numpy as np
import pytest

from unetfast.infer.post.regions import fill_holes, remove_islands


def mask(*rows: str) -> np.ndarray:
    return np.array([[int(letter) for letter in row] for row in rows], dtype=np.uint8)


def regions_of(pred_HW: np.ndarray) -> list[tuple[int, set[tuple[int, int]]]]:
    """Flood fill by sides: (class, pixels) of each region."""
    left = {(y, x) for y in range(pred_HW.shape[0]) for x in range(pred_HW.shape[1])}
    found = []
    while left:
        start = left.pop()
        region, edge = {start}, [start]
        while edge:
            y, x = edge.pop()
            for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if near in left and pred_HW[near] == pred_HW[start]:
                    left.remove(near)
                    region.add(near)
                    edge.append(near)
        found.append((int(pred_HW[start]), region))
    return found


def test_an_island_takes_the_class_along_most_of_its_border() -> None:
    before = mask(
        "0001111",
        "0002211",
        "0001111",
        "0001111",
    )
    after = mask(
        "0001111",
        "0001111",
        "0001111",
        "0001111",
    )
    np.testing.assert_array_equal(remove_islands(before, 3), after)
    np.testing.assert_array_equal(remove_islands(before, 2), before)


def test_pixels_that_touch_by_corners_alone_are_islands_of_their_own() -> None:
    np.testing.assert_array_equal(remove_islands(mask("0000", "0100", "0010", "0000"), 2), mask(*["0000"] * 4))


def test_islands_among_islands_are_reached_from_outside() -> None:
    before = mask(
        "0000000",
        "0123210",
        "0000000",
    )
    np.testing.assert_array_equal(remove_islands(before, 4), mask(*["0000000"] * 3))
    nested = mask(
        "000000000",
        "011111110",
        "012222210",
        "012333210",
        "012222210",
        "011111110",
        "000000000",
    )
    np.testing.assert_array_equal(remove_islands(nested, 21), np.zeros_like(nested))


def test_of_classes_that_touch_as_much_the_lower_is_taken() -> None:
    np.testing.assert_array_equal(remove_islands(mask("2223111"), 2), mask("2221111"))


def test_a_mask_of_islands_alone_stays() -> None:
    before = mask("0123", "3210", "0123")
    np.testing.assert_array_equal(remove_islands(before, 100), before)


def test_islands_of_other_classes_stay_when_one_is_named() -> None:
    before = mask("0000000", "0100200", "0000000")
    np.testing.assert_array_equal(remove_islands(before, 2, [2]), mask("0000000", "0100000", "0000000"))


@pytest.mark.parametrize("seed", range(4))
def test_no_small_region_is_left_and_large_ones_only_grow(seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = rng.integers(0, 3, (6, 8)).astype(np.uint8).repeat(5, axis=0).repeat(5, axis=1)
    before[rng.random(before.shape) < 0.05] = 3
    after = remove_islands(before, 12)
    assert all(len(region) >= 12 for _, region in regions_of(after))
    for class_id, region in regions_of(before):
        if len(region) >= 12:
            assert all(after[place] == class_id for place in region)


def test_holes_are_filled_whatever_is_in_them() -> None:
    before = mask(
        "1111110",
        "1022110",
        "1111110",
        "1111010",
        "1111110",
    )
    after = mask(
        "1111110",
        "1111110",
        "1111110",
        "1111110",
        "1111110",
    )
    np.testing.assert_array_equal(fill_holes(before, 4), after)
    assert fill_holes(before, 3)[1, 1] == 0
    assert fill_holes(before, 3)[3, 4] == 1


def test_what_reaches_the_border_is_no_hole() -> None:
    before = mask("1101", "1101", "1111", "1011")
    np.testing.assert_array_equal(fill_holes(before, 100), before)


def test_a_hole_in_a_hole_goes_to_the_outer_class() -> None:
    before = mask(
        "0000000",
        "0111110",
        "0122210",
        "0123210",
        "0122210",
        "0111110",
        "0000000",
    )
    np.testing.assert_array_equal(fill_holes(before, 100), np.zeros_like(before))
    np.testing.assert_array_equal(fill_holes(before, 100, [1]), np.where(before > 0, 1, 0))


def test_16_bits_stay_16_bits() -> None:
    before = (mask("000000", "010000", "000000", "000000").astype(np.uint16) * 300).copy()
    for changed in (remove_islands(before, 2), fill_holes(before, 2)):
        assert changed.dtype == np.uint16
        assert not changed.any()
    assert before[1, 1] == 300
