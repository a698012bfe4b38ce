"""What every network here has in common: uint8 pixels in, logits at the image's own size out.

Axis legend: N batch, C channels, H height, W width, K classes.

A network takes images as they come from the loader and normalises them itself: the compiler fuses this into the first
convolution, a quarter of the bytes cross the bus, and an exported model carries its preprocessing. Because padding comes after
normalisation, its zeros mean "the mean colour", not black.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Logits = Tensor | tuple[Tensor, ...]


class Normalize(nn.Module):
    """Turn uint8 pixels into numbers around 0: (pixel / 255 - mean) / std, per channel.

    Mean and standard deviation are buffers: not learned, but saved and loaded with the weights.

    Args:
        mean: per channel, in [0, 1].
        std: per channel, above 0, of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Normalise in the dtype of the buffers (float32), also under autocast: the first convolution casts its result."""
        image_NCHW = image_NCHW.to(self.mean.dtype)
        return (image_NCHW / 255 - self.mean[:, None, None]) / self.std[:, None, None]


class Network(nn.Module):
    """Base of the networks: checks and normalises the image, pads it to a multiple of the stride, cuts the logits to its size.

    A subclass adds its layers and gives `score`, and `title`, its name for people.

    Args:
        num_classes: K; a network always gives K logits, also for two classes.
        in_channels: channels of the image.
        stride: images are padded at the right and at the bottom to a multiple of this many pixels.
        mean: per channel, in [0, 1].
        std: per channel, above 0, of pixels in [0, 1].

    Raises:
        ValueError: a value out of range.
    """

    title = "network"

    def __init__(self, num_classes: int, *, in_channels: int, stride: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        check_positive(num_classes=num_classes, in_channels=in_channels, stride=stride)
        check_normalization(mean, std, in_channels)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.stride = stride
        self.normalize = Normalize(mean, std)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel, as they stand in the network now. Waits for the GPU."""
        return tuple(self.normalize.mean.tolist()), tuple(self.normalize.std.tolist())

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take another mean and standard deviation, those that given weights were trained with.

        Raises:
            ValueError: a value out of range.
        """
        check_normalization(mean, std, self.in_channels)
        self.normalize.mean.copy_(torch.tensor(mean))
        self.normalize.std.copy_(torch.tensor(std))

    def forward(self, image_NCHW: Tensor) -> Logits:
        """Score every class at every pixel.

        Args:
            image_NCHW: uint8 in 0..255, (N, in_channels, H, W), any H and W from 1; channels_last strides are kept
                throughout. Right and bottom are padded with the mean colour to a multiple of `self.stride`; the logits there
                are cut off again.

        Returns:
            Logits, (N, num_classes, H, W), in the dtype of the weights, or autocast's. In training mode with deep
            supervision a tuple: these first, then those of the auxiliary heads, each (N, num_classes, ceil(H / s),
            ceil(W / s)) for its level's stride s, from the finest to the coarsest.

        Raises:
            ValueError: not a uint8 image of `in_channels` channels; or, in training with batch norm, a batch so small that
                the bottleneck has one value per channel, of which there is no variance.
        """
        self._check_image(image_NCHW)
        height, width = image_NCHW.shape[-2:]
        padding = (0, -width % self.stride, 0, -height % self.stride)
        hidden_NCHW = self.normalize(image_NCHW)
        if any(padding):
            hidden_NCHW = F.pad(hidden_NCHW, padding)
        logits_NKHW = self.score(hidden_NCHW)
        if not any(padding):
            return logits_NKHW
        if isinstance(logits_NKHW, Tensor):
            return logits_NKHW[:, :, :height, :width]
        padded_height = height + padding[3]
        strides = [padded_height // part.shape[-2] for part in logits_NKHW]
        return tuple(
            part[:, :, : -(-height // stride), : -(-width // stride)] for part, stride in zip(logits_NKHW, strides, strict=True)
        )

    def score(self, hidden_NCHW: Tensor) -> Logits:
        """Score normalised pixels whose height and width are multiples of the stride; logits of the same size."""
        raise NotImplementedError

    def has_batch_norm(self) -> bool:
        """Say whether any layer takes its statistics from the batch."""
        return any(isinstance(module, _BatchNorm) for module in self.modules())

    def _check_image(self, image_NCHW: Tensor) -> None:
        if image_NCHW.dtype != torch.uint8:
            raise ValueError(f"image is {image_NCHW.dtype}: the net takes uint8 pixels in 0..255 and normalises them itself")
        if image_NCHW.ndim != 4 or image_NCHW.shape[1] != self.in_channels or 0 in image_NCHW.shape:
            raise ValueError(
                f"image has shape {tuple(image_NCHW.shape)}: must be (N, {self.in_channels}, H, W), none of them 0"
            )
        num, _, height, width = image_NCHW.shape
        if self.training and num == 1 and max(height, width) <= self.stride and self.has_batch_norm():
            raise ValueError(
                f"one image of {height} x {width} pixels: batch norm needs more than one value per channel in training; "
                f'take a larger batch, images above {self.stride} pixels, or norm = "group"'
            )


def check_positive(**sizes: int) -> None:
    """Refuse sizes below 1 by name, with a ValueError."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} = {size}: must be at least 1")


def check_normalization(mean: Sequence[float], std: Sequence[float], in_channels: int) -> None:
    """Refuse numbers that are no mean and standard deviation of pixels in [0, 1], with a ValueError."""
    if len(mean) != in_channels or len(std) != in_channels:
        raise ValueError(f"mean has {len(mean)} and std {len(std)} numbers: each must have one per channel, {in_channels}")
    if not all(0 <= number <= 1 for number in mean):
        raise ValueError(f"mean = {list(mean)}: must be in [0, 1], of pixels divided by 255")
    if not all(0 < number < math.inf for number in std):
        raise ValueError(f"std = {list(std)}: must be above 0; a channel that never varies has none, take 1 for it")
