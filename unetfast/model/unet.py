"""The U-Net (Ronneberger et al. 2015), from uint8 pixels to logits.

Axis legend: N batch, C channels, H height, W width, K classes.

With the default options the structure (widths, biases, `align_corners`, order of parameters) is that of milesial/Pytorch-UNet,
except that odd sizes are padded at the input rather than in the decoder. docs/models.md tells what each option is good for.

Compiling: `torch.compile(net, fullgraph=True, dynamic=False)` makes exactly two graphs, one for training and one for evaluation
(batch norm and gradients make them different computations), and no more as long as the image's size and the batch's stay the
same. So a smaller last batch is to be padded to the full one on the device, and the surplus logits cut off; in evaluation the
images of a batch do not influence each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from unetfast.model.blocks import DOWNS, UPS, AttentionGate, block_stride, build_conv_block, build_down, choose, level_stride
from unetfast.model.cpu import concatenate
from unetfast.model.network import Logits, Network, check_normalization, check_positive
from unetfast.model.resnet import STAGES, ResNetEncoder


class Up(nn.Module):
    """One decoder level: bring the level below to the skip's size, put both side by side, convolve.

    Args:
        up: up-sampling of the level below.
        block: convolutions over the skip's channels followed by those of `up`.
        gate: weighs the skip's pixels first; None takes them as they are.
    """

    def __init__(self, up: nn.Module, block: nn.Module, gate: AttentionGate | None = None) -> None:
        super().__init__()
        self.up = up
        self.block = block
        self.gate = gate

    def forward(self, below_NCHW: Tensor, skip_NCHW: Tensor) -> Tensor:
        if self.gate is not None:
            skip_NCHW = self.gate(skip_NCHW, below_NCHW)
        return cast(Tensor, self.block(concatenate(skip_NCHW, self.up(below_NCHW))))


class UNet(Network):
    """Encoder, bottleneck, decoder with skips, and a head of one convolution.

    Level i has `base_channels * 2**i` channels. With the bilinear decoder, which cannot change the number of channels,
    bottleneck and decoder (but its topmost level) are half as wide.

    With a ResNet as the encoder, its stages are the levels from 1 on, and a block of `base_channels` on the image itself (the
    stem) is level 0, so that the finest skip has full size here too. A decoder level has `base_channels * 2**i` channels, but
    not more than the skip that it meets.

    Args:
        num_classes: K; the net always gives K logits, also for two classes.
        in_channels: channels of the image.
        base_channels: channels of the topmost level.
        depth: number of down-samplings; of a ResNet's five stages, those that are taken.
        convs_per_block: convolutions per block.
        conv_order: "conv-norm-act" or "conv-act-norm".
        norm: "batch", "group" (16 channels a group) or "none"; a ResNet's own layers are always batch norm.
        down: "maxpool", "strided" (the next block's first convolution has stride 2) or "none" (same size), for all levels or
            one per level from the top.
        up: "transposed" or "bilinear".
        head_kernel: side of the head's kernel, 1 or 3 pixels.
        dropout: probability of channel dropout after the bottleneck and each decoder block.
        block: "plain", "residual" (He et al. 2016) or "separable" (Chollet 2017); not of a ResNet's own layers.
        attention: whether an attention gate (Oktay et al. 2018) weighs each skip.
        deep_supervision: weight of the finest auxiliary head's loss (`unetfast.model.deep`); above 0, each decoder level but
            the topmost gets a 1x1 head, which works in training mode alone.
        encoder: "plain", "resnet18", "resnet34" or "resnet50" (torchvision's).
        mean: per channel, in [0, 1]; of the training split.
        std: per channel, above 0, of pixels in [0, 1]. The defaults of mean and std give pixel / 255.

    Raises:
        ValueError: a value out of range, an unknown name, as many entries as do not fit depth or channels, or an encoder
            whose torchvision is not installed.
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
        block: str = "plain",
        attention: bool = False,
        deep_supervision: float = 0.0,
        encoder: str = "plain",
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        check_positive(
            num_classes=num_classes,
            in_channels=in_channels,
            base_channels=base_channels,
            depth=depth,
            convs_per_block=convs_per_block,
        )
        check_normalization(mean, std, in_channels)
        if head_kernel not in (1, 3):
            raise ValueError(f"head_kernel = {head_kernel}: must be 1 or 3")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout = {dropout}: must be at least 0 and below 1")
        _check_deep_supervision(deep_supervision, depth)
        build_up = choose("up", up, UPS)
        downs = _downs_per_level(down, depth)
        if encoder != "plain":
            _check_resnet_options(encoder, down, in_channels)
        super().__init__(num_classes, in_channels=in_channels, stride=math.prod(map(level_stride, downs)), mean=mean, std=std)
        self.title = _describe(base_channels, depth, block, attention, deep_supervision, encoder)
        widths = [base_channels * 2**level for level in range(depth + 1)]
        halved = [width // 2 for width in widths] if up == "bilinear" else widths

        def build_block(
            in_width: int, out_width: int, mid_width: int, *, takes_image: bool = False, stride: int = 1, dropout: float = 0.0
        ) -> nn.Module:
            return build_conv_block(
                in_width,
                out_width,
                mid_channels=mid_width,
                num_convs=convs_per_block,
                conv_order=conv_order,
                norm=norm,
                block=block,
                takes_image=takes_image,
                stride=stride,
                dropout=dropout,
            )

        first = build_block(in_channels, base_channels, base_channels, takes_image=True)
        if encoder == "plain":
            self.downs = nn.ModuleList(build_down(name) for name in downs)
            self.encoder: nn.ModuleList | ResNetEncoder = nn.ModuleList([first])
            for level in range(1, depth + 1):
                last = level == depth  # the bottleneck
                width = halved[level] if last else widths[level]
                stride = block_stride(downs[level - 1])
                part = build_block(widths[level - 1], width, width, stride=stride, dropout=dropout if last else 0.0)
                self.encoder.append(part)
            skips, below = widths[:depth], halved[depth]
            results = [widths[0], *halved[1:depth]]  # channels that each decoder level gives
        else:
            self.stem = first
            self.encoder = ResNetEncoder(encoder, depth=depth, dropout=dropout)
            skips, below = [base_channels, *self.encoder.channels[:-1]], self.encoder.channels[-1]
            widths = results = [min(pair) for pair in zip(widths, skips, strict=False)]
        self.decoder = nn.ModuleList()
        self.aux_heads = nn.ModuleList()  # finest first
        for level in reversed(range(depth)):
            scale = level_stride(downs[level])
            up_width = below if up == "bilinear" else widths[level]
            layer = build_up(below, up_width, scale)
            part = build_block(skips[level] + up_width, results[level], widths[level], dropout=dropout)
            gate = AttentionGate(skips[level], below, scale) if attention else None
            self.decoder.append(Up(layer, part, gate))
            below = results[level]
        if deep_supervision > 0:
            self.aux_heads.extend(nn.Conv2d(results[level], num_classes, kernel_size=1) for level in range(1, depth))
        self.head = nn.Conv2d(base_channels, num_classes, head_kernel, padding=head_kernel // 2)

    def score(self, hidden_NCHW: Tensor) -> Logits:
        """Score normalised pixels whose height and width are multiples of the stride; see `Network.forward`."""
        skips = self._encode(hidden_NCHW)
        hidden_NCHW = skips.pop()  # `*skips, hidden_NCHW = ` is a tuple to the compiler of torch 2.11
        levels = []
        for level in self.decoder:
            hidden_NCHW = level(hidden_NCHW, skips.pop())
            levels.append(hidden_NCHW)
        logits_NKHW = cast(Tensor, self.head(hidden_NCHW))
        if not (self.training and self.aux_heads):
            return logits_NKHW
        lower = reversed(levels[:-1])
        return (logits_NKHW, *(head(level_NCHW) for head, level_NCHW in zip(self.aux_heads, lower, strict=True)))

    def _encode(self, hidden_NCHW: Tensor) -> list[Tensor]:
        """Compute the levels from full size down to the bottleneck."""
        if isinstance(self.encoder, ResNetEncoder):
            return [self.stem(hidden_NCHW), *self.encoder(hidden_NCHW)]
        levels = [self.encoder[0](hidden_NCHW)]
        for down, block in zip(self.downs, self.encoder[1:], strict=True):
            levels.append(block(down(levels[-1])))
        return levels


def _describe(base_channels: int, depth: int, block: str, attention: bool, deep_supervision: float, encoder: str) -> str:
    parts = [f"U-Net {base_channels}..{base_channels * 2**depth}"]
    if encoder != "plain":
        stages = "" if depth == STAGES else f" (stages 1 to {depth} of {STAGES}: model.depth)"
        parts = [f"U-Net on ResNet-{encoder.removeprefix('resnet')}{stages}"]
    parts += [f"{block} blocks"] * (block != "plain") + ["attention gates"] * attention
    return ", ".join(parts + [f"deep supervision {deep_supervision:g}"] * (deep_supervision > 0))


def _check_deep_supervision(weight: float, depth: int) -> None:
    if not 0 <= weight < math.inf:
        raise ValueError(f"deep_supervision = {weight}: the weight of the auxiliary heads must be at least 0")
    if weight > 0 and depth < 2:
        raise ValueError("deep_supervision needs a decoder level below the topmost: depth must be at least 2")


def _check_resnet_options(encoder: str, down: str | Sequence[str], in_channels: int) -> None:
    if down != "maxpool":
        raise ValueError(f'encoder = {encoder!r} brings its own down-samplings: leave down at "maxpool"')
    if in_channels != 3:
        raise ValueError(f"encoder = {encoder!r} takes RGB images, in_channels = {in_channels}")


def _downs_per_level(down: str | Sequence[str], depth: int) -> list[str]:
    downs = [down] * depth if isinstance(down, str) else list(down)
    if len(downs) != depth:
        raise ValueError(f"down names {len(downs)} levels, depth is {depth}")
    for name in downs:
        choose("down", name, dict.fromkeys(DOWNS))
    return downs
