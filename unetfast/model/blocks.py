"""Parts of the U-Net: convolution blocks, and what goes between the levels.

Each choice is a name; unet.py only puts parts together. A further kind of block is one more name of `BLOCKS`; a further norm or
way up is one more entry of `NORMS` or `UPS`.

Plain blocks are `nn.Sequential`s whose parameters stand in the order of the original implementations (convolution, then its
norm), so that weights of the same net from elsewhere can be mapped one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unetfast.model.cpu import TransposedConv

GROUP_WIDTH = 16  # channels per group, the best row of Wu and He 2018 (Group Normalization), table 3
BLOCKS = ("plain", "residual", "separable")
CONV_ORDERS = ("conv-norm-act", "conv-act-norm")
DOWNS = ("maxpool", "strided", "none")

Choice = TypeVar("Choice")


def choose(kind: str, name: str, table: Mapping[str, Choice]) -> Choice:
    """Look `name` up in a table of choices.

    Raises:
        ValueError: there is no such choice; names those there are.
    """
    if name not in table:
        raise ValueError(f"{kind} = {name!r}: must be one of {', '.join(table)}")
    return table[name]


def build_group_norm(channels: int) -> nn.Module:
    """Build a group norm with at least 16 channels per group, or a single group where `channels` is smaller."""
    num_groups = max(divisor for divisor in range(1, channels + 1) if channels % divisor == 0 and _fits(channels, divisor))
    return nn.GroupNorm(num_groups, channels)


def _fits(channels: int, num_groups: int) -> bool:
    return num_groups == 1 or channels // num_groups >= GROUP_WIDTH


NORMS: dict[str, Callable[[int], nn.Module] | None] = {"batch": nn.BatchNorm2d, "group": build_group_norm, "none": None}


class SeparableConv(nn.Module):
    """A 3x3 convolution in two steps: each channel by itself, then all channels of each pixel (Chollet 2017, Xception).

    As there, no norm or activation stands between the two. Per pixel it costs 9 C_in + C_in C_out multiplications in place of
    9 C_in C_out.

    Args:
        in_channels: channels that come in.
        out_channels: channels of the result.
        stride: of the first step.
        bias: whether the second step has one.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, hidden_NCHW: Tensor) -> Tensor:
        hidden_NCHW = self.depthwise(hidden_NCHW)
        return self.pointwise(hidden_NCHW)  # type: ignore[no-any-return]


class ResidualBlock(nn.Module):
    """Add what came in to what the convolutions made of it, before the last activation (He et al. 2016; Zhang et al. 2018).

    Args:
        body: the convolutions, up to the last one's activation.
        shortcut: brings what came in to the same channels and size.
        after: from the last activation on.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.after = after

    def forward(self, hidden_NCHW: Tensor) -> Tensor:
        return self.after(self.body(hidden_NCHW) + self.shortcut(hidden_NCHW))  # type: ignore[no-any-return]


class AttentionGate(nn.Module):
    """Weigh each pixel of a skip by a number in (0, 1) that the level below has a say in (Oktay et al. 2018, figure 2).

    weight = sigmoid(psi(relu(theta(skip) + phi(below)))), computed at the size of the level below and brought to the skip's
    size bilinearly; one weight a pixel, the same for all channels.

    Args:
        skip_channels: channels of the skip.
        below_channels: channels of the level below.
        scale: the skip's size divided by that of the level below.
    """

    def __init__(self, skip_channels: int, below_channels: int, scale: int) -> None:
        super().__init__()
        mid_channels = max(1, skip_channels // 2)
        self.theta = nn.Conv2d(skip_channels, mid_channels, kernel_size=scale, stride=scale, bias=False)
        self.phi = nn.Conv2d(below_channels, mid_channels, kernel_size=1)
        self.psi = nn.Conv2d(mid_channels, 1, kernel_size=1)

    def forward(self, skip_NCHW: Tensor, below_NCHW: Tensor) -> Tensor:
        mixed_NCHW = F.relu(self.theta(skip_NCHW) + self.phi(below_NCHW))
        weight_N1HW = torch.sigmoid(self.psi(mixed_NCHW))
        if weight_N1HW.shape[-2:] != skip_NCHW.shape[-2:]:
            weight_N1HW = F.interpolate(weight_N1HW, size=skip_NCHW.shape[-2:], mode="bilinear", align_corners=False)
        return skip_NCHW * weight_N1HW


def build_conv_block(
    in_channels: int,
    out_channels: int,
    *,
    mid_channels: int,
    num_convs: int,
    conv_order: str,
    norm: str,
    block: str = "plain",
    takes_image: bool = False,
    stride: int = 1,
    dropout: float = 0.0,
) -> nn.Module:
    """Build `num_convs` 3x3 convolutions, each with its norm and ReLU.

    Args:
        in_channels: channels that come in.
        out_channels: channels of the last convolution.
        mid_channels: channels of all convolutions before the last.
        num_convs: at least 1.
        conv_order: "conv-norm-act" or "conv-act-norm". A convolution has a bias unless a norm follows it directly, which
            would take it away again.
        norm: a name of `NORMS`.
        block: "plain"; "residual" adds what came in before the last ReLU, through a 1x1 convolution (with its norm, where a
            norm comes before the ReLU) if channels or size differ; "separable" takes `SeparableConv`s.
        takes_image: whether the pixels themselves come in. Their convolution is never separable, as in Xception: three
            channels leave nothing to separate.
        stride: of the first convolution; 2 halves height and width (rounded up).
        dropout: probability with which a whole channel of the result is set to 0 in training (`nn.Dropout2d`).

    Raises:
        ValueError: an unknown name.
    """
    if block not in BLOCKS:
        raise ValueError(f"block = {block!r}: must be one of {', '.join(BLOCKS)}")
    if conv_order not in CONV_ORDERS:
        raise ValueError(f"conv_order = {conv_order!r}: must be one of {', '.join(CONV_ORDERS)}")
    build_norm = choose("norm", norm, NORMS)
    norm_first = conv_order == "conv-norm-act"
    bias = build_norm is None or not norm_first
    widths = [in_channels, *[mid_channels] * (num_convs - 1), out_channels]
    layers: list[nn.Module] = []
    tail: list[nn.Module] = []  # of the last convolution: from its activation on
    for place in range(num_convs):
        width = widths[place + 1]
        step = stride if place == 0 else 1
        if block == "separable" and not (takes_image and place == 0):
            layers.append(SeparableConv(widths[place], width, stride=step, bias=bias))
        else:
            layers.append(nn.Conv2d(widths[place], width, kernel_size=3, stride=step, padding=1, bias=bias))
        # in place it would save no memory that lasts (the norm does not keep its result), and a CPU takes twice the time
        tail = [nn.ReLU()]
        if build_norm is not None:
            (layers if norm_first else tail).append(build_norm(width))
        if place < num_convs - 1:
            layers += tail
    if dropout > 0:
        tail.append(nn.Dropout2d(dropout))
    if block != "residual":
        return nn.Sequential(*layers, *tail)
    shortcut: list[nn.Module] = []
    if in_channels != out_channels or stride > 1:
        shortcut.append(nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=bias))
        if build_norm is not None and norm_first:
            shortcut.append(build_norm(out_channels))
    return ResidualBlock(nn.Sequential(*layers), nn.Sequential(*shortcut), nn.Sequential(*tail))


def build_down(down: str) -> nn.Module:
    """Build what stands between two encoder levels.

    Only max-pooling is a layer of its own: "strided" is the stride of the next block's first convolution (`block_stride`).
    """
    return nn.MaxPool2d(2) if down == "maxpool" else nn.Identity()


def block_stride(down: str) -> int:
    """Stride of the first convolution of the block below a down-sampling of this kind."""
    return 2 if down == "strided" else 1


def level_stride(down: str) -> int:
    """Factor by which a down-sampling of this kind shrinks height and width."""
    return 1 if down == "none" else 2


def build_transposed_up(in_channels: int, out_channels: int, scale: int) -> nn.Module:
    """Build a 2x2 transposed convolution with stride 2 (Ronneberger et al. 2015), or for scale 1 a 1x1 convolution."""
    if scale == 1:
        return nn.Conv2d(in_channels, out_channels, kernel_size=1)
    return TransposedConv(in_channels, out_channels, kernel_size=scale, stride=scale)


def build_bilinear_up(in_channels: int, out_channels: int, scale: int) -> nn.Module:
    """Build a bilinear up-sampling with `align_corners=True`, as in milesial/Pytorch-UNet; it cannot change the channels."""
    if in_channels != out_channels:
        raise ValueError(f"bilinear up-sampling keeps its {in_channels} channels and cannot make {out_channels} of them")
    if scale == 1:
        return nn.Identity()
    return nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=True)


UPS: dict[str, Callable[[int, int, int], nn.Module]] = {"transposed": build_transposed_up, "bilinear": build_bilinear_up}
