"""The compiled warp gives OpenCV's values, bit for bit, and reads nothing outside of an image."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unetfast.loader.kernels.find import NoKernelError, find_kernel
from unetfast.loader.pixels import warp_by_opencv, warp_image

pytest.importorskip("numba")


def turn(stored_hw: tuple[int, int], hw: tuple[int, int], degrees: float, zoom: float, *, mirrored: bool = False) -> np.ndarray:
    """Return the matrix of a turn about the centres."""
    (stored_height, stored_width), (height, width) = stored_hw, hw
    cosine, sine = math.cos(math.radians(degrees)) / zoom, math.sin(math.radians(degrees)) / zoom
    if mirrored:
        cosine, sine = -cosine, -sine
    matrix = np.array([[cosine, sine, 0.0], [-sine if not mirrored else sine, abs(cosine), 0.0]])
    centre = (width - 1) / 2, (height - 1) / 2
    matrix[:, 2] = np.array([(stored_width - 1) / 2, (stored_height - 1) / 2]) - matrix[:, :2] @ centre
    return matrix


def warp(rgb_HWC: np.ndarray, matrix: np.ndarray, hw: tuple[int, int]) -> np.ndarray | None:
    """Warp by the kernel; None where it leaves that to OpenCV."""
    kernel = find_kernel("warp")
    if kernel.call is None:
        pytest.skip(kernel.problem)
    found = np.full((*hw, 3), 77, np.uint8)
    return found if kernel.call(rgb_HWC, matrix, found) else None


def noise(hw: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), dtype=np.uint8)


def check(rgb_HWC: np.ndarray, matrix: np.ndarray, hw: tuple[int, int]) -> None:
    expected = np.empty((*hw, 3), np.uint8)
    warp_by_opencv(rgb_HWC, matrix, expected)
    found = warp(rgb_HWC, matrix, hw)
    assert found is not None
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 0.5, 3, 20, 35, 90, 135, 180, 270, -7.25])
def test_every_turn_is_opencvs(degrees: float, mirrored: bool) -> None:
    for zoom in (1, 0.45, 2.5):
        check(noise((160, 240)), turn((160, 240), (160, 240), degrees, zoom, mirrored=mirrored), (160, 240))


@pytest.mark.parametrize("seed", range(40))
def test_any_sizes_and_matrices(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stored_hw = int(rng.integers(1, 120)), int(rng.integers(3, 120))
    hw = int(rng.integers(1, 100)), 16 * int(rng.integers(1, 8))
    matrix = turn(stored_hw, hw, float(rng.uniform(-180, 180)), float(rng.uniform(0.2, 2)), mirrored=bool(seed % 2))
    matrix[:, 2] += rng.uniform(-20, 20, 2)
    check(noise(stored_hw, seed), matrix, hw)


@pytest.mark.parametrize(
    "shift", [(0, 0), (1, 0), (0, 1), (-1, -1), (-0.5, 0.5), (15.75, -0.25), (300, 0), (0, -300), (1e6, 1e6)]
)
def test_shifts_that_leave_the_image(shift: tuple[float, float]) -> None:
    matrix = np.array([[1.0, 0, shift[0]], [0, 1, shift[1]]])
    check(noise((20, 32)), matrix, (20, 32))


def test_what_it_does_not_do_is_left_to_opencv() -> None:
    identity = np.array([[1.0, 0, 0], [0, 1, 0]])
    assert warp(noise((20, 30)), identity, (20, 30)) is None  # no multiple of 16
    assert warp(noise((1, 2)), identity, (16, 16)) is None
    assert warp(np.zeros((1, 32_800, 3), np.uint8), identity, (16, 16)) is None
    for stored_hw, hw in [((20, 30), (20, 30)), ((1, 2), (16, 16))]:
        found, expected = (np.full((*hw, 3), fill, np.uint8) for fill in (1, 2))
        warp_image(noise(stored_hw), identity, found)
        warp_by_opencv(noise(stored_hw), identity, expected)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("version", ["4.10.0", "4.13.0-dev"])
def test_an_opencv_of_other_sums_is_left_to_itself(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unetfast.loader.kernels import warp

    monkeypatch.setattr(warp.cv2, "__version__", version)
    with pytest.raises(NoKernelError, match=f"OpenCV {version} warps by other sums"):
        warp.build_kernel()


def test_a_processor_that_rounds_twice_is_left_to_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    from unetfast.loader.kernels import warp

    monkeypatch.setattr(warp.cv2, "__version__", "5.0.0")
    monkeypatch.setattr(warp.cv2, "checkHardwareSupport", lambda feature: False)
    with pytest.raises(NoKernelError, match="no FMA3"):
        warp.build_kernel()


@pytest.mark.parametrize("degrees", [0, 17, 180])
def test_what_lies_around_an_image_makes_no_difference(degrees: float) -> None:
    hw = (24, 32)
    matrix = turn(hw, hw, degrees, 0.8)
    results = []
    for around in (0, 255):
        memory = np.full(24 * 32 * 3 + 128, around, np.uint8)
        rgb_HWC = memory[64:-64].reshape(*hw, 3)
        rgb_HWC[...] = noise(hw)
        results.append(warp(rgb_HWC, matrix, hw))
    np.testing.assert_array_equal(*results)
