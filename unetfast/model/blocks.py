"""Parts of the U-Net: convolution blocks, and what goes between the levels.

Each choice is a name; unet.py only puts parts together. A further kind of block (residual, attention, separable) is one more
function with the signature of `build_conv_block`; a further norm or way up is one more entry of `NORMS` or `UPS`.

Blocks are plain `nn.Sequential`s whose parameters stand in the order of the original implementations (convolution, then its
norm), so that weights of the same net from elsewhere can be mapped one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import nn

GROUP_WIDTH = 16  # channels per group, the best row of Wu and He 2018 (Group Normalization), table 3
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


def build_conv_block(
    in_channels: int,
    out_channels: int,
    *,
    mid_channels: int,
    num_convs: int,
    conv_order: str,
    norm: str,
    stride: int = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Build `num_convs` 3x3 convolutions, each with its norm and ReLU.

    Args:
        in_channels: channels that come in.
        out_channels: channels of the last convolution.
        mid_channels: channels of all convolutions before the last.
        num_convs: at least 1.
        conv_order: "conv-norm-act" or "conv-act-norm". A convolution has a bias unless a norm follows it directly, which
            would take it away again.
        norm: a name of `NORMS`.
        stride: of the first convolution; 2 halves height and width (rounded up).
        dropout: probability with which a whole channel of the result is set to 0 in training (`nn.Dropout2d`).

    Raises:
        ValueError: an unknown name.
    """
    if conv_order not in CONV_ORDERS:
        raise ValueError(f"conv_order = {conv_order!r}: must be one of {', '.join(CONV_ORDERS)}")
    build_norm = choose("norm", norm, NORMS)
    norm_first = conv_order == "conv-norm-act"
    widths = [in_channels, *[mid_channels] * (num_convs - 1), out_channels]
    layers: list[nn.Module] = []
    for place in range(num_convs):
        width = widths[place + 1]
        bias = build_norm is None or not norm_first
        step = stride if place == 0 else 1
        layers.append(nn.Conv2d(widths[place], width, kernel_size=3, stride=step, padding=1, bias=bias))
        after: list[nn.Module] = [nn.ReLU(inplace=True)]
        if build_norm is not None:
            after.insert(0 if norm_first else 1, build_norm(width))
        layers += after
    if dropout > 0:
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers)


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
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=scale, stride=scale)


def build_bilinear_up(in_channels: int, out_channels: int, scale: int) -> nn.Module:
    """Build a bilinear up-sampling with `align_corners=True`, as in milesial/Pytorch-UNet; it cannot change the channels."""
    if in_channels != out_channels:
        raise ValueError(f"bilinear up-sampling keeps its {in_channels} channels and cannot make {out_channels} of them")
    if scale == 1:
        return nn.Identity()
    return nn.Upsample(scale_factor=scale, mode="bilinear", align_corners=True)


UPS: dict[str, Callable[[int, int, int], nn.Module]] = {"transposed": build_transposed_up, "bilinear": build_bilinear_up}
