"""Test-time augmentation: a net that answers with the mean over flipped and scaled copies of each image.

Axis legend: N batch, C channels, K classes, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetfast.errors import UserError

TTA_CHOICES = ("none", "flips", "scales", "flips+scales")
SCALES = (0.75, 1.0, 1.25)
# axes of (N, C, H, W) -> what people call it
_FLIP_NAMES: dict[tuple[int, ...], str] = {(): "as it is", (3,): "left-right", (2,): "top-bottom", (2, 3): "both"}
_DIVISOR = 32  # sizes of scaled copies keep the divisor of the image's size, up to this


@dataclass(frozen=True, slots=True)
class Tta:
    """Which copies of an image are asked; every flip at every scale.

    Args:
        flips: axes of (N, C, H, W) that are turned around, one entry a copy.
        scales: size of the copy over that of the image.
    """

    flips: tuple[tuple[int, ...], ...] = ((),)
    scales: tuple[float, ...] = (1.0,)

    @property
    def num_copies(self) -> int:
        return len(self.flips) * len(self.scales)

    def describe(self) -> str:
        """Say it to people."""
        parts = []
        if len(self.flips) > 1:
            parts.append("flips " + ", ".join(_FLIP_NAMES[axes] for axes in self.flips))
        if len(self.scales) > 1:
            parts.append("scales " + ", ".join(f"{scale:g}" for scale in self.scales))
        return f"mean of {self.num_copies} copies: {'; '.join(parts)}"


def parse_tta(text: str, *, vertical: bool = False) -> Tta | None:
    """Read what `--tta` says.

    Args:
        text: one of `TTA_CHOICES`; "none" gives None.
        vertical: flip top to bottom too: right for a net that saw such flips in training, wrong for one that never saw the sky
            below.

    Raises:
        UserError: anything else.
    """
    if text not in TTA_CHOICES:
        raise UserError(f"--tta {text}: give one of {', '.join(TTA_CHOICES)}")
    if text == "none":
        return None
    flips = ((), (3,), (2,), (2, 3)) if vertical else ((), (3,))
    return Tta(flips if "flips" in text else ((),), SCALES if "scales" in text else (1.0,))


class AugmentedModel(nn.Module):
    """Asks a net about several copies of each image and answers with the logarithm of their mean softmax.

    That answer can be taken for logits: its softmax is the mean probability, its largest class the one of the largest mean.
    Copies are scaled as pixels (bilinear, antialiased), and their logits brought back bilinearly before the softmax.

    Args:
        model: uint8 images (N, C, H, W) to logits (N, K, H, W), of any size.
        flips: axes of (N, C, H, W) that are turned around, one entry a copy; () is the image as it is.
        scales: size of a copy over that of the image, above 0; the copy's sides are rounded to the divisor, up to 32, that the
            image's have, so that a net that wants multiples of 32 gets them.

    Raises:
        ValueError: no copy, an axis that is no image axis, or a scale that is not above 0.
    """

    def __init__(
        self, model: nn.Module, *, flips: Sequence[tuple[int, ...]] = ((), (3,)), scales: Sequence[float] = (1.0,)
    ) -> None:
        super().__init__()
        if not flips or not scales:
            raise ValueError("no flip or no scale: give at least one of each, such as flips=((),), scales=(1.0,)")
        if any(axes not in _FLIP_NAMES for axes in flips):
            raise ValueError(f"flips = {list(flips)}: give axes 2 (top-bottom) and 3 (left-right)")
        if not all(0 < scale < math.inf for scale in scales):
            raise ValueError(f"scales = {list(scales)}: must be above 0")
        self.model = model
        self.flips = tuple(flips)
        self.scales = tuple(scales)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Predict.

        Args:
            image_NCHW: uint8.

        Returns:
            Logarithm of the mean probability of each class, float32, (N, K, H, W); never below that of float32's least
            normal number.
        """
        size_hw = (image_NCHW.shape[2], image_NCHW.shape[3])
        sum_NKHW: Tensor | None = None
        for scale in self.scales:
            scaled_NCHW = _scale_pixels(image_NCHW, tuple(scale_side(side, scale) for side in size_hw))
            for axes in self.flips:
                logits_NKHW = self.model(scaled_NCHW.flip(axes) if axes else scaled_NCHW).to(torch.float32)
                logits_NKHW = logits_NKHW.flip(axes) if axes else logits_NKHW
                if logits_NKHW.shape[2:] != size_hw:
                    logits_NKHW = F.interpolate(logits_NKHW, size=size_hw, mode="bilinear", align_corners=False)
                probs_NKHW = logits_NKHW.softmax(dim=1)
                sum_NKHW = probs_NKHW if sum_NKHW is None else sum_NKHW.add_(probs_NKHW)
        assert sum_NKHW is not None
        mean_NKHW = sum_NKHW.div_(len(self.scales) * len(self.flips))
        return mean_NKHW.clamp_(min=torch.finfo(torch.float32).tiny).log_()


def build_augmented(model: nn.Module, tta: Tta | None) -> nn.Module:
    """Wrap a net, or leave it where there is nothing to augment."""
    return model if tta is None else AugmentedModel(model, flips=tta.flips, scales=tta.scales).eval()


def scale_side(side: int, scale: float) -> int:
    """Length of a side after scaling, pixels, with the divisor of the unscaled one as far as it divides 32."""
    divisor = math.gcd(side, _DIVISOR)
    return max(divisor, round(side * scale / divisor) * divisor)


def _scale_pixels(image_NCHW: Tensor, size_hw: tuple[int, ...]) -> Tensor:
    if image_NCHW.shape[2:] == size_hw:
        return image_NCHW
    scaled_NCHW = F.interpolate(
        image_NCHW.to(torch.float32), size=size_hw, mode="bilinear", align_corners=False, antialias=True
    )
    return scaled_NCHW.round_().clamp_(0, 255).to(torch.uint8)
