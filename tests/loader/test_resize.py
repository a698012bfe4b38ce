"""The compiled antialiased resize: the integers of its plain form, nearer to exact sums than the libraries' are."""

from __future__ import annotations

from collections.abc import Callable

import loader_reference as reference
import numpy as np
import plain_pixels
import pytest
from plain_resize import resize_in_integers

from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.pixels import resize_box
from unetfast.loader.plainresize import resize_by_libraries

Box = tuple[float, float, float, float]


@pytest.fixture
def kernel() -> Callable[..., None]:
    pytest.importorskip("numba")
    state = find_kernel("resize")
    assert state.problem == ""
    assert state.call is not None
    return state.call


def make_noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def apply(resize: Callable[..., None], image: np.ndarray, box: Box, target: tuple[int, int]) -> np.ndarray:
    out = np.full((*target, 3), 77, dtype=np.uint8)
    resize(image, np.array(box), out)
    return out


BOXES = [  # source, box, target
    ((512, 683), (0, 0, 512, 683), (256, 256)),
    ((90, 130), (0, 0, 90, 130), (180, 37)),
    ((90, 130), (7.25, 11.5, 80.125, 100.75), (41, 33)),
    ((90, 130), (7, 11, 80, 100), (73, 89)),  # its own size
    ((90, 130), (0.5, 0.5, 89.5, 129.5), (200, 260)),
    ((160, 320), (0, 0, 160, 320), (40, 40)),  # weights without a rest
    ((64, 64), (0, 0, 64, 64), (9, 11)),
    ((70, 21), (3, 1, 66, 20), (20, 10)),  # narrower than what is blended at once
    ((70, 22), (0, 0, 70, 22), (20, 10)),
    ((1, 1), (0, 0, 1, 1), (3, 5)),
    ((1, 400), (0, 0, 1, 400), (8, 16)),
    ((400, 1), (0, 0, 400, 1), (16, 8)),
    ((300, 300), (120.25, 99.75, 120.5, 99.875), (9, 10)),
    ((1100, 60), (0, 0, 1100, 60), (3, 30)),  # many rows to one
    ((60, 1100), (0, 0, 60, 1100), (30, 3)),  # many columns to one
    ((700, 700), (1, 2, 699, 698), (2, 1)),
    ((124, 124), (0, 0, 124, 124), (8, 8)),  # 15.5: as many taps as 16 bits are given
    ((128, 128), (0, 0, 128, 128), (8, 8)),
]


@pytest.mark.parametrize(("source_hw", "box", "target_hw"), BOXES)
def test_it_is_its_plain_form_to_the_bit(
    kernel: Callable[..., None], source_hw: tuple[int, int], box: Box, target_hw: tuple[int, int]
) -> None:
    image = make_noise(*source_hw)
    found, expected = (apply(resize, image, box, target_hw) for resize in (resize_box, resize_in_integers))
    np.testing.assert_array_equal(found, expected)


def test_it_is_its_plain_form_for_any_box(kernel: Callable[..., None]) -> None:
    rng = np.random.default_rng(5)
    for trial in range(150):
        height, width = (int(size) for size in np.exp(rng.uniform(0, 5.5, 2)).astype(int))
        target_hw = tuple(int(size) for size in np.exp(rng.uniform(0, 4, 2)).astype(int))
        rows, columns = np.sort(rng.uniform(0, height, 2)), np.sort(rng.uniform(0, width, 2))
        box = (rows[0], columns[0], height if trial % 3 else rows[1], width if trial % 5 else columns[1])
        image = make_noise(height, width, trial)
        found, expected = (apply(resize, image, box, target_hw) for resize in (resize_box, resize_in_integers))
        np.testing.assert_array_equal(found, expected, err_msg=f"{(height, width)}, {box}, {target_hw}")


@pytest.mark.parametrize(("source_hw", "target_hw"), [(source_hw, target_hw) for source_hw, _, target_hw in BOXES])
def test_it_is_nearer_to_exact_sums_than_the_libraries(
    kernel: Callable[..., None], source_hw: tuple[int, int], target_hw: tuple[int, int]
) -> None:
    image, box = make_noise(*source_hw), (0, 0, *source_hw)
    exact = reference.resize_box(image, box, target_hw)
    compiled, by_libraries = (apply(resize, image, box, target_hw) for resize in (resize_box, resize_by_libraries))
    assert np.abs(compiled - exact).max() <= 0.5 + 0.1
    assert np.abs(compiled.astype(int) - by_libraries).max() <= 1
    wrong, wrong_by_libraries = ((found != np.floor(exact + 0.5)).mean() for found in (compiled, by_libraries))
    assert wrong <= max(wrong_by_libraries, 0.02)


@pytest.mark.parametrize("level", [0, 1, 128, 255])
@pytest.mark.parametrize(("source_hw", "box", "target_hw"), BOXES)
def test_one_level_stays_that_level(
    kernel: Callable[..., None], level: int, source_hw: tuple[int, int], box: Box, target_hw: tuple[int, int]
) -> None:
    image = np.full((*source_hw, 3), level, dtype=np.uint8)
    assert (apply(resize_box, image, box, target_hw) == level).all()


@pytest.mark.parametrize("width", [1, 7, 8, 9, 31])
@pytest.mark.parametrize("height", [1, 7, 8, 9])
def test_nothing_is_written_beside_the_result(kernel: Callable[..., None], height: int, width: int) -> None:
    memory = np.full(height * width * 3 + 200, 201, dtype=np.uint8)
    image = make_noise(40, 50)
    image.flags.writeable = False
    resize_box(image, (0, 0, 40, 50), memory[100:-100].reshape(height, width, 3))
    assert (memory[:100] == 201).all()
    assert (memory[-100:] == 201).all()
    expected = apply(resize_in_integers, image, (0, 0, 40, 50), (height, width))
    np.testing.assert_array_equal(memory[100:-100].reshape(height, width, 3), expected)


@pytest.mark.parametrize(
    "box", [(-0.1, 0, 4, 4), (0, -1, 4, 4), (0, 0, 4.1, 4), (0, 0, 4, 5), (2, 0, 2, 4), (0, 3, 4, 1), (float("nan"), 0, 4, 4)]
)
def test_it_reads_nothing_outside_of_an_image(kernel: Callable[..., None], box: Box) -> None:
    with pytest.raises(ValueError, match="the box is not inside the image"):
        apply(resize_box, make_noise(4, 4), box, (2, 2))


@pytest.mark.parametrize(("source_hw", "box", "target_hw"), BOXES)
def test_without_compiled_code_it_is_what_the_libraries_give(
    source_hw: tuple[int, int], box: Box, target_hw: tuple[int, int]
) -> None:
    image = make_noise(*source_hw)
    found, expected = (
        apply(resize, image, box, target_hw) for resize in (resize_by_libraries, plain_pixels.resize_by_libraries)
    )
    np.testing.assert_array_equal(found, expected)
