"""The lattice against the Gaussian that it stands for, and mean-field inference against sums over all pairs of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unetfast.infer.post.crf import CrfOptions, refine
from unetfast.infer.post.permutohedral import Lattice

pytestmark = pytest.mark.usefixtures("one_thread")


def gaussian(points_PD: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((points_PD[:, None] - points_PD[None]) ** 2).sum(axis=2))


@pytest.mark.parametrize("num_dims", [1, 2, 5])
def test_the_lattice_sums_as_a_gaussian_does(num_dims: int) -> None:
    rng = np.random.default_rng(num_dims)
    points_PD = rng.random((500, num_dims)) * 3
    values_PK = rng.random((500, 2)).astype(np.float32)
    exact_PK = gaussian(points_PD) @ values_PK
    found_PK = Lattice(points_PD).filter(torch.from_numpy(values_PK)).numpy()
    # up to a factor of the whole; the rest is the lattice's approximation
    scale = (exact_PK * found_PK).sum() / (found_PK**2).sum()
    np.testing.assert_allclose(found_PK * scale, exact_PK, rtol=0.3)
    assert np.sqrt(np.mean((found_PK * scale / exact_PK - 1) ** 2)) < 0.15


def test_the_lattice_is_linear_and_nowhere_negative() -> None:
    rng = np.random.default_rng(0)
    lattice = Lattice(rng.random((60, 5)) * 4)
    kernel_PP = lattice.filter(torch.eye(60)).double()
    values_PK = torch.from_numpy(rng.random((60, 3)).astype(np.float32))
    torch.testing.assert_close(lattice.filter(values_PK).double(), kernel_PP @ values_PK.double(), rtol=1e-4, atol=1e-5)
    assert bool((kernel_PP >= 0).all())


def test_far_points_have_no_part_in_each_other() -> None:
    points_PD = np.array([[0.0, 0.0], [0.1, 0.0], [50.0, 50.0]])
    found_PK = Lattice(points_PD).filter(torch.tensor([[1.0], [0.0], [0.0]]))
    assert float(found_PK[1]) > 0.1
    assert float(found_PK[2]) == 0


def test_a_gaussian_too_narrow_to_number_is_refused() -> None:
    with pytest.raises(ValueError, match="too narrow"):
        Lattice(np.array([[0.0] * 5, [1e6] * 5]))


def refine_exactly(rgb_HWC: np.ndarray, probs_KHW: np.ndarray, options: CrfOptions) -> np.ndarray:
    """Mean-field inference with sums over all pairs of pixels (Kraehenbuehl and Koltun 2011, algorithm 1)."""
    num_classes, height, width = probs_KHW.shape
    place_P2 = np.stack(np.mgrid[:height, :width], axis=-1).reshape(-1, 2)
    color_P3 = rgb_HWC.reshape(-1, 3)
    kernels = [
        (options.compat, gaussian(np.concatenate([place_P2 / options.xy, color_P3 / options.rgb], axis=1))),
        (options.smooth_compat, gaussian(place_P2 / options.smooth_xy)),
    ]
    log_KP = np.log(np.clip(probs_KHW.reshape(num_classes, -1), 1e-5, 1))
    probs_KP = np.exp(log_KP)
    probs_KP /= probs_KP.sum(axis=0)
    for _ in range(options.iterations):
        message_KP = log_KP.copy()
        for weight, kernel_PP in kernels:
            scale_P = kernel_PP.sum(axis=1) ** -0.5
            message_KP += weight * ((probs_KP * scale_P) @ kernel_PP) * scale_P
        probs_KP = np.exp(message_KP - message_KP.max(axis=0))
        probs_KP /= probs_KP.sum(axis=0)
    return probs_KP.reshape(probs_KHW.shape)


def draw_scene(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture of three colours under noise, its classes, and blurred guesses of them."""
    rng = np.random.default_rng(seed)
    truth_HW = np.zeros((36, 44), dtype=np.int64)
    truth_HW[8:30, 6:26] = 1
    truth_HW[14:34, 22:40] = 2
    colors = np.array([[60, 60, 70], [200, 80, 60], [80, 160, 220]])
    rgb_HWC = (colors[truth_HW] + rng.normal(0, 6, (*truth_HW.shape, 3))).clip(0, 255).astype(np.uint8)
    guess_HWK = np.eye(3)[np.roll(truth_HW, (2, -2), axis=(0, 1))] + rng.normal(0, 0.35, (*truth_HW.shape, 3))
    probs_HWK = np.exp(1.5 * guess_HWK)
    return rgb_HWC, truth_HW, (probs_HWK / probs_HWK.sum(axis=2, keepdims=True)).transpose(2, 0, 1).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1])
def test_refinement_is_that_of_sums_over_all_pairs(seed: int) -> None:
    rgb_HWC, truth_HW, probs_KHW = draw_scene(seed)
    options = CrfOptions(iterations=5, xy=20, rgb=13)
    found_KHW = refine(rgb_HWC, probs_KHW, options)
    exact_KHW = refine_exactly(rgb_HWC, probs_KHW, options)
    np.testing.assert_allclose(found_KHW.sum(axis=0), 1, atol=1e-5)
    assert (found_KHW.argmax(axis=0) == exact_KHW.argmax(axis=0)).mean() > 0.995
    assert np.abs(found_KHW - exact_KHW).mean() < 0.01
    # and it does what it is for: guesses that are shifted and noisy follow the picture's edges
    assert (probs_KHW.argmax(axis=0) == truth_HW).mean() < 0.85
    assert (found_KHW.argmax(axis=0) == truth_HW).mean() > 0.97


def test_the_smoothness_kernel_alone_is_exact() -> None:
    rgb_HWC, _, probs_KHW = draw_scene(2)
    options = CrfOptions(iterations=3, compat=0, smooth_xy=2, smooth_compat=4)
    np.testing.assert_allclose(refine(rgb_HWC, probs_KHW, options), refine_exactly(rgb_HWC, probs_KHW, options), atol=1e-3)


def test_classes_that_are_nowhere_likely_change_nothing() -> None:
    rgb_HWC, _, probs_KHW = draw_scene(3)
    many_KHW = np.full((40, *probs_KHW.shape[1:]), 1e-6, dtype=np.float32)
    many_KHW[[3, 17, 30]] = probs_KHW
    few_KHW, found_KHW = refine(rgb_HWC, probs_KHW, CrfOptions()), refine(rgb_HWC, many_KHW, CrfOptions())
    np.testing.assert_array_equal(found_KHW[[3, 17, 30]], few_KHW)
    assert found_KHW.sum() == pytest.approx(few_KHW.sum())


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the image has shape \(4, 5, 3\), the probabilities are for 4 x 6 pixels"):
        refine(np.zeros((4, 5, 3), dtype=np.uint8), np.full((2, 4, 6), 0.5, dtype=np.float32), CrfOptions())
