"""The U-Net (Ronneberger et al. 2015), from uint8 pixels to logits.

Axis legend: N batch, C channels, H height, W width, K classes.

The net takes images as they come from the loader and normalises them itself: the compiler fuses this into the first
convolution, a quarter of the bytes cross the bus, and an exported model carries its preprocessing. Because padding comes after
normalisation, its zeros mean "the mean colour of the training split", not black.

With the default options the structure (widths, biases, `align_corners`, order of parameters) is that of milesial/Pytorch-UNet,
except that odd sizes are padded at the input rather than in the decoder.

Compiling: `torch.compile(net, fullgraph=True, dynamic=False)` makes exactly two graphs, one for training and one for evaluation
(batch norm and gradients make them different computations), and no more as long as the image's size and the batch's stay the
same. So a smaller last batch is to be padded to the full one on the device, and the surplus logits cut off; in evaluation the
images of a batch do not influence each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetfast.model.blocks import DOWNS, UPS, block_stride, build_conv_block, build_down, choose, level_stride


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


class Up(nn.Module):
    """One decoder level: bring the level below to the skip's size, put both side by side, convolve.

    Args:
        up: up-sampling of the level below.
        block: convolutions over the skip's channels followed by those of `up`.
    """

    def __init__(self, up: nn.Module, block: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.block = block

    def forward(self, below_NCHW: Tensor, skip_NCHW: Tensor) -> Tensor:
        return cast(Tensor, self.block(torch.cat([skip_NCHW, self.up(below_NCHW)], dim=1)))


class UNet(nn.Module):
    """Encoder, bottleneck, decoder with skips, and a head of one convolution.

    Level i of the encoder has `base_channels * 2**i` channels. With the bilinear decoder, which cannot change the number of
    channels, bottleneck and decoder (but its topmost level) are half as wide.

    Args:
        num_classes: K; the net always gives K logits, also for two classes.
        in_channels: channels of the image.
        base_channels: channels of the topmost level.
        depth: number of down-samplings.
        convs_per_block: convolutions per block.
        conv_order: "conv-norm-act" or "conv-act-norm".
        norm: "batch", "group" (16 channels a group) or "none".
        down: "maxpool", "strided" (the next block's first convolution has stride 2) or "none" (same size), for all levels or
            one per level from the top.
        up: "transposed" or "bilinear".
        head_kernel: side of the head's kernel, 1 or 3 pixels.
        dropout: probability of channel dropout after the bottleneck and each decoder block.
        mean: per channel, in [0, 1]; of the training split.
        std: per channel, above 0, of pixels in [0, 1]. The defaults of mean and std give pixel / 255.

    Raises:
        ValueError: a value out of range, an unknown name, or as many entries as do not fit depth or channels.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        in_channels: int = 3,
        base_channels: int = 64,
        depth: int = 4,
        convs_per_block: int = 2,
        conv_order: str = "conv-norm-act",
        norm: str = "batch",
        down: str | Sequence[str] = "maxpool",
        up: str = "transposed",
        head_kernel: int = 1,
        dropout: float = 0.0,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        _check_positive(
            num_classes=num_classes,
            in_channels=in_channels,
            base_channels=base_channels,
            depth=depth,
            convs_per_block=convs_per_block,
        )
        _check_normalization(mean, std, in_channels)
        if head_kernel not in (1, 3):
            raise ValueError(f"head_kernel = {head_kernel}: must be 1 or 3")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout}: must be at least 0 and below 1")
        build_up = choose("up", up, UPS)
        downs = _downs_per_level(down, depth)

        self.num_classes = num_classes
        self.in_channels = in_channels
        self.norm = norm
        self.stride = math.prod(map(level_stride, downs))  # images are padded to a multiple of this many pixels
        widths = [base_channels * 2**level for level in range(depth + 1)]
        halved = [width // 2 for width in widths] if up == "bilinear" else widths

        def build_block(in_width: int, out_width: int, mid_width: int, *, stride: int = 1, dropout: float = 0.0) -> nn.Module:
            return build_conv_block(
                in_width,
                out_width,
                mid_channels=mid_width,
                num_convs=convs_per_block,
                conv_order=conv_order,
                norm=norm,
                stride=stride,
                dropout=dropout,
            )

        self.normalize = Normalize(mean, std)
        self.downs = nn.ModuleList(build_down(name) for name in downs)
        self.encoder = nn.ModuleList([build_block(in_channels, base_channels, base_channels)])
        for level in range(1, depth + 1):
            last = level == depth  # the bottleneck
            width = halved[level] if last else widths[level]
            stride = block_stride(downs[level - 1])
            self.encoder.append(build_block(widths[level - 1], width, width, stride=stride, dropout=dropout if last else 0.0))
        self.decoder = nn.ModuleList()
        below = halved[depth]
        for level in reversed(range(depth)):
            width = widths[level]
            layer = build_up(below, width, level_stride(downs[level]))
            below = halved[level] if level > 0 else width
            self.decoder.append(Up(layer, build_block(2 * width, below, width, dropout=dropout)))
        self.head = nn.Conv2d(base_channels, num_classes, head_kernel, padding=head_kernel // 2)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Score every class at every pixel.

        Args:
            image_NCHW: uint8 in 0..255, (N, in_channels, H, W), any H and W from 1; channels_last strides are kept
                throughout. Right and bottom are padded with the mean colour to a multiple of `self.stride`; the logits there
                are cut off again.

        Returns:
            Logits, (N, num_classes, H, W), in the dtype of the weights, or autocast's.

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

        hidden_NCHW = self.encoder[0](hidden_NCHW)
        skips = []
        for down, block in zip(self.downs, self.encoder[1:], strict=True):
            skips.append(hidden_NCHW)
            hidden_NCHW = block(down(hidden_NCHW))
        for level in self.decoder:  # outputs of these levels are where deep supervision would attach its heads
            hidden_NCHW = level(hidden_NCHW, skips.pop())
        logits_NKHW = self.head(hidden_NCHW)
        return cast(Tensor, logits_NKHW[:, :, :height, :width] if any(padding) else logits_NKHW)

    def _check_image(self, image_NCHW: Tensor) -> None:
        if image_NCHW.dtype != torch.uint8:
            raise ValueError(f"image is {image_NCHW.dtype}: the net takes uint8 pixels in 0..255 and normalises them itself")
        if image_NCHW.ndim != 4 or image_NCHW.shape[1] != self.in_channels or 0 in image_NCHW.shape:
            raise ValueError(
                f"image has shape {tuple(image_NCHW.shape)}: must be (N, {self.in_channels}, H, W), none of them 0"
            )
        num, _, height, width = image_NCHW.shape
        if self.training and self.norm == "batch" and num == 1 and max(height, width) <= self.stride:
            raise ValueError(
                f"one image of {height} x {width} pixels: batch norm needs more than one value per channel in training; "
                f'take a larger batch, images above {self.stride} pixels, or norm = "group"'
            )


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} = {size}: must be at least 1")


def _check_normalization(mean: Sequence[float], std: Sequence[float], in_channels: int) -> None:
    if len(mean) != in_channels or len(std) != in_channels:
        raise ValueError(f"mean has {len(mean)} and std {len(std)} numbers: each must have one per channel, {in_channels}")
    if not all(0 <= number <= 1 for number in mean):
        raise ValueError(f"mean = {list(mean)}: must be in [0, 1], of pixels divided by 255")
    if not all(0 < number < math.inf for number in std):
        raise ValueError(f"std = {list(std)}: must be above 0; a channel that never varies has none, take 1 for it")


def _downs_per_level(down: str | Sequence[str], depth: int) -> list[str]:
    downs = [down] * depth if isinstance(down, str) else list(down)
    if len(downs) != depth:
        raise ValueError(f"down names {len(downs)} levels, depth is {depth}")
    for name in downs:
        choose("down", name, dict.fromkeys(DOWNS))
    return downs
