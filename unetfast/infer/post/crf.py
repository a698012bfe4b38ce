"""Dense-CRF refinement: class probabilities moved so that near pixels of like colour agree.

Mean-field inference of Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials"
(NIPS 2011), with the Potts model and their two kernels: appearance (position and colour) and smoothness (position alone). The
kernels are normalised symmetrically, D^-1/2 K D^-1/2, as in their published code.

Axis legend: K classes, H height, W width, C channels, P = H * W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from unetfast.infer.post.permutohedral import Lattice

LEAST_PROB = 1e-5  # of a class at a pixel, so that its logarithm stays finite
# a class that is nowhere likelier than this can win no pixel: a message is at most the kernels' weight times it
LEAST_CLASS_PROB = 1e-3
SMOOTHNESS_REACH = 4.0  # standard deviations at which its Gaussian is cut: 0.03 % of its weight lies outside


@dataclass(frozen=True, slots=True)
class CrfOptions:
    """Parameters of the refinement; the defaults are those in common use.

    Args:
        iterations: of mean-field inference; 5 to 10 converge.
        xy: standard deviation of the appearance kernel in position, pixels.
        rgb: the same in colour, levels of 0..255.
        compat: weight of the appearance kernel.
        smooth_xy: standard deviation of the smoothness kernel, pixels.
        smooth_compat: weight of the smoothness kernel.
    """

    iterations: int = 5
    xy: float = 80.0
    rgb: float = 13.0
    compat: float = 10.0
    smooth_xy: float = 3.0
    smooth_compat: float = 3.0


def refine(rgb_HWC: np.ndarray, probs_KHW: np.ndarray, options: CrfOptions) -> np.ndarray:
    """Refine class probabilities by the colours of their image.

    Memory: about ten times that of the probabilities of the classes in play.

    Args:
        rgb_HWC: the image, uint8, (H, W, 3).
        probs_KHW: float32 in [0, 1], summing to 1 over K.
        options: parameters.

    Returns:
        float32, (K, H, W), summing to 1 over K; exactly 0 for classes that are below 0.001 at every pixel, which are left out.

    Raises:
        ValueError: the sizes differ, or the kernel is too narrow for the image.
    """
    height, width = probs_KHW.shape[1:]
    if rgb_HWC.shape != (height, width, 3):
        raise ValueError(f"the image has shape {rgb_HWC.shape}, the probabilities are for {height} x {width} pixels")
    in_play = np.flatnonzero(probs_KHW.max(axis=(1, 2)) >= LEAST_CLASS_PROB)
    refined_KHW = np.zeros_like(probs_KHW, dtype=np.float32)
    appearance = _Appearance(rgb_HWC, options) if options.compat > 0 else None
    smoothness = _Smoothness((height, width), options.smooth_xy) if options.smooth_compat > 0 else None
    given_KHW = torch.from_numpy(np.ascontiguousarray(probs_KHW[in_play], dtype=np.float32))
    score_KHW = given_KHW.clamp(min=LEAST_PROB).log()
    probs = score_KHW.softmax(dim=0)
    for _ in range(options.iterations):
        message_KHW = score_KHW.clone()
        if appearance is not None:
            message_KHW.add_(appearance.filter(probs), alpha=options.compat)
        if smoothness is not None:
            message_KHW.add_(smoothness.filter(probs), alpha=options.smooth_compat)
        probs = message_KHW.softmax(dim=0)
    refined_KHW[in_play] = probs.numpy()
    return refined_KHW


class _Appearance:
    """exp(-|position|^2 / 2 xy^2 - |colour|^2 / 2 rgb^2), normalised; by the permutohedral lattice."""

    def __init__(self, rgb_HWC: np.ndarray, options: CrfOptions) -> None:
        height, width = rgb_HWC.shape[:2]
        rows_HW, columns_HW = np.mgrid[:height, :width]
        position_P2 = np.stack([columns_HW.reshape(-1), rows_HW.reshape(-1)], axis=1) / options.xy
        self._lattice = Lattice(np.concatenate([position_P2, rgb_HWC.reshape(-1, 3) / options.rgb], axis=1))
        self._scale_P1 = (self._lattice.filter(torch.ones(height * width, 1)) + 1e-20).rsqrt()

    def filter(self, probs_KHW: Tensor) -> Tensor:
        scaled_PK = probs_KHW.flatten(1).T * self._scale_P1
        return (self._lattice.filter(scaled_PK) * self._scale_P1).T.reshape(probs_KHW.shape)


class _Smoothness:
    """exp(-|position|^2 / 2 smooth_xy^2), normalised; row by row and column by column, which is exact."""

    def __init__(self, size_hw: tuple[int, int], std_px: float) -> None:
        reach = min(math.ceil(SMOOTHNESS_REACH * std_px), max(size_hw))
        self._kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / std_px) ** 2).astype(np.float32)
        self._scale_HW = self._blur(np.ones(size_hw, dtype=np.float32)) ** -0.5

    def filter(self, probs_KHW: Tensor) -> Tensor:
        blurred_KHW = torch.empty_like(probs_KHW)
        for blurred_HW, probs_HW in zip(blurred_KHW.numpy(), probs_KHW.numpy(), strict=True):
            np.multiply(self._blur(probs_HW * self._scale_HW), self._scale_HW, out=blurred_HW)
        return blurred_KHW

    def _blur(self, image_HW: np.ndarray) -> np.ndarray:
        return cv2.sepFilter2D(image_HW, cv2.CV_32F, self._kernel, self._kernel, borderType=cv2.BORDER_CONSTANT)
